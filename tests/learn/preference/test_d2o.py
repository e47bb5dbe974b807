"""D2O against its definition: DPO as its limit, Jensen's bound, gradients, a categorical world."""

import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokenry.core.batch import TokenBatch
from tokenry.core.errors import InputError, ShapeError
from tokenry.core.scores import Scores
from tokenry.learn.objective import objective
from tokenry.learn.preference.d2o import D2O, d2o_loss, instructed
from tokenry.learn.preference.dpo import DPO, dpo_loss

RATIOS = st.lists(st.floats(-20, 20), min_size=1, max_size=6)


def case(blocks, prompts=2, length=3, seed=0):
    """A batch of `blocks` completions a prompt, and random log-probabilities of policy and
    reference."""
    generator = torch.Generator().manual_seed(seed)
    rows = blocks * prompts
    ids = torch.randint(5, (rows, 1 + length), generator=generator).tolist()
    batch = TokenBatch.from_ids(ids, group=[*range(prompts)] * blocks)
    own, other = (-torch.rand(batch.shape, generator=generator).double() for _ in range(2))
    return batch, own, other


def loss_of(objective, batch, own, other):
    scores = (Scores(batch.ids, batch.target, logprob=values) for values in (own, other))
    return objective(batch, *scores)


def test_one_anchor_that_is_the_chosen_answer_gives_dpo():
    batch, own, other = case(2)
    swapped = torch.tensor([2, 3, 0, 1])  # DPO's rows: chosen, then rejected
    dpo = loss_of(DPO(0.3), batch.select(swapped), own[swapped], other[swapped])
    ours = loss_of(D2O(alpha=0.3, beta=0.3, anchors=1), batch, own, other)
    torch.testing.assert_close(ours.loss, dpo.loss)
    for name in ("rewards/chosen", "rewards/rejected", "rewards/margin", "rewards/accuracy"):
        torch.testing.assert_close(ours.metrics[name], dpo.metrics[name])


def test_worked_example():
    loss = d2o_loss(torch.tensor([[0.2], [0.4]]), torch.tensor([-1.0]))
    assert float(loss) == pytest.approx(0.630258, abs=1e-6)
    assert float(loss) == pytest.approx(math.log1p(math.exp(-0.13)), abs=1e-6)


def test_at_the_reference_loss_and_gradients_are_known():
    batch, own, _ = case(4, prompts=1)
    leaf = own.clone().requires_grad_()
    result = loss_of(D2O(alpha=0.2, beta=0.3, anchors=3), batch, leaf, own)
    result.loss.backward()
    assert float(result.loss.detach()) == pytest.approx(math.log(2))
    torch.testing.assert_close(leaf.grad[0, 1:], torch.full((3,), 0.2 / 2).double())
    torch.testing.assert_close(leaf.grad[1:, 1:], torch.full((3, 3), -0.3 / (2 * 3)).double())
    assert (leaf.grad[:, 0] == 0).all()


@given(RATIOS, st.floats(-20, 20), st.floats(0.01, 1))
def test_at_most_the_mean_of_the_dpo_losses_against_single_anchors(anchors, negative, beta):
    ratios, other = torch.tensor(anchors).double()[:, None], torch.tensor([negative]).double()
    ours = float(d2o_loss(ratios, other, alpha=beta, beta=beta))
    single = float(torch.stack([dpo_loss(r, other, beta=beta) for r in ratios]).mean())
    assert ours <= single + 1e-12
    equal = ratios[:1].expand_as(ratios)
    assert float(d2o_loss(equal, other, alpha=beta, beta=beta)) == pytest.approx(
        float(dpo_loss(equal[0], other, beta=beta)[0])
    )


@given(RATIOS, st.floats(-20, 20), st.randoms())
def test_order_and_duplication_of_anchors_do_not_matter(anchors, negative, draw):
    other = torch.tensor([negative]).double()

    def loss(values):
        return float(d2o_loss(torch.tensor(values).double()[:, None], other))

    shuffled = draw.sample(anchors, len(anchors))
    assert loss(shuffled) == pytest.approx(loss(anchors))
    assert loss(anchors * 2) == pytest.approx(loss(anchors))


def test_without_alpha_only_the_anchors_count():
    batch, own, other = case(3)
    leaf = own.clone().requires_grad_()
    loss_of(D2O(alpha=0.0, anchors=2), batch, leaf, other).loss.backward()
    assert (leaf.grad[:2] == 0).all()
    assert (leaf.grad[2:, 1:] < 0).all()


def test_length_normalised_ratios_are_means():
    batch, own, other = case(2, length=4)
    sums = loss_of(D2O(anchors=1), batch, own, other).loss
    means = loss_of(D2O(0.4, 0.4, anchors=1, length_normalise=True), batch, own, other).loss
    torch.testing.assert_close(sums, means)


