"""Control of a head: the distance by hand, and that nothing is found below the bound."""

import math

import torch

from tokenry.lab.attention_control import NORM, bound_ratio, distance

EYE = torch.eye(2, dtype=torch.float64)


def head(wanted):
    x0 = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    return x0, 0 * EYE, EYE, EYE, torch.tensor([wanted], dtype=torch.float64)


def test_the_distance_is_to_the_nearest_multiple_of_what_is_wanted():
    control = torch.tensor([[[0.0, 30.0]]], dtype=torch.float64)  # shortened to the norm
    # scores are 0: the output is the mean of the two rows, (1, NORM) / 2
    assert float(distance(control, *head([1.0, 0.0]))) == NORM / 2
    assert float(distance(control, *head([0.0, -2.0]))) == 0.5
    short = torch.tensor([[[0.0, 0.1]]], dtype=torch.float64)
    assert math.isclose(float(distance(short, *head([1.0, 0.0]))), 0.05)
    both = torch.cat([control, short])
    assert distance(both, *head([1.0, 0.0])).shape == (2,)


def test_searches_come_nearer_but_never_below_the_bound():
    ratios = [bound_ratio(seed, restarts=20, updates=60) for seed in range(4)]
    assert all(1e-3 < ratio < 1.0 or math.isinf(ratio) for ratio in ratios)
    assert any(math.isfinite(ratio) for ratio in ratios)
    for seed, ratio in enumerate(ratios):
        if math.isfinite(ratio):
            assert ratio < bound_ratio(seed, restarts=20, updates=1)
