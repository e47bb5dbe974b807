"""The product for few rows against its definition."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

few_rows = pytest.importorskip("tokenry.model.kernels.few_rows", reason="numba is not installed")
Panels = few_rows.Panels


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@given(
    many=st.integers(0, 19),
    inputs=st.integers(1, 70),
    outputs=st.integers(1, 70),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 99),
)
def test_it_is_the_product(many, inputs, outputs, dtype, seed):
    weight = drawn(outputs, inputs, seed=seed).to(dtype)
    rows = drawn(many, inputs, seed=seed + 1)
    found = Panels(weight)(rows)
    expected = rows.double() @ weight.double().T
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("inputs", [1, 3, 8, 131])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_is_the_same_to_the_last_bit_alone_and_among_others(inputs, dtype):
    product = Panels(drawn(40, inputs).to(dtype))
    rows = drawn(33, inputs, seed=1)
    whole = product(rows)
    for many in range(1, 33):
        assert torch.equal(product(rows[:many]), whole[:many])
        assert torch.equal(product(rows[many:]), whole[many:])


def test_it_does_not_depend_on_the_number_of_threads():
    product, rows = Panels(drawn(100, 50)), drawn(9, 50, seed=1)
    before, threads = product(rows), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert torch.equal(product(rows), before)
    finally:
        torch.set_num_threads(threads)


def test_weights_that_fit_into_16_bits_are_kept_in_16_and_are_the_same():
    weight = drawn(32, 24).bfloat16().float()
    halves = Panels(weight)
    assert halves.panels.dtype == torch.bfloat16
    other = weight.clone()
    other[31, 23] += 1e-4
    whole = Panels(other)
    assert whole.panels.dtype == torch.float32
    rows = drawn(5, 24, seed=1)
    assert torch.equal(halves(rows)[:, :31], whole(rows)[:, :31])


def test_bfloat16_rows_give_the_rounded_sum():
    weight, rows = drawn(17, 90).bfloat16(), drawn(3, 90, seed=1).bfloat16()
    found = Panels(weight)(rows)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, Panels(weight)(rows.float()).bfloat16())


def test_shapes_are_those_of_a_linear_layer():
    product, rows = Panels(drawn(20, 6)), drawn(2, 5, 3, 6, seed=1)
    assert product(rows).shape == (2, 5, 3, 20)
    turned = rows.transpose(0, 2)  # not contiguous
    assert torch.equal(product(turned), product(rows).transpose(0, 2))


def test_what_is_not_finite_stays_where_it_is():
    weight = torch.zeros(18, 5)
    weight[17, 4] = float("inf")
    rows = torch.ones(6, 5)
    rows[2, 0] = float("nan")
    found = Panels(weight)(rows)
    assert found[2].isnan().all()
    others = found[[0, 1, 3, 4, 5]]
    assert (others[:, :17] == 0).all()
    assert (others[:, 17] == float("inf")).all()
