"""Token Hidden Reward: the exact identity with the output matrix's gradient, and its tilts."""

import pytest
import torch

import tokenry.learn.policy.token_influence as module
from policy_variants import assert_gradient, assert_same, prepared, random_tokens, rollouts, step
from tokenry.core.errors import InputError, ShapeError
from tokenry.core.linear_head import LinearHead
from tokenry.learn.policy.groups import group_advantage
from tokenry.learn.policy.presets import GRPO
from tokenry.learn.policy.thr import THR, largest_share
from tokenry.learn.policy.token_influence import token_influence

T = torch.tensor
REWARDS = (1.0, 0.0, 0.0, 1.0, 1.0, 0.0)  # groups 4: rows 0, 2, 4; 9: rows 1, 3, 5


def numbers(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


BATCH = rollouts(rewards=REWARDS)
HIDDEN = numbers(*BATCH.shape, 3)
HEAD = LinearHead(0.5 * numbers(12, 3, seed=1), 0.2 * numbers(12, seed=2))
ADVANTAGE = group_advantage(BATCH.column("reward"), BATCH.group)
FIELDS = {"hidden": HIDDEN, "head": HEAD}


def influence(batch=BATCH, hidden=HIDDEN, head=HEAD, advantage=ADVANTAGE):
    return token_influence(hidden, head, batch.ids, batch.target, advantage > 0, batch.group)


def by_pairs(rows):
    """The quadruple sum over pairs of tokens, of one group."""
    errors = -(HIDDEN @ HEAD.weight.T + HEAD.bias).softmax(-1)
    errors.scatter_add_(-1, BATCH.ids[..., None], torch.ones_like(HIDDEN[..., :1]))
    found = torch.zeros(BATCH.shape).double()
    for j in rows:
        for k in BATCH.target[j].nonzero()[:, 0].tolist():
            for i in (row for row in rows if ADVANTAGE[row] > 0):
                for m in BATCH.target[i].nonzero()[:, 0].tolist():
                    found[j, k] += (errors[i, m] @ errors[j, k]) * (HIDDEN[i, m] @ HIDDEN[j, k])
    return found


@pytest.mark.parametrize("cells", [1, 60, 2**20])
def test_in_tiles_it_is_the_sum_over_pairs(monkeypatch, cells):
    monkeypatch.setattr(module, "CELLS", cells)
    torch.testing.assert_close(influence(), by_pairs([0, 2, 4]) + by_pairs([1, 3, 5]))


@pytest.mark.parametrize(("softcap", "temperature"), [(None, 1.0), (None, 0.6), (1.5, 1.0)])
def test_its_sum_is_the_inner_product_of_the_output_matrixs_gradients(softcap, temperature):
    """Of sum_P log pi, and of the policy gradient: to 1e-12, and to first order in a step."""
    rows = [0, 2, 4]
    head = LinearHead(HEAD.weight, HEAD.bias, softcap, temperature)

    def logprob(weight, row):
        mask = BATCH.target[row]
        logits = head.shaped(HIDDEN[row][mask] @ weight.T + HEAD.bias)
        return logits.log_softmax(-1).gather(-1, BATCH.ids[row][mask][:, None]).sum()

    weight = HEAD.weight.clone().requires_grad_()
    right = sum(logprob(weight, row) for row in rows if ADVANTAGE[row] > 0)
    goal = sum(ADVANTAGE[row] * logprob(weight, row) for row in rows)
    one, other = (torch.autograd.grad(x, weight, retain_graph=True)[0] for x in (right, goal))
    scores = ADVANTAGE[:, None] * influence(head=head)
    assert scores[rows].sum().item() == pytest.approx((one * other).sum().item(), abs=1e-12)
    eta = 1e-6
    moved = sum(logprob(HEAD.weight + eta * other, row) for row in rows if ADVANTAGE[row] > 0)
    change = (moved - right).item() / eta
    assert change == pytest.approx(scores[rows].sum().item(), rel=1e-3)


def test_states_of_another_scale_rank_the_tokens_alike():
    base = by_pairs([0, 2, 4])
    head = LinearHead(HEAD.weight / 3, HEAD.bias)
    found = influence(hidden=3 * HIDDEN, head=head)[[0, 2, 4]]
    torch.testing.assert_close(found, 9 * base[[0, 2, 4]])


def test_a_bad_completion_that_equals_a_good_one_is_its_mirror():
    batch = rollouts([3, 3, 2], [1.0, 0.0, 0.0], [0] * 3, [[1, 2, 3], [1, 2, 3], [4, 5]])
    hidden = numbers(*batch.shape, 3, seed=4)
    hidden[1] = hidden[0]
    advantage = group_advantage(batch.column("reward"), batch.group)
    scores = advantage[:, None] * influence(batch, hidden, advantage=advantage)
    share = (advantage[1] / advantage[0]).abs()
    torch.testing.assert_close(scores[1], -share * scores[0])


def tilted(goal):
    return prepared(goal, BATCH, **FIELDS).column("advantage").double()


@pytest.mark.parametrize("p", [0.0, 0.1, -0.5])
@pytest.mark.parametrize("keep_small", [False, True])
def test_the_worked_tilt_and_threshold(p, keep_small):
    """The threshold by hand: the least mean influence of a right completion on itself and P."""
    found, s = tilted(THR(p=p, threshold=0.8, keep_small=keep_small)), influence()
    seen = set()
    for rows in ([0, 2, 4], [1, 3, 5]):
        good = [row for row in rows if REWARDS[row]]
        tau = 0.8 * min(s[row][BATCH.target[row]].mean().item() for row in good)
        for row in rows:
            a = float(ADVANTAGE[row])
            for t in BATCH.target[row].nonzero()[:, 0].tolist():
                x = s[row, t].item()
                tilt = 1 + p if a * x > 0 else 1 - p
                seen.add(abs(x) > tau)
                wanted = tilt * a if abs(x) > tau else a if keep_small else 0.0
                assert found[row, t].item() == pytest.approx(wanted, abs=1e-6)
    assert seen == {True, False}
    assert (found * ADVANTAGE[:, None] >= 0).all()  # no sign is turned
    assert (THR().p, THR().threshold) == (0.1, 1.0)


def test_the_largest_share_of_each_group_is_kept():
    values = T([[9.0, 0.1, 0.5], [9.0, 0.4, 0.2], [9.0, 0.0, 0.7]])
    mask = T([[0, 1, 1], [0, 1, 1], [0, 0, 1]]).bool()
    kept = largest_share(values, mask, T([1, 1, 2]), 0.5)
    assert kept.tolist() == [[False, False, True], [False, True, False], [False, False, True]]
    found = tilted(THR(keep_ratio=0.25))
    counts = [int((found[rows] != 0).sum()) for rows in ([0, 2, 4], [1, 3, 5])]
    assert counts == [3, 3]  # of 12 and of 10 tokens


def test_nthr_spares_only_bad_tokens_that_help_the_good_ones():
    found, s = tilted(THR(form="nthr", threshold=0.1)), influence()
    changed = torch.zeros(BATCH.shape).bool()
    for rows, share in (([0, 2, 4], 2 / 3), ([1, 3, 5], 1 / 3)):
        good = [row for row in rows if REWARDS[row]]
        tau = 0.1 * min(s[row][BATCH.target[row]].mean().item() for row in good)
        for row in set(rows) - set(good):
            changed[row] = BATCH.target[row] & (s[row] > tau)
            eta = 2 * abs(0.5 - share)
            wanted = torch.where(changed[row], eta * ADVANTAGE[row], ADVANTAGE[row])
            mask = BATCH.target[row]
            torch.testing.assert_close(found[row][mask], wanted[mask], atol=1e-6, rtol=0)
    same = BATCH.target & ~changed
    wanted = ADVANTAGE[:, None].expand(BATCH.shape)[same]
    torch.testing.assert_close(found[same], wanted, atol=1e-6, rtol=0)
    assert changed.any()


def test_without_tilt_and_threshold_it_is_grpo():
    assert_same(THR(p=0.0, keep_ratio=1.0), GRPO(), batch=BATCH, **FIELDS)
    assert_same(THR(p=0.0, keep_small=True), GRPO(), batch=BATCH, **FIELDS)
    assert_same(THR(p=0.0, threshold=-1.0), GRPO(), batch=BATCH, **FIELDS)
    goal = THR(p=0.4, threshold=0.5)
    ready = prepared(goal, BATCH, **FIELDS)
    advantage = ready.column("advantage").double()

    def by_hand(x):
        kept = torch.minimum(x.exp() * advantage, x.exp().clamp(0.8, 1.2) * advantage)
        return -(kept * BATCH.target).sum(-1).div(BATCH.target.sum(-1)).mean()

    assert_gradient(by_hand, goal, ready, random_tokens(BATCH, 4, 0.3))


def test_padding_and_the_order_of_rows_do_not_matter():
    order = T([3, 5, 0, 4, 1, 2])
    shuffled = influence(BATCH.select(order), HIDDEN[order], advantage=ADVANTAGE[order])
    torch.testing.assert_close(shuffled, influence()[order])
    spoiled = torch.where(BATCH.target[..., None], HIDDEN, torch.nan)
    torch.testing.assert_close(influence(hidden=spoiled), influence())


def test_groups_that_are_all_right_or_all_wrong_have_no_scores_and_no_advantage():
    batch = rollouts([2, 3, 4, 1], [1.0, 1.0, 0.0, 1.0], [0, 0, 1, 2])
    hidden = numbers(*batch.shape, 3)
    ready = prepared(THR(), batch, hidden=hidden, head=HEAD)
    assert (ready.column("advantage") == 0).all()
    loss, gradient, _ = step(THR(), ready, torch.full(batch.shape, 1e3).double())
    assert loss == 0
    assert (gradient == 0).all()


def test_bad_input_is_refused():
    with pytest.raises(ShapeError, match="hidden"):
        influence(hidden=HIDDEN[:, 1:])
    for change in ({"p": 1.0}, {"keep_ratio": 0.0}, {"form": "other"}, {"threshold": float("nan")}):
        with pytest.raises(InputError):
            THR(**change)
