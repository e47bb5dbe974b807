"""SPO: exact values give the exact gradient, and only unsure tokens of completions learn."""

import pytest
import torch

from policy_variants import assert_gradient, on, prepared, random_tokens, rollouts, step
from tokenry.core.batch import TokenBatch
from tokenry.core.errors import InputError
from tokenry.lab.expected_updates import policy_gradient
from tokenry.learn.policy.segments import whitened
from tokenry.learn.policy.spo import SPO
from tokenry.tasks.worlds.enumerable import EnumerableWorld

T = torch.tensor
PLAIN = {"beta": 0.0, "whiten": False}
# two completions of a prompt, a judge each of the states: the prompt, behind 2 tokens of the first
LENGTHS, REWARDS, STATE = (4, 3, 2, 4), (1.0, 0.5, 0.25, 0.75), (-1, -1, 0, 1)
OLD = on(
    rollouts(LENGTHS, REWARDS, [0] * 4),
    [[0.5, 0.95, 0.3, 0.89], [0.9, 0.2, 0.91], [0.1] * 2, [0.1] * 4],
)


def judged(state=STATE, rewards=REWARDS):
    batch = rollouts(LENGTHS, rewards, [0] * 4)
    boundary = torch.full(batch.shape, -1)
    boundary[:2, 0] = 0
    boundary[0, 2] = 1
    return batch.with_columns(state=T(state), boundary=boundary)


def ready(goal, batch=None):
    return prepared(goal, judged() if batch is None else batch, OLD.log())


def test_advantages_of_a_chain_and_who_learns_from_it():
    found = ready(SPO(**PLAIN))
    assert len(found.ids) == 2  # judges are for the values alone
    wanted = on(rollouts(LENGTHS[:2], [0, 0], [0, 0]), [[0.5, 0.5, 0.25, 0.25], [0.25] * 3])
    kept = T([[0, 1, 0, 1, 1], [0, 0, 1, 0, 0]]).bool()  # p < 0.9, strictly
    assert torch.equal(found.target, kept)
    torch.testing.assert_close(found.column("advantage").double()[kept], wanted[kept])
    white = ready(SPO(beta=0.0))
    torch.testing.assert_close(
        white.column("advantage")[kept], whitened(wanted, kept)[kept].float()
    )
    assert white.column("advantage")[kept].mean().abs() < 1e-6


def test_the_loss_is_the_mean_over_the_unsure_tokens():
    goal = SPO(**PLAIN)
    start = ready(goal)
    advantage, mask = start.column("advantage").double(), start.target

    def by_hand(x):
        u = x.clamp(-10, 10).exp()
        kept = torch.minimum(u * advantage, u.clamp(0.8, 1.2) * advantage)
        return -(kept * mask).sum() / 4

    assert_gradient(by_hand, goal, start, random_tokens(start, 3, 0.4))
    gradient = step(goal, start, random_tokens(start, 3, 0.4))[1]
    assert (gradient[~mask] == 0).all()
    far = step(goal, start, torch.where(mask, -30.0, 0.0).double())
    assert far[0].item() == pytest.approx(-(advantage * mask).sum().item() / 4 * 4.539993e-05)


def test_without_a_boundary_but_the_prompts_it_is_reward_less_value():
    batch = judged()
    batch = batch.with_columns(boundary=torch.where(batch.column("boundary") == 1, -1, 0))
    batch = batch.with_columns(
        boundary=torch.where(torch.arange(batch.shape[1]) == 0, batch.column("boundary"), -1)
    )
    found = ready(SPO(**PLAIN), batch)
    assert found.column("advantage")[found.target].tolist() == [0.75] * 3 + [0.25]


def test_a_state_whose_judges_failed_cuts_nothing():
    batch = judged().select([0, 1, 2])
    found = prepared(SPO(**PLAIN), batch, OLD[:3].log())
    assert found.column("advantage")[found.target].tolist() == [0.75] * 3 + [0.25]


def test_when_all_tokens_are_sure_nothing_is_learned():
    batch = judged()
    for goal in (SPO(beta=0.0), SPO(**PLAIN)):
        found = prepared(goal, batch, torch.zeros(batch.shape).double())
        loss, gradient, _ = step(goal, found, torch.zeros(found.shape).double())
        assert loss == 0
        assert (gradient == 0).all()


@pytest.mark.parametrize("seed", [0, 1])
def test_exact_values_of_every_state_give_the_exact_policy_gradient(seed):
    """Summed over all texts of a small world, segments of one token, rho = 1."""
    world = EnumerableWorld(3, 3, seed)
    table = world.table(seed + 5)
    chance = world.probability(table).detach()
    goal, total = SPO(threshold=1.0, **PLAIN), torch.zeros_like(table)
    for number, text in enumerate(world.texts):
        states = [text[:n] for n in range(len(text))]
        judges, values = [], []
        for state in states:
            below = [k for k, t in enumerate(world.texts) if t[: len(state)] == state]
            judges.append(below[0])
            values.append((chance[below] * world.reward[below]).sum() / chance[below].sum())
        rows = [number, *judges]
        boundary = torch.full((len(rows), 4), -1)
        boundary[0, : len(states)] = torch.arange(len(states))
        batch = world.batch(rows).with_columns(
            reward=torch.stack([world.reward[number], *values]),
            state=T([-1, *range(len(states))]),
            boundary=boundary,
        )
        start = goal.prepare(batch, world.scores(table.detach(), rows))
        loss = goal(start, world.scores(table, [number])).loss * len(text)  # of the token mean
        total -= chance[number] * torch.autograd.grad(loss, table)[0]
    torch.testing.assert_close(total, policy_gradient(world, table))


def test_a_tree_counts_every_segment_once_and_leaves_out_those_without_advantage():
    batch = rollouts([3] * 4, [1.0, 0.0, 1.0, 1.0], [0] * 4)
    node = T([[1, 2, 2], [1, 3, 3], [4, 5, 5], [4, 6, 6]])
    batch = batch.with_columns(node=torch.nn.functional.pad(node, (1, 0), value=-1))
    old = torch.where(batch.target, 0.5, 1.0).double().log()
    old[0, 3] = 0.0  # sure
    found = prepared(SPO("tree", beta=0.0), batch, old)
    learnt = [[0, 1, 1, 0], [0, 0, 1, 1], [0, 1, 0, 0]]
    assert found.target.int().tolist() == learnt
    advantage = found.column("advantage")
    assert advantage[found.target].tolist() == [-0.25, 0.5, -0.5, -0.5, 0.25]
    scaled = prepared(SPO("tree", beta=0.0, normalize=True), batch, old).column("advantage")
    torch.testing.assert_close(scaled[found.target], T([-1.0, 1.0, -1.0, -1.0, 1.0]))


def test_the_reference_pulls_with_a_small_weight():
    assert SPO().beta == 1e-4
    assert (SPO().threshold, SPO().clip, SPO().form) == (0.9, 0.2, "chain")
    assert "reference.logprob" in SPO().rollout_needs
    assert "reference.logprob" not in SPO(beta=0.0).rollout_needs


def test_rollouts_of_another_source_and_bad_settings_are_refused():
    plain: TokenBatch = rollouts(LENGTHS, REWARDS, [0] * 4)
    with pytest.raises(InputError, match='source="chain"'):
        prepared(SPO(beta=0.0), plain)
    with pytest.raises(InputError, match='source="tree"'):
        prepared(SPO("tree", beta=0.0), plain)
    for wrong in ({"form": "bush"}, {"threshold": 0.0}, {"clip": 0.0}, {"beta": -1.0}):
        with pytest.raises(InputError):
            SPO(**wrong)