def test_keeps_the_odds_of_harmless_answers_where_gradient_ascent_does_not():
    """A categorical policy over 6 answers, 2 of them negative, trained to equal negative mass."""
    generator = torch.Generator().manual_seed(1)
    reference = torch.randn(6, generator=generator).double().log_softmax(-1)
    anchors = torch.multinomial(reference.exp(), 400, replacement=True, generator=generator)
    share = torch.bincount(anchors, minlength=6).double() / len(anchors)
    start = reference[4:].exp().sum()

    def train(loss_of_policy):
        logits = reference.clone().requires_grad_()
        for _ in range(4000):
            policy = logits.log_softmax(-1)
            if policy[4:].exp().sum() < 0.2 * start:
                break
            (gradient,) = torch.autograd.grad(loss_of_policy(policy), logits)
            logits = (logits - 0.1 * gradient).detach().requires_grad_()
        policy = logits.log_softmax(-1).detach()
        kept, wanted = policy[:4].log_softmax(-1), reference[:4].log_softmax(-1)
        drift = (wanted.exp() * (wanted - kept)).sum()
        return float(policy[4:].exp().sum() / start), float(drift)

    def d2o(policy):  # the anchors enter by their mean only
        anchor = (share * (policy - reference)).sum().expand(1, 2)
        return d2o_loss(anchor, (policy - reference)[4:], alpha=0.5, beta=1.0).mean()

    d2o_mass, d2o_drift = train(d2o)
    ascent_mass, ascent_drift = train(lambda policy: policy[4:].mean())
    assert d2o_mass < 0.2
    assert ascent_mass < 0.2
    assert d2o_drift < 0.5 * ascent_drift


def test_padding_nan_and_magnitude():
    batch, own, other = case(3)
    spoiled = torch.where(batch.target, own, torch.nan)
    torch.testing.assert_close(
        loss_of(D2O(anchors=2), batch, spoiled, other).loss,
        loss_of(D2O(anchors=2), batch, own, other).loss,
    )
    leaf = (own * 1e4).bfloat16().requires_grad_()
    loss = loss_of(D2O(anchors=2), batch, leaf, other).loss
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(leaf.grad).all()


def test_anchors_are_sampled_for_plain_rows_and_kept_if_given(tiny_tokenizer, tiny_llama_text):
    objective = D2O(anchors=3, max_new_tokens=5, instruction="be kind ")
    ids = tiny_tokenizer("the dog")["input_ids"]
    rows = [
        {"prompt": "the dog", "prompt_ids": ids, "rejected_ids": ids},
        {"prompt": "the dog", "prompt_ids": ids, "rejected_ids": ids}
        | {f"anchor_{n}_ids": [n] for n in range(3)},
    ]
    context = SimpleNamespace(tokenizer=tiny_tokenizer, model=tiny_llama_text, seed=0)
    found = objective.precompute(rows, context)
    assert objective.completions == ("rejected", "anchor_0", "anchor_1", "anchor_2")
    assert all(1 <= len(found[0][f"{side}_ids"]) <= 5 for side in objective.completions)
    assert [found[1][f"anchor_{n}_ids"] for n in range(3)] == [[0], [1], [2]]
    assert objective.precompute(rows, context) == found


def test_an_instruction_goes_behind_the_start_token(tiny_tokenizer):
    words = tiny_tokenizer("be kind ", add_special_tokens=False)["input_ids"]
    start = tiny_tokenizer.bos_token_id
    assert instructed([start, 9], "be kind ", tiny_tokenizer) == [start, *words, 9]
    assert instructed([9], "be kind ", tiny_tokenizer) == [*words, 9]


def test_what_is_no_d2o_batch_is_an_error():
    assert objective["d2o"] is D2O
    with pytest.raises(InputError, match=r"D2O\.anchors is 0"):
        D2O(anchors=0)
    batch, own, other = case(2)
    with pytest.raises(ShapeError, match="12 blocks"):
        loss_of(D2O(), batch, own, other)
    wrong = TokenBatch(batch.ids, batch.attention, batch.target, torch.tensor([0, 1, 1, 0]))
    with pytest.raises(ShapeError, match="order of prompts"):
        loss_of(D2O(anchors=1), wrong, own, other)
    with pytest.raises(ShapeError, match="anchors"):
        d2o_loss(torch.zeros(2, 3), torch.zeros(2))


def test_no_anchors_and_settings_out_of_range_are_errors():
    with pytest.raises(InputError, match="at least one anchor"):
        d2o_loss(torch.zeros(0, 2), torch.zeros(2))
    for wrong in ({"anchors": 0}, {"anchors": 1.5}, {"alpha": -1.0}, {"temperature": 0.0}):
        with pytest.raises(InputError, match=f"D2O.{next(iter(wrong))} is"):
            D2O(**wrong)
