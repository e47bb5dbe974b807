"""cDPO against its paper: which gradient each token gets, and the two reductions."""

import math

import pytest
import torch
from torch.nn.functional import logsigmoid

from tokenry.core.batch import TokenBatch
from tokenry.core.errors import InputError, UnknownNameError
from tokenry.core.linear_head import LinearHead
from tokenry.core.scores import Scores
from tokenry.learn.objective import objective
from tokenry.learn.preference.cdpo import CDPO, CriticalWeight, positionwise_loss
from tokenry.learn.preference.dpo import DPO
from tokenry.learn.preference.weighted import PreferenceObjective
from tokenry.measure.probes.critical_tokens import contrastive_estimation

V = 5
LENGTHS = (3, 2, 4, 1)  # completion tokens of chosen 0, 1 and rejected 0, 1


def make_batch(seed=0, side="right", extra=0):
    generator = torch.Generator().manual_seed(seed)
    rows, target = [], []
    for length in LENGTHS:
        rows.append(torch.randint(V, (2 + length,), generator=generator).tolist())
        target.append([False, False] + [True] * length)
    if extra:
        rows.append([0] * (6 + extra))
        target.append([False] * (6 + extra))
    group = [0, 1, 0, 1, 9][: len(rows)]
    batch = TokenBatch.from_ids(rows, target, group=group, padding_side=side)
    return batch.select(slice(0, 4))


def make_logits(batch, seed, scale=1.0):
    """[4, T, V] float64, which depend on a token's place in its row and not on its padding."""
    generator = torch.Generator().manual_seed(seed)
    table = torch.randn(4, 12, V, generator=generator, dtype=torch.float64) * scale
    place = (batch.attention.cumsum(-1) - 1).clamp_min(0)
    return table.gather(1, place[..., None].expand(-1, -1, V))


def of_logits(batch, logits):
    """Scores with log-probabilities, and with the logits as hidden states of an identity head."""
    logprob = logits.log_softmax(-1).gather(-1, batch.ids[..., None])[..., 0]
    return Scores(
        batch.ids,
        batch.target,
        logprob=torch.where(batch.target, logprob, 0.0),
        hidden=logits,
        head=LinearHead(torch.eye(V, dtype=logits.dtype)),
    )


def run(objective, batch, policy, seed=0, scale=1.0, **changed):
    names = ("reference", "positive", "negative")
    models = {
        name: of_logits(batch, make_logits(batch, seed + 10 * i, scale))
        for i, name in enumerate(names, start=1)
    } | changed
    return objective(batch, of_logits(batch, policy), models.pop("reference"), **models)


def gradient_of(objective, batch, policy, **changed):
    leaf = policy.clone().requires_grad_()
    loss = run(objective, batch, leaf, **changed).loss
    return loss.detach(), *torch.autograd.grad(loss, leaf)


def certain(batch, ids):
    """A model that gives the tokens `ids` all probability."""
    logits = torch.full((*ids.shape, V), -1e4, dtype=torch.float64)
    return of_logits(batch, logits.scatter(-1, ids[..., None], 0.0))


def test_is_dpo_when_the_contrast_gives_no_rejected_token_any_probability():
    batch = make_batch()
    policy = make_logits(batch, 1)
    never = certain(batch, (batch.ids + 1) % V)  # s_t = 0
    found = gradient_of(CDPO(), batch, policy, positive=never, negative=never)
    leaf = policy.clone().requires_grad_()
    plain = DPO()(batch, of_logits(batch, leaf), of_logits(batch, make_logits(batch, 10))).loss
    torch.testing.assert_close(found, (plain.detach(), *torch.autograd.grad(plain, leaf)))


def test_a_rejected_token_with_score_one_gets_no_gradient():
    batch = make_batch()
    sure = certain(batch, batch.ids)
    _, gradient = gradient_of(CDPO(), batch, make_logits(batch, 1), positive=sure, negative=sure)
    assert (gradient[2:] == 0).all()
    assert gradient[:2].abs().sum() > 0


def test_token_gradients_are_dpos_times_one_minus_s_on_rejected_tokens():
    batch = make_batch()
    policy = of_logits(batch, make_logits(batch, 1))
    positive, negative = (of_logits(batch, make_logits(batch, seed)) for seed in (20, 30))
    s = contrastive_estimation(positive, negative, 1.0)
    for weigh_chosen in (False, True):
        objective = CDPO(beta=0.6, weigh_chosen=weigh_chosen)
        leaf = policy.logprob.clone().requires_grad_()
        result = objective(
            batch,
            Scores(batch.ids, batch.target, logprob=leaf),
            of_logits(batch, make_logits(batch, 10)),
            positive=positive,
            negative=negative,
        )
        (gradient,) = torch.autograd.grad(result.loss, leaf)
        blame = torch.sigmoid(-result.metrics["rewards/margin"]).repeat(2)[:, None] * 0.6 / 2
        chosen = -(s[:2] if weigh_chosen else torch.ones_like(s[:2]))
        expected = blame * torch.cat([chosen, 1 - s[2:]])
        torch.testing.assert_close(gradient, torch.where(batch.target, expected, 0.0))


