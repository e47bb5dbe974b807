import math

import pytest
import torch

from tokenry.codecs.quantize.fsq import FSQ
from tokenry.core.errors import InputError


def test_the_papers_default_has_a_thousand_codes():
    assert FSQ() == FSQ((8, 5, 5, 5))
    assert (FSQ().size, FSQ().dim) == (1000, 4)


def test_levels_by_hand():
    one = FSQ((5, 4))
    z = torch.tensor([[[0.0, 0.0], [9.0, 9.0], [-9.0, -9.0], [0.5, 0.5]]])
    found = one(z)
    # five levels: -2 .. 2 over 2; four: -2 .. 1 over 2, with b(0) = 0
    half = 2 * (1 - 1e-3)
    middle = round(half * math.tanh(0.5))
    four = 1.5 * (1 - 1e-3)
    even = round(four * math.tanh(0.5 + math.atanh(0.5 / four)) - 0.5)
    wanted = [[0, 0], [2, 1], [-2, -2], [middle, even]]
    torch.testing.assert_close(found.z[0] * 2, torch.tensor(wanted).float())
    assert found.ids[0].tolist() == [(a + 2) + 5 * (b + 2) for a, b in wanted]


def test_the_first_channel_counts_in_ones():
    one = FSQ((3, 4, 5))
    assert one.decode(torch.tensor([0, 1, 3, 12])).tolist() == [
        [-1.0, -1.0, -1.0],
        [0.0, -1.0, -1.0],
        [-1.0, -0.5, -1.0],
        [-1.0, -1.0, -0.5],
    ]


def test_the_gradient_is_that_of_the_bound():
    one = FSQ((5,))
    z = torch.tensor([[[0.3]]], requires_grad=True)
    one(z).z.sum().backward()
    assert float(z.grad) == pytest.approx(2 * (1 - 1e-3) * (1 - math.tanh(0.3) ** 2) / 2)


def test_all_levels_are_reached_and_no_more():
    for level in (3, 4, 8):
        one = FSQ((level,))
        ids = one(torch.linspace(-8, 8, 2001)[None, :, None]).ids
        assert ids.unique().tolist() == list(range(level))


def test_impossible_levels_are_refused():
    for wrong in ((), (2, 4), (3.5,)):
        with pytest.raises(InputError, match="levels"):
            FSQ(wrong)
