"""Training the navigator: the target's worked value, the mask in it, and known optimal values."""

import pytest
import torch

from tokenry.core.errors import InputError
from tokenry.decode.routing.rlot import Constraints
from tokenry.learn.recipes.rlot import (
    NavigatorTraining,
    Transitions,
    double_dqn_loss,
    double_dqn_target,
)
from tokenry.tasks.reasoning_blocks import TERMINATE, Observation, executed


class Table(torch.nn.Module):
    """Values by the first grade, which is 1, 2 or 3."""

    def __init__(self, *rows):
        super().__init__()
        self.rows = torch.nn.Parameter(torch.tensor(rows))

    def forward(self, grades):
        return self.rows[grades[:, 0].long() - 1]


def step(done=False, allowed=(True, True, True), action=0, reward=0.5):
    return Transitions(
        torch.full((1, 7), 1), torch.tensor([action]), torch.tensor([reward]),
        torch.full((1, 7), 2), torch.tensor([done]), torch.tensor([allowed]),
    )  # fmt: skip


ONLINE = Table([0.0, 0.0, 0.0], [1.0, 3.0, 2.0])
TARGET = Table([9.0, 9.0, 9.0], [5.0, 0.0, 9.0])


def target(**options):
    return float(double_dqn_target(ONLINE, TARGET, step(**options), 0.9))


def test_the_online_network_chooses_and_the_target_network_values():
    assert target() == pytest.approx(0.5)  # 0.5 + 0.9 * 0; the target's own best would give 8.6
    assert target(allowed=(True, False, True)) == pytest.approx(0.5 + 0.9 * 9)
    assert target(allowed=(True, False, False)) == pytest.approx(0.5 + 0.9 * 5)
    assert target(done=True, allowed=(True, False, True)) == pytest.approx(0.5)


def test_the_loss_is_hubers_and_moves_the_online_network_alone():
    online = Table([0.2, 4.0, 0.0], [1.0, 3.0, 2.0])
    near = double_dqn_loss(online, TARGET, step(), 0.9)
    assert near.item() == pytest.approx(0.3**2 / 2)
    assert double_dqn_loss(online, TARGET, step(action=1), 0.9).item() == pytest.approx(3.0)
    near.backward()
    assert online.rows.grad[0].tolist() == pytest.approx([-0.3, 0.0, 0.0])
    assert online.rows.grad[1].abs().sum() == 0
    assert TARGET.rows.grad is None


class Chain:
    """Three states, told by all grades: known rewards and moves, an end by terminating."""

    max_actions = 50
    rewards = torch.tensor([[0.1, 0.0, 0.3, 0.2, 0.0], [0.0, 0.5, 0.1, 0.0, 0.4],
                            [0.2, 0.0, 0.0, 0.1, 1.0]])  # fmt: skip
    moves = torch.tensor([[1, 2, 0, 1, 0], [0, 2, 1, 2, 0], [2, 0, 1, 0, 0]])

    def reset(self, count, generator):
        self.state = torch.randint(3, (count,), generator=generator)
        # begun already, so that every block is allowed
        self.done, self.steps = torch.zeros(count).bool(), torch.ones(count, dtype=torch.long)
        return self.seen()

    def seen(self):
        return Observation((self.state + 1)[:, None].expand(-1, 7), self.steps, self.done)

    def step(self, actions, generator):
        live = ~self.done
        actions = executed(actions, self.seen(), self.max_actions)
        reward = torch.where(live, self.rewards[self.state, actions], 0.0)
        self.state = torch.where(live, self.moves[self.state, actions], self.state)
        self.done = self.done | (actions == TERMINATE)
        self.steps = self.steps + live.long()
        return self.seen(), reward, self.done


def optimal(gamma):
    values = torch.zeros(3, 5)
    for _ in range(500):
        follows = values.max(-1).values[Chain.moves]
        follows[:, TERMINATE] = 0.0
        values = Chain.rewards + gamma * follows
    return values


def test_training_reaches_the_optimal_values_of_a_small_chain():
    train = NavigatorTraining(
        updates=600, gamma=0.7, epsilon=1.0, learning_rate=5e-3, renew=20, batch_size=48
    )
    navigator = train(Chain(), Constraints(Chain.max_actions))
    grades = torch.arange(1, 4)[:, None].expand(-1, 7)
    assert float((navigator.network(grades) - optimal(0.7)).abs().max()) < 0.05
    assert not any(weight.requires_grad for weight in navigator.network.parameters())


def test_the_same_seed_gives_the_same_weights():
    made = [
        NavigatorTraining(updates=12, seed=seed)(Chain(), Constraints(50)).network.state_dict()
        for seed in (1, 1, 2)
    ]
    assert all(torch.equal(a, b) for a, b in zip(made[0].values(), made[1].values(), strict=True))
    assert any(
        not torch.equal(a, b) for a, b in zip(made[0].values(), made[2].values(), strict=True)
    )


def test_defaults_and_refusals():
    assert NavigatorTraining() == NavigatorTraining(2000, 8, 0.95, 1e-3, 64, 10_000, 100, 0.05, 0)
    for wrong in ({"gamma": 1.1}, {"updates": 0}, {"epsilon": -1}, {"renew": 0}):
        with pytest.raises(InputError):
            NavigatorTraining(**wrong)
