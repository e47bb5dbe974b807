import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokenry.core.aggregate import MODES, aggregate, masked_mean, masked_sum, per_sequence
from tokenry.core.errors import InputError, ShapeError, UnknownNameError

VALUES = torch.tensor([[1.0, 2.0, 6.0, math.nan], [math.inf, 4.0, -math.inf, 8.0]])
MASK = torch.tensor([[True, True, True, False], [False, True, False, True]])
LENGTH = {"constant-length": 10.0}


def reduced(values, mask, mode, weights=None):
    return aggregate(values, mask, mode, weights, length=LENGTH.get(mode))


def by_hand(values, mask, mode, weights):
    """The definitions, in plain Python."""
    rows = []
    for v, m, w in zip(values.tolist(), mask.tolist(), weights.tolist(), strict=True):
        rows.append([(a, b) for a, keep, b in zip(v, m, w, strict=True) if keep and b > 0])
    totals = [sum(v * w for v, w in row) for row in rows]
    masses = [sum(w for _, w in row) for row in rows]
    real = [i for i, row in enumerate(rows) if row]
    if mode == "constant-length":
        return sum(totals) / 10.0 / len(rows)
    if not real:
        return 0.0
    if mode == "token-mean":
        return sum(totals) / sum(masses)
    if mode == "sequence-sum":
        return sum(totals) / len(real)
    return sum(totals[i] / masses[i] for i in real) / len(real)


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("sequence-mean", (3 + 6) / 2),
        ("token-mean", 21 / 5),
        ("constant-length", 21 / 10 / 2),
        ("sequence-sum", (9 + 12) / 2),
    ],
)
def test_closed_values(mode, expected):
    assert reduced(VALUES, MASK, mode).item() == pytest.approx(expected)


@pytest.mark.parametrize("mode", MODES)
@given(data=st.data())
def test_equals_the_definition(mode, data):
    rows, columns = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 5))
    size = rows * columns

    def draw(elements):
        drawn = data.draw(st.lists(elements, min_size=size, max_size=size))
        return torch.tensor(drawn).view(rows, columns)

    values = draw(st.floats(-3, 3, width=32))
    mask = draw(st.booleans())
    weights = draw(st.sampled_from([0.0, 0.5, 1.0, 3.0]))
    expected = by_hand(values, mask, mode, weights)
    assert reduced(values, mask, mode, weights).item() == pytest.approx(expected, abs=1e-5)
    ones = torch.ones_like(weights)
    expected = by_hand(values, mask, mode, ones)
    assert reduced(values, mask, mode).item() == pytest.approx(expected, abs=1e-5)
    assert reduced(values, mask, mode, ones).item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("weighted", [False, True])
def test_what_is_masked_leaks_neither_into_the_value_nor_into_gradients(mode, weighted):
    values = VALUES.clone().requires_grad_()
    weights = torch.where(MASK, 2.0, math.nan) if weighted else None
    result = reduced(values, MASK, mode, weights)
    assert result.isfinite()
    (gradient,) = torch.autograd.grad(result, values)
    assert gradient.isfinite().all()
    assert (gradient[~MASK] == 0).all()
    assert (gradient[MASK] > 0).all()


@pytest.mark.parametrize("mode", MODES)
def test_a_token_of_weight_zero_is_as_if_masked(mode):
    values = torch.tensor([[1.0, -math.inf, 5.0], [2.0, 3.0, 4.0]])
    mask = torch.ones(2, 3, dtype=torch.bool)
    weights = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    expected = reduced(values, mask & (weights > 0), mode)
    assert reduced(values, mask, mode, weights) == expected


@pytest.mark.parametrize("mode", ["sequence-mean", "token-mean", "sequence-sum"])
def test_an_empty_row_does_not_count(mode):
    values, mask = VALUES[:, [1]].repeat(2, 1), torch.tensor([[True], [True], [False], [False]])
    assert reduced(values, mask, mode) == reduced(values[:2], mask[:2], mode)


def test_an_empty_row_counts_under_constant_length():
    values, mask = torch.ones(2, 4), torch.tensor([[True] * 4, [False] * 4])
    assert reduced(values, mask, "constant-length").item() == pytest.approx(4 / 10 / 2)


@pytest.mark.parametrize("rows", [2, 0])
@pytest.mark.parametrize("mode", MODES)
def test_an_empty_batch_is_zero_with_zero_gradient(mode, rows):
    values = torch.full((rows, 3), math.nan, requires_grad=True)
    result = reduced(values, torch.zeros(rows, 3, dtype=torch.bool), mode)
    assert result == 0
    (gradient,) = torch.autograd.grad(result, values)
    assert (gradient == 0).all()


