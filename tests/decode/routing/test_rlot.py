"""RLoT's navigator: its size, the dueling sum, and what it may choose."""

import pytest
import torch

from tokenry.core.errors import InputError, ShapeError
from tokenry.decode.routing.rlot import Constraints, DuelingQNetwork, Navigator, played
from tokenry.tasks.reasoning_blocks import DEBATE, REFINE, TERMINATE, Observation
from tokenry.tasks.worlds.reasoning import SyntheticReasoning


def observed(rows=1, step=1, answered=False):
    grades = torch.randint(1, 4, (rows, 7), generator=torch.Generator().manual_seed(0))
    flags = torch.full((rows,), answered)
    return Observation(grades, torch.full((rows,), step), flags)


@pytest.fixture
def network():
    torch.manual_seed(0)
    return DuelingQNetwork()


class Prefers:
    """A network whose values are given."""

    def __init__(self, *values):
        self.values = torch.tensor(values)

    def __call__(self, grades):
        return self.values.expand(len(grades), -1).clone()


def test_it_has_the_papers_number_of_weights(network):
    assert sum(weight.numel() for weight in network.parameters()) == 2566
    assert network(observed(3).grades).shape == (3, 5)
    streams = [sum(w.numel() for w in part.parameters()) for part in network.children()]
    assert streams == [256, 1056 + 33, 1056 + 165]


def test_a_constant_added_to_the_advantages_changes_nothing(network):
    before = network(observed(4).grades)
    with torch.no_grad():
        network.advantage[-1].bias.add_(3.7)
    torch.testing.assert_close(network(observed(4).grades), before, atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        network.value[-1].bias.add_(1.5)
    torch.testing.assert_close(network(observed(4).grades), before + 1.5, atol=1e-5, rtol=1e-5)
    mean = network(observed(4).grades).mean(-1)  # the advantages' mean is taken off
    shared = network.shared(observed(4).grades.float())
    torch.testing.assert_close(mean, network.value(shared)[:, 0])


@pytest.mark.parametrize(
    ("step", "answered", "allowed"),
    [
        (0, False, [1, 1, 1, 0, 1]),
        (1, False, [1, 1, 1, 1, 1]),
        (0, True, [0, 0, 0, 0, 1]),
        (2, True, [0, 0, 0, 0, 1]),
        (3, False, [1, 1, 1, 1, 1]),
        (4, False, [0, 0, 0, 0, 1]),
    ],
)
def test_what_may_follow(step, answered, allowed):
    mask = Constraints(5).allowed(observed(step=step, answered=answered))
    assert mask.int().tolist() == [allowed]


def test_blocks_that_are_left_out_are_never_chosen():
    constraints = Constraints(5, without=(DEBATE, REFINE))
    assert constraints.allowed(observed()).int().tolist() == [[1, 1, 0, 0, 1]]
    navigator = Navigator(Prefers(0.0, 1.0, 9.0, 8.0, -1.0), constraints)
    assert navigator.act(observed(2)).tolist() == [1, 1]
    for wrong in (TERMINATE, -1):
        with pytest.raises(InputError, match="left out"):
            Constraints(5, without=(wrong,))


def test_it_takes_the_best_allowed_block_and_with_epsilon_any_of_them():
    navigator = Navigator(Prefers(1.0, 2.0, 3.0, 4.0, 0.0), Constraints(5))
    assert navigator.act(observed(step=1)).tolist() == [REFINE]
    assert navigator.act(observed(step=0)).tolist() == [DEBATE]
    assert navigator.act(observed(step=4)).tolist() == [TERMINATE]
    count, generator = 6000, torch.Generator().manual_seed(0)
    drawn = navigator.act(observed(count, step=0), 0.5, generator).bincount(minlength=5) / count
    assert drawn[REFINE] == 0
    expected = torch.tensor([0.125, 0.125, 0.625, 0.0, 0.125])
    torch.testing.assert_close(drawn, expected, atol=0.05, rtol=0)  # 8 standard deviations


def test_a_reasoning_ends_with_terminate_after_so_many_actions():
    world = SyntheticReasoning(max_actions=4)
    always = Navigator(Prefers(1.0, 0.0, 0.0, 0.0, -1.0), Constraints(4))
    rewards, actions = played(always, world, 20, torch.Generator().manual_seed(1))
    assert actions.tolist() == [[0, 0, 0, TERMINATE]] * 20
    at_once = Navigator(Prefers(0.0, 0.0, 0.0, 0.0, 1.0), Constraints(4))
    _, actions = played(at_once, world, 3, torch.Generator().manual_seed(1))
    assert actions.tolist() == [[TERMINATE]] * 3
    assert rewards.shape == (20,)


def test_actions_of_reasonings_that_ended_are_minus_one_and_their_rewards_stop():
    class Mixed:
        def act(self, seen):
            return torch.where((seen.step == 1) & (torch.arange(4) < 2), TERMINATE, 0)

    world = SyntheticReasoning(max_actions=4)
    rewards, actions = played(Mixed(), world, 4, torch.Generator().manual_seed(1))
    assert actions[:2].tolist() == [[0, TERMINATE, -1, -1]] * 2
    assert actions[2:].tolist() == [[0, 0, 0, 0]] * 2  # the world terminates the last
    torch.testing.assert_close(rewards, world.progress() + world.solved().float())


def test_wrong_grades_and_settings_are_refused(network):
    navigator = Navigator(network, Constraints())
    with pytest.raises(ShapeError, match="grades"):
        navigator.act(Observation(torch.ones(2, 5), torch.zeros(2), torch.zeros(2).bool()))
    with pytest.raises(InputError, match="epsilon"):
        navigator.act(observed(), 1.5)
    with pytest.raises(InputError, match="max_actions"):
        Constraints(0)
    assert Constraints() == Constraints(8, ())
