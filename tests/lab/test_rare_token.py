"""Tables trained by sampling: each ends nearer to the target than it began."""

import pytest

from tokenry.lab.rare_token import train_tables

NAMES = ("forward_kl", "jensen_shannon_sum")


def test_training_in_a_divergence_lowers_it():
    start, end = (train_tables(NAMES, 1, outcomes=30, steps=steps) for steps in (0, 40))
    for name in NAMES:
        assert 0 < end[name][name] < 0.5 * start[name][name]


def test_a_target_that_forbids_nothing_is_the_base():
    exact = train_tables(NAMES, 1, steps=0, slack=1.0)["forward_kl"]
    assert exact == pytest.approx(dict.fromkeys(NAMES, 0.0), abs=1e-12)
