"""Digits of which some are rare: sizes, views, and that learning from them is what it says."""

import pytest
import torch

pytest.importorskip("sklearn")

from tokenry.lab.rare_digits import RareDigits, augmented
from tokenry.learn.pretraining.sbcl import SBCL

SMALL = {"most": 40, "fewest": 4, "epochs": 2, "probe": 20}


def test_sizes_fall_geometrically_from_rank_to_rank():
    world = RareDigits(3, most=120, fewest=5)
    sizes = world.labels.bincount(minlength=10)[world.ranked].tolist()
    assert sizes == [120, 84, 59, 42, 29, 21, 14, 10, 7, 5]  # 120 (5 / 120)^(k / 9)
    assert torch.equal(RareDigits(3).images, world.images)
    assert not torch.equal(RareDigits(4).ranked, world.ranked)


def test_views_are_moved_by_a_pixel_at_most():
    images = torch.zeros(200, 8, 8)
    images[:, 3, 4] = 100.0
    views = augmented(images, torch.Generator().manual_seed(0))
    places = views.flatten(1).argmax(1)
    assert set((places // 8).tolist()) == {2, 3, 4}
    assert set((places % 8).tolist()) == {3, 4, 5}
    rest = views[views < 50]
    assert rest.std() == pytest.approx(0.1, rel=0.05)


def test_without_a_split_it_is_supcon_and_a_split_changes_the_encoder():
    images = RareDigits(0, **SMALL).world.test_images[:9]

    def features(method, split):
        encoder = RareDigits(0, **SMALL).contrastive(method, split)
        return encoder(images).detach()

    supcon = features(SBCL(warmup=1, every=1), False)
    late, early = features(SBCL(warmup=2), True), features(SBCL(warmup=1, every=1, delta=4), True)
    torch.testing.assert_close(late, supcon)  # the warm-up takes all epochs
    assert not torch.allclose(early, supcon)


def test_accuracy_is_above_chance_and_by_rank():
    world = RareDigits(1, most=40, fewest=20, epochs=10, probe=100)
    accuracy = world.accuracy(world.supervised())
    assert accuracy.shape == (10,)
    assert 0.5 < accuracy.mean() <= 1
