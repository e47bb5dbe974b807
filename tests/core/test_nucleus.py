"""The nucleus: the smallest set of likeliest tokens that holds enough."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokenry.core.errors import InputError
from tokenry.core.nucleus import nucleus

P = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64)


@pytest.mark.parametrize(
    ("top_p", "kept"), [(0.4, 1), (0.49, 1), (0.51, 2), (0.79, 2), (0.81, 3), (0.96, 4), (1.0, 4)]
)
def test_what_stays_is_the_smallest_set_with_enough_mass(top_p, kept):
    left = nucleus(P.log(), top_p).softmax(-1)
    cut = torch.where(torch.arange(4) < kept, P, 0.0)
    torch.testing.assert_close(left, cut / cut.sum())


def test_of_equally_likely_tokens_the_first_ids_stay():
    assert nucleus(torch.zeros(2, 4), 0.5).isfinite().tolist() == [[True, True, False, False]] * 2


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=8), st.floats(0.01, 1.0))
def test_a_row_keeps_its_mass_and_no_token_is_likelier_than_one_that_stays(logits, top_p):
    row = torch.tensor(logits, dtype=torch.float64)
    kept, mass = nucleus(row, top_p).isfinite(), row.softmax(-1)
    assert float(mass[kept].sum()) >= top_p - 1e-9
    assert kept.all() or float(mass[~kept].max()) <= float(mass[kept].min()) + 1e-12
    assert float(mass[kept].sum() - mass[kept].min()) < top_p + 1e-9


def test_excluded_tokens_stay_excluded_and_bounds_are_refused():
    row = torch.tensor([0.0, -math.inf, 0.0])
    assert nucleus(row, 0.99).isfinite().tolist() == [True, False, True]
    for wrong in (0.0, 1.1, -1):
        with pytest.raises(InputError, match="top_p"):
            nucleus(row, wrong)