def test_the_weights_carry_no_gradient_to_the_two_models():
    batch = make_batch()
    leaves = [make_logits(batch, seed).requires_grad_() for seed in (20, 30)]
    weight = CriticalWeight()(
        batch,
        None,
        None,
        positive=of_logits(batch, leaves[0]),
        negative=of_logits(batch, leaves[1]),
    )
    assert not weight.requires_grad
    assert ((weight >= 0) & (weight <= 1)).all()


def test_the_positionwise_loss_by_hand():
    """Chosen rewards (1, 2, 3) against rejected (-1); a second pair of lengths 1 and 2."""
    batch = TokenBatch.from_ids(
        [[0, 0, 1, 1, 1], [0, 1], [0, 0, 0, 1], [0, 0, 1, 1]],
        [[False] * 2 + [True] * 3, [False, True], [False] * 3 + [True], [False] * 2 + [True] * 2],
        group=[0, 1, 0, 1],
    )
    rewards = torch.zeros(batch.shape, dtype=torch.float64)
    rewards[0, 2:5] = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    rewards[1, 1], rewards[2, 3] = 0.5, -1.0
    rewards[3, 2:4] = torch.tensor([0.25, -4.0], dtype=torch.float64)
    expected = [
        -logsigmoid(torch.tensor([2.0, 2.0, 3.0], dtype=torch.float64)).mean(),
        -logsigmoid(torch.tensor([0.25, 4.0], dtype=torch.float64)).mean(),
    ]
    torch.testing.assert_close(positionwise_loss(batch, rewards), torch.stack(expected))


def test_of_one_token_on_each_side_both_reductions_are_the_same():
    batch = TokenBatch.from_ids([[0, 1], [0, 2]], group=[0, 0])
    logits = [
        torch.randn(2, 2, V, generator=torch.Generator().manual_seed(seed)) for seed in range(4)
    ]
    models = dict(
        zip(("positive", "negative"), (of_logits(batch, z) for z in logits[:2]), strict=True)
    )
    found = [
        CDPO(reduction=reduction)(
            batch, of_logits(batch, logits[2]), of_logits(batch, logits[3]), **models
        )
        for reduction in ("sequence", "token")
    ]
    torch.testing.assert_close(found[0].loss, found[1].loss)


@pytest.mark.parametrize("reduction", ["sequence", "token"])
def test_padding_changes_nothing(reduction):
    objective = CDPO(reduction=reduction)

    def loss(**how):
        batch = make_batch(**how)
        return run(objective, batch, make_logits(batch, 1)).loss

    assert float(loss()) != pytest.approx(math.log(2), abs=1e-3)
    torch.testing.assert_close(loss(side="left"), loss())
    torch.testing.assert_close(loss(side="left", extra=3), loss())
    torch.testing.assert_close(loss(extra=3), loss())


@pytest.mark.parametrize("reduction", ["sequence", "token"])
def test_at_the_reference_the_loss_is_ln_2_and_the_metric_loss_averages_to_it(reduction):
    batch = make_batch()
    same = make_logits(batch, 10)
    result = run(CDPO(reduction=reduction), batch, same)
    assert float(result.loss) == pytest.approx(math.log(2))
    other = run(CDPO(reduction=reduction), batch, make_logits(batch, 1))
    torch.testing.assert_close(other.metrics["loss"].mean(), other.loss)


@pytest.mark.parametrize("reduction", ["sequence", "token"])
def test_logits_of_1e4_and_garbage_outside_the_target_stay_finite(reduction):
    batch = make_batch()
    leaf = make_logits(batch, 1, 1e4).float().requires_grad_()
    frozen = {
        name: of_logits(
            batch,
            torch.where(batch.target[..., None], make_logits(batch, seed, 1e4).float(), math.nan),
        )
        for name, seed in (("positive", 2), ("negative", 3))
    }
    loss = run(CDPO(reduction=reduction), batch, leaf, scale=1e4, **frozen).loss
    loss.backward()
    assert loss.isfinite()
    assert leaf.grad.isfinite().all()


def test_its_weight_is_a_part_of_free_compositions():
    batch = make_batch()
    composed = PreferenceObjective(beta=0.1, weight=CriticalWeight())
    assert {"positive.hidden", "negative.hidden"} <= set(composed.needs)
    policy = make_logits(batch, 1)
    torch.testing.assert_close(run(composed, batch, policy).loss, run(CDPO(), batch, policy).loss)


def test_is_filed_under_its_paper_and_refuses_what_it_cannot_do():
    assert objective["cdpo"] is CDPO
    assert {entry.key: entry.paper for entry in objective}["cdpo"] == 74
    with pytest.raises(UnknownNameError, match="tokens"):
        CDPO(reduction="tokens")  # type: ignore[arg-type]
    batch = make_batch()
    with pytest.raises(InputError, match="negative"):
        run(CDPO(), batch, make_logits(batch, 1), negative=None)