@pytest.mark.parametrize("mode", MODES)
def test_gradients_to_values_and_learned_weights(mode):
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(3, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    weights = torch.rand(3, 4, generator=generator, dtype=torch.float64).requires_grad_()
    mask = torch.tensor([[1, 1, 0, 1], [0, 0, 0, 0], [1, 0, 1, 1]], dtype=torch.bool)
    assert torch.autograd.gradcheck(lambda v, w: reduced(v, mask, mode, w), (values, weights))


def test_a_learned_weight_has_its_gradient_at_zero():
    weights = torch.tensor([[1.0, 0.0]], requires_grad=True)
    total = masked_sum(
        torch.tensor([[2.0, 5.0]]), torch.ones(1, 2, dtype=torch.bool), None, weights
    )
    (gradient,) = torch.autograd.grad(total, weights)
    assert gradient.tolist() == [[2.0, 5.0]]


def test_per_sequence():
    assert per_sequence(VALUES, MASK).tolist() == [9.0, 12.0]
    assert per_sequence(VALUES, MASK, "mean").tolist() == [3.0, 6.0]
    weights = torch.tensor([[1.0, 1.0, 0.0, 9.0], [9.0, 3.0, 9.0, 1.0]])
    assert per_sequence(VALUES, MASK, "mean", weights).tolist() == [1.5, 5.0]
    assert per_sequence(VALUES, ~MASK & MASK, "mean").tolist() == [0.0, 0.0]
    row_weights = torch.tensor([[2.0], [3.0]])
    assert per_sequence(VALUES, MASK, "sum", row_weights).tolist() == [18.0, 36.0]


def test_per_sequence_reduces_the_last_dimension_of_many():
    values = torch.arange(24.0).view(2, 3, 4)
    mask, weights = torch.ones(2, 3, 4, dtype=torch.bool), torch.tensor([1.0, 0.0, 2.0])[:, None]
    assert per_sequence(values, mask).tolist() == [[6, 22, 38], [54, 70, 86]]
    weighted = per_sequence(values, mask, "sum", weights.expand(2, 3, 1))
    assert weighted.tolist() == [[6, 0, 76], [54, 0, 172]]
    with pytest.raises(ShapeError, match=r"one per row \[2, 3, 1\]; got \[2, 1\]"):
        per_sequence(values, mask, "sum", torch.ones(2, 1))
    with pytest.raises(InputError, match=r"2 are not, the first is -1\.0"):
        per_sequence(
            values[0, :2], mask[0, :2], "sum", torch.tensor([[1, -1, 1, 1], [1, 1, 1, -2.0]])
        )


def test_sums_of_half_precision_run_in_float32():
    values = torch.ones(1, 4096, dtype=torch.bfloat16)
    mask = torch.ones(1, 4096, dtype=torch.bool)
    total = masked_sum(values, mask)
    assert total.dtype == torch.float32
    assert total == 4096
    assert masked_mean(values.double(), mask).dtype == torch.float64


@pytest.mark.parametrize("bad", [-1.0, math.nan, math.inf])
def test_bad_weights_are_refused_where_they_count(bad):
    weights = torch.ones(2, 4)
    weights[0, 3] = bad  # masked there
    aggregate(VALUES, MASK, weights=weights)
    weights[0, 0] = bad
    with pytest.raises(InputError, match="weights must be finite"):
        aggregate(VALUES, MASK, weights=weights)


def test_wrong_arguments_say_what_is_wrong():
    with pytest.raises(UnknownNameError, match="sequence-mean"):
        aggregate(VALUES, MASK, "sequence-means")  # pyright: ignore[reportArgumentType]
    with pytest.raises(UnknownNameError, match="reduction"):
        per_sequence(VALUES, MASK, "max")  # pyright: ignore[reportArgumentType]
    for length in (None, 0, -3, math.nan, math.inf):
        with pytest.raises(InputError, match="length, in tokens"):
            aggregate(VALUES, MASK, "constant-length", length=length)
    with pytest.raises(InputError, match="constant-length only"):
        aggregate(VALUES, MASK, "token-mean", length=5)
    with pytest.raises(ShapeError, match="mask"):
        aggregate(VALUES, MASK[:, :2])
    with pytest.raises(ShapeError, match="mask"):
        aggregate(VALUES, MASK.float())
    with pytest.raises(ShapeError, match=r"\[B, T\]"):
        aggregate(VALUES[0], MASK[0])
    with pytest.raises(ShapeError, match=r"one per row \[2, 1\]; got \[4\]"):
        aggregate(VALUES, MASK, weights=torch.ones(4))
