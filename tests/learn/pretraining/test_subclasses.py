"""Subclasses: their numbers and sizes, and the temperatures of classes."""

import math

import pytest
import torch

from tokenry.core.errors import InputError
from tokenry.learn.pretraining.subclasses import class_temperatures, split_classes, subclass_counts


def test_worked_counts():
    sizes = torch.tensor([500, 100, 20, 10, 5])
    assert subclass_counts(sizes).tolist() == [50, 10, 2, 1, 1]
    assert subclass_counts(sizes, 20).tolist() == [25, 5, 1, 1, 1]
    assert subclass_counts(torch.tensor([59, 12])).tolist() == [4, 1]  # 12 is above delta


def spread(angle):
    """Two unit vectors of this angle to their middle."""
    return torch.tensor([[math.cos(angle), math.sin(angle)], [math.cos(angle), -math.sin(angle)]])


def test_worked_temperatures():
    angles = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    features = torch.cat([7 * spread(angle) for angle in angles])
    classes = torch.arange(6).repeat_interleave(2)
    # |f - mean| is sin(angle); 20 and 80 percent of 5 steps are the second and the second last
    phi = [math.sin(angle) / math.log(12) for angle in (0.2, 0.2, 0.3, 0.4, 0.5, 0.5)]
    mean = sum(phi) / 6
    wanted = torch.tensor([0.3 * one / mean for one in phi])
    split = class_temperatures(features, classes, torch.full((6,), 2), 0.3)
    torch.testing.assert_close(split, wanted)
    assert split.mean() == pytest.approx(0.3)
    partly = class_temperatures(features, classes, torch.tensor([2, 1, 2, 2, 1, 2]), 0.3)
    torch.testing.assert_close(partly, torch.where(torch.arange(6) % 3 == 1, 0.3, wanted))


def test_larger_classes_count_as_less_spread():
    features = torch.cat([spread(0.3), spread(0.3).repeat(45, 1)])
    classes = torch.tensor([0] * 2 + [1] * 90)
    # of two values, the percentiles are 20 and 80 percent of the way between them
    low, high = math.sin(0.3) / math.log(100), math.sin(0.3) / math.log(12)
    clipped = [high - 0.2 * (high - low), low + 0.2 * (high - low)]
    temperatures = class_temperatures(features, classes, torch.tensor([2, 2]))
    wanted = torch.tensor([0.1 * one / (sum(clipped) / 2) for one in clipped])
    torch.testing.assert_close(temperatures, wanted)


def test_features_that_do_not_differ_keep_the_temperature():
    one = class_temperatures(torch.ones(4, 3), torch.tensor([0, 0, 1, 1]), torch.tensor([2, 2]))
    torch.testing.assert_close(one, torch.full((2,), 0.1))


def test_ids_are_of_one_class_each_and_balanced():
    generator = torch.Generator().manual_seed(0)
    classes = torch.tensor([0] * 47 + [1] * 20 + [2] * 5)[torch.randperm(72, generator=generator)]
    features = torch.randn(72, 4, generator=generator)
    ids, temperatures = split_classes(features, classes, generator=generator)
    assert [sorted(set(ids[classes == k].tolist())) for k in range(3)] == [
        [0, 1, 2, 3],
        [4, 5],
        [6],
    ]
    assert sorted(ids.bincount().tolist()) == [5, 10, 10, 11, 12, 12, 12]
    counts = torch.tensor([4, 2, 1])
    torch.testing.assert_close(temperatures, class_temperatures(features, classes, counts))
    assert temperatures[2] == pytest.approx(0.1)


@pytest.mark.parametrize("sizes", [[], [3, 0, 2]])
def test_a_class_without_samples_is_refused(sizes):
    with pytest.raises(InputError, match="no samples"):
        subclass_counts(torch.tensor(sizes, dtype=torch.long))
    with pytest.raises(InputError, match="delta"):
        subclass_counts(torch.tensor([3]), 0)
    with pytest.raises(InputError, match="tau1"):
        class_temperatures(torch.ones(2, 2), torch.tensor([0, 0]), torch.tensor([1]), 0)
