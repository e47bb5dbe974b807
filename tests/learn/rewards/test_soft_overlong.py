"""Soft overlong punishment, by DAPO's numbers."""

import pytest

from tokenry.core.errors import InputError
from tokenry.learn.rewards.soft_overlong import SoftOverlong


def penalties(lengths, **settings):
    return SoftOverlong(**settings)([], [], completion_ids=[range(n) for n in lengths])


def test_it_falls_over_the_buffer_and_stays_there():
    assert penalties([0, 6, 7, 8, 10, 11, 99], longest=10, buffer=4) == [
        0.0, 0.0, -0.25, -0.5, -1.0, -1.0, -1.0,
    ]  # fmt: skip


def test_the_defaults_are_the_papers():
    assert penalties([16384, 16385, 18432, 20480, 20481]) == [0.0, -1 / 4096, -0.5, -1.0, -1.0]


def test_a_buffer_longer_than_the_length_is_refused():
    assert penalties([0, 1], longest=1, buffer=1) == [0.0, -1.0]
    with pytest.raises(InputError, match=r"SoftOverlong\.buffer is 5.*\[1, 4\]"):
        SoftOverlong(4, 5)
    with pytest.raises(InputError, match=r"SoftOverlong\.longest is 0"):
        SoftOverlong(0, 1)
