import math

import pytest
import torch

from tokenry.core.errors import InputError
from tokenry.tasks.worlds.arms import arm_means


def test_one_arm_is_the_best_and_comes_anywhere():
    places = set()
    for seed in range(60):
        means = arm_means(5, torch.Generator().manual_seed(seed))
        assert max(means) == means[means.index(0.82)]
        assert sorted(means)[-2] <= 0.8
        places.add(means.index(0.82))
    assert places == {0, 1, 2, 3, 4}


def test_the_others_are_normal_and_cut():
    means = torch.tensor(arm_means(20_001, torch.Generator().manual_seed(0)), dtype=torch.float64)
    others = means[means < 0.82]
    assert len(others) == 20_000
    assert abs(float(others.mean()) - 0.5) < 7 * 0.1 / math.sqrt(20_000) + 0.001
    assert float(others.std()) == pytest.approx(0.1, abs=0.004)
    assert 0 <= float(others.min()) < float(others.max()) <= 0.8


def test_a_single_arm_is_the_best_and_none_are_refused():
    assert arm_means(1, torch.Generator()) == [0.82]
    with pytest.raises(InputError, match="arms"):
        arm_means(0, torch.Generator())
