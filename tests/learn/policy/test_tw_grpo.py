"""TW-GRPO: the worked divergence, the whole-vocabulary definition, and GRPO without weights."""

import math

import pytest
import torch

import tokenry.learn.policy.group_divergence as module
from policy_variants import assert_gradient, assert_same, prepared, random_tokens, rollouts, step
from tokenry.core.errors import InputError, ShapeError
from tokenry.core.linear_head import LinearHead
from tokenry.learn.policy.group_divergence import divergence_weights, group_divergence
from tokenry.learn.policy.presets import DAPO
from tokenry.learn.policy.tw_grpo import TWGRPO

T = torch.tensor


def states_of(batch, seed=0, width=5, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(*batch.shape, width, generator=generator, dtype=torch.float64)


def a_head(vocabulary=9, width=5):
    generator = torch.Generator().manual_seed(3)
    return LinearHead(torch.randn(vocabulary, width, generator=generator, dtype=torch.float64))


def by_hand(hidden, head, batch, alpha):
    """D and w from all distributions at once: group by group, position by position."""
    logp = (hidden @ head.weight.T).log_softmax(-1)
    size = len(head.weight)
    divergence, weights = torch.zeros(batch.shape).double(), torch.zeros(batch.shape).double()
    for number in set(batch.group.tolist()):
        rows = (batch.group == number).nonzero()[:, 0].tolist()
        own = {row: logp[row][batch.target[row]] for row in rows}
        longest = max(len(each) for each in own.values())
        found = []
        for t in range(longest):
            uniform = torch.full((size,), -math.log(size)).double()
            here = torch.stack([own[r][t] if t < len(own[r]) else uniform for r in rows])
            gap = (here.mean(0) - here).clamp(-11, 11)
            found.append(float((gap.exp() - gap - 1).sum(-1).mean()))
        least, most = min(found), max(found)
        for row in rows:
            n = len(own[row])
            divergence[row, batch.target[row]] = T(found[:n]).double()
            scaled = [(d - least) / (most - least + 1e-8) for d in found[:n]]
            weights[row, batch.target[row]] = T([1 + (alpha - 1) * s for s in scaled]).double()
    return divergence, weights


def test_the_worked_divergence():
    batch = rollouts([2, 2], [1.0, 0.0], [0, 0])
    hidden = torch.zeros(2, 3, 2, dtype=torch.float64)
    hidden[:, 1] = math.log(0.5)
    hidden[0, 2], hidden[1, 2] = T([0.9, 0.1]).log(), T([0.1, 0.9]).log()
    head = LinearHead(torch.eye(2, dtype=torch.float64))
    found = group_divergence(hidden, head, batch.target, T([0, 0]))
    assert found[0, 1:].tolist() == pytest.approx([0, 4 / 3], abs=1e-6)
    weights = divergence_weights(hidden, head, batch.target, T([0, 0]))
    assert weights.tolist()[0] == pytest.approx([0, 1, 1.7], abs=1e-6)
    assert weights[1].tolist() == weights[0].tolist()
    assert TWGRPO().alpha == 1.7


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("tile", [1, 8, 1024])
@pytest.mark.parametrize("scale", [1.0, 20.0])
def test_in_pieces_it_is_the_whole_vocabularys(monkeypatch, side, tile, scale):
    """Groups of unequal lengths, interleaved; gaps beyond 11 nats at the larger scale."""
    monkeypatch.setattr(module, "TILE_TOKENS", tile)
    monkeypatch.setattr("tokenry.core.tiles.TILE_VOCABULARY", 4)
    batch = rollouts(side=side)
    hidden, head = states_of(batch, scale=scale), a_head()
    divergence, weights = by_hand(hidden, head, batch, 1.4)
    found = group_divergence(hidden, head, batch.target, batch.group)
    torch.testing.assert_close(found, divergence)
    found = divergence_weights(hidden, head, batch.target, batch.group, 1.4)
    torch.testing.assert_close(found, weights)
    assert (found[~batch.target] == 0).all()
    assert 1 <= found[batch.target].min() <= found.max() <= 1.4


def test_the_order_of_rows_and_other_groups_do_not_matter():
    batch, head = rollouts(), a_head()
    hidden = states_of(batch)
    weights = divergence_weights(hidden, head, batch.target, batch.group)
    order = T([3, 5, 0, 4, 1, 2])
    shuffled = divergence_weights(hidden[order], head, batch.target[order], batch.group[order])
    torch.testing.assert_close(shuffled, weights[order])
    rows = batch.group == 4
    alone = divergence_weights(hidden[rows], head, batch.target[rows], batch.group[rows])
    torch.testing.assert_close(alone, weights[rows])


def test_completions_that_agree_and_groups_of_one_weigh_1():
    batch = rollouts([3, 3, 4], [1.0, 0.0, 1.0], [0, 0, 1])
    hidden = states_of(batch)
    hidden[1] = hidden[0]
    weights = divergence_weights(hidden, a_head(), batch.target, batch.group)
    torch.testing.assert_close(weights, batch.target.double())


def test_the_largest_tensor_is_a_tile_of_positions_and_vocabulary(monkeypatch):
    """Never [group, length, vocabulary]."""
    seen = []
    own = module.over_group
    monkeypatch.setattr(module, "over_group", lambda v, g: seen.append(v.numel()) or own(v, g))
    monkeypatch.setattr(module, "TILE_TOKENS", 8)
    monkeypatch.setattr("tokenry.core.tiles.TILE_VOCABULARY", 4)
    batch = rollouts([50] * 4, [1.0, 0.0, 1.0, 0.0], [0] * 4)
    group_divergence(states_of(batch), a_head(100), batch.target, batch.group)
    assert max(seen) == 4 * 50  # D itself, [B, L]; a tile of it all has 8 * 4 numbers


def test_without_weights_it_is_dapo_and_with_them_the_definition():
    batch = rollouts()
    hidden, head = states_of(batch), a_head()
    fields = {"hidden": hidden, "head": head}
    assert_same(TWGRPO(alpha=1.0), DAPO(dynamic=False), **fields)
    goal = TWGRPO()
    ready = prepared(goal, batch, **fields)
    weights, advantage = by_hand(hidden, head, batch, 1.7)[1], ready.column("advantage").double()

    def loss(x):
        kept = torch.minimum(x.exp() * advantage, x.exp().clamp(0.8, 1.28) * advantage)
        return -(weights * kept).sum() / 22

    assert_gradient(loss, goal, ready, random_tokens(batch, 4, 0.3))


def test_equal_rewards_learn_nothing_and_stale_ratios_stay_finite():
    batch = rollouts(rewards=[0.95] * 6)
    ready = prepared(TWGRPO(), batch, hidden=states_of(batch, scale=1e3), head=a_head())
    assert (ready.column("advantage") == 0).all()
    assert ready.column("focus").isfinite().all()
    loss, gradient, _ = step(TWGRPO(), ready, torch.full(batch.shape, 1e3).double())
    assert loss == 0
    assert (gradient == 0).all()


def test_bad_input_is_refused():
    batch = rollouts()
    with pytest.raises(ShapeError, match="hidden"):
        group_divergence(states_of(batch)[:, 1:], a_head(), batch.target, batch.group)
    for change in ({"alpha": 0.9}, {"clip": 0.0}):
        with pytest.raises(InputError):
            TWGRPO(**change)
