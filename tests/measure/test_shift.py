"""Distribution shift: worked values, the models' own distributions, and indifference to padding."""

import math

import pytest
import torch

from conftest import build_llama
from tokenry.core.batch import TokenBatch
from tokenry.core.divergence import divergence
from tokenry.core.errors import InputError, VocabularyError
from tokenry.core.nucleus import nucleus
from tokenry.measure.shift import NEAR_ZERO, SHIFTED, Shift, distribution_shift, top_overlap

TEXTS = [[5, 9, 2, 40, 7], [3, 8, 8], [11, 12, 13, 14]]


@pytest.fixture(scope="module")
def tuned(tiny_llama):
    other = build_llama()
    with torch.no_grad():
        for weight in other.parameters():
            weight.add_(0.1 * torch.sin(torch.arange(weight.numel())).view_as(weight))
    return other


def batch(side="right", rows=(0, 1, 2)):
    made = TokenBatch.from_ids([TEXTS[row] for row in rows], padding_side=side)
    first = made.attention & (made.attention.cumsum(-1) == 1)
    return TokenBatch(made.ids, made.attention, made.attention & ~first)


def flat(shift):
    return list(vars(shift).values())


def test_worked_values_of_the_divergence():
    p, q = torch.tensor([[1.0, 0.0]]).log(), torch.tensor([[0.5, 0.5]]).log()
    assert float(divergence(p, q, "jensen_shannon")) == pytest.approx(0.215762, abs=1e-6)
    apart = torch.tensor([[0.0, 1.0]]).log()
    assert float(divergence(p, apart, "jensen_shannon")) == pytest.approx(0.693147, abs=1e-6)


def test_every_number_is_that_of_the_models_own_distributions(tiny_llama, tuned):
    found = distribution_shift(tiny_llama, tuned, batch(), top=3)
    row = 0
    for text in TEXTS:
        with torch.no_grad():
            p, q = (m(torch.tensor([text])).logits[0, :-1].double() for m in (tiny_llama, tuned))
        log_p, log_q = p.log_softmax(-1), q.log_softmax(-1)
        mixture = torch.logaddexp(log_p, log_q) - math.log(2)
        for t in range(len(text) - 1):
            halves = [(a[t].exp() * (a[t] - mixture[t])).sum() / 2 for a in (log_p, log_q)]
            first = int(q[t].argmax())
            order = [one[t].argsort(descending=True).tolist() for one in (p, q)]
            assert found.ids[row] == text[t + 1]
            assert float(found.place[row]) == pytest.approx(t / (len(text) - 1))
            assert float(found.divergence[row]) == pytest.approx(float(sum(halves)), abs=1e-5)
            entropy = -(log_p[t].exp() * log_p[t]).sum()
            assert float(found.entropy[row]) == pytest.approx(float(entropy), abs=1e-4)
            assert int(found.rank[row]) == order[0].index(first)
            assert float(found.probability[row]) == pytest.approx(
                float(log_p[t, first].exp()), rel=1e-3
            )
            shares = [len({*order[0][:k]} & {*order[1][:k]}) / k for k in (1, 2, 3)]
            assert found.overlap[row].tolist() == pytest.approx(shares)
            row += 1
    assert row == len(found.ids) == 9


def test_a_model_has_not_shifted_from_itself(tiny_llama):
    same = distribution_shift(tiny_llama, tiny_llama, batch())
    assert float(same.divergence.max()) < 1e-6
    assert not same.rank.any()
    assert bool((same.overlap == 1).all())
    assert not same.shifted.any()
    with pytest.raises(InputError, match="nothing to look at"):
        same.mechanics()


def test_divergence_is_symmetric_and_cut_by_a_nucleus(tiny_llama, tuned):
    one = distribution_shift(tiny_llama, tuned, batch())
    other = distribution_shift(tuned, tiny_llama, batch())
    torch.testing.assert_close(one.divergence, other.divergence)
    cut = distribution_shift(tiny_llama, tuned, batch(rows=(1,)), top_p=0.7)
    with torch.no_grad():
        p, q = (m(torch.tensor([TEXTS[1]])).logits[0, :-1] for m in (tiny_llama, tuned))
    exact = divergence(nucleus(p, 0.7), nucleus(q, 0.7), "jensen_shannon")
    torch.testing.assert_close(cut.divergence, exact, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(cut.divergence, one.divergence[4:6])


def test_padding_and_the_order_of_rows_change_nothing(tiny_llama, tuned):
    right, left = (distribution_shift(tiny_llama, tuned, batch(side)) for side in ("right", "left"))
    turned = distribution_shift(tiny_llama, tuned, batch(rows=(2, 0, 1)))
    order = [3, 4, 5, 6, 7, 8, 0, 1, 2]
    for one, other, third in zip(flat(right), flat(left), flat(turned), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(one, third[order], atol=1e-5, rtol=1e-4)


def made(divergence, **fields):
    count = len(divergence)
    fields = {
        "ids": torch.zeros(count, dtype=torch.long), "place": torch.arange(count) / count,
        "entropy": torch.zeros(count), "overlap": torch.ones(count, 2),
        "rank": torch.zeros(count, dtype=torch.long), "probability": torch.ones(count),
    } | fields  # fmt: skip
    return Shift(divergence=torch.tensor(divergence), **fields)


def test_the_mechanics_are_of_the_shifted_positions_alone():
    shift = made(
        [0.1, 0.11, 0.5, 0.6],
        rank=torch.tensor([9, 2, 3, 0]),
        probability=torch.tensor([0.0, 0.5, 0.0099, 0.01]),
        overlap=torch.tensor([[0.0, 0.0], [1.0, 0.5], [0.0, 0.5], [0.0, 1.0]]),
    )
    assert (NEAR_ZERO, SHIFTED) == (0.01, 0.1)
    found = shift.mechanics()
    assert found["positions"] == 3
    assert found["among the base's first three"] == pytest.approx(2 / 3)
    assert found["improbable to the base"] == pytest.approx(1 / 3)
    assert found["overlap"].tolist() == pytest.approx([1 / 3, 2 / 3])


def test_means_by_place_and_by_token():
    shift = made([0.1, 0.2, 0.3, 0.6], ids=torch.tensor([7, 7, 5, 7]))
    assert shift.by_place(2).tolist() == pytest.approx([0.15, 0.45])
    assert shift.by_place(8).isnan().sum() == 4
    assert shift.by_token() == {5: (pytest.approx(0.3), 1), 7: (pytest.approx(0.3), 3)}
    assert shift.concentration.carrying(0.5) == 0.25
    with pytest.raises(InputError, match="bins"):
        shift.by_place(0)


def test_overlap_of_a_small_vocabulary_ends_with_it():
    p, q = torch.tensor([[3.0, 2.0, 1.0]]), torch.tensor([[1.0, 2.0, 3.0]])
    assert top_overlap(p, q, 20).tolist() == [[0.0, 0.5, 1.0]]


def test_what_cannot_be_compared_is_refused(tiny_llama):
    with pytest.raises(VocabularyError, match="64 and 32"):
        distribution_shift(tiny_llama, build_llama(32), TokenBatch(
            torch.ones(1, 2, dtype=torch.long), torch.ones(1, 2).bool(),
            torch.tensor([[False, True]])))  # fmt: skip
    nothing = batch()
    with pytest.raises(InputError, match="no target"):
        distribution_shift(
            tiny_llama,
            tiny_llama,
            TokenBatch(nothing.ids, nothing.attention, nothing.target & False),
        )
