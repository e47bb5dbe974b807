import pytest
import torch

pytest.importorskip("sklearn")

from tokenry.core.errors import InputError
from tokenry.tasks.worlds.digits import SIDE, Digits

WORLD = Digits()


def drawn(seed=0):
    return torch.Generator().manual_seed(seed)


def test_the_split_keeps_every_image_once():
    assert len(WORLD.images) + len(WORLD.test_images) == 1797
    every = torch.cat([WORLD.images, WORLD.test_images])
    assert every.min() == 0
    assert every.max() == 1
    again = Digits()
    assert torch.equal(WORLD.test_images, again.test_images)
    assert not torch.equal(WORLD.test_images, Digits(seed=1).test_images)


def test_a_lone_digit_stands_in_its_box_and_its_mask_is_its_ink():
    scenes = WORLD.canvases(20, drawn(), size=13)
    for image, box, mask in zip(scenes.images, scenes.boxes[:, 0], scenes.masks[:, 0], strict=True):
        top, left, bottom, right = box.tolist()
        assert (bottom - top, right - left) == (SIDE, SIDE)
        assert torch.equal(mask, image > 0)
        outside = image.clone()
        outside[top:bottom, left:right] = 0
        assert outside.sum() == 0


def test_a_later_digit_covers_an_earlier_one():
    scenes = WORLD.canvases(50, drawn(1), size=9, digits=2)
    first, second = scenes.masks.unbind(1)
    assert not (first & second).any()
    assert torch.equal(first | second, scenes.images > 0)
    assert first.flatten(1).sum(1).float().mean() < second.flatten(1).sum(1).float().mean()


def test_clutter_belongs_to_no_digit():
    plain, cluttered = (WORLD.canvases(30, drawn(2), size=24, clutter=n) for n in (0, 3))
    free = (cluttered.images > 0) & ~cluttered.masks.any(1)
    assert free.any()
    assert not ((plain.images > 0) & ~plain.masks.any(1)).any()


def test_videos_move_on_straight_lines_and_stay_on_the_canvas():
    frames = WORLD.videos(40, 12, drawn(3), size=12, speed=1)
    tops = torch.stack([frame.boxes[:, 0, 0] for frame in frames])  # [F, N]
    assert tops.min() >= 0
    assert tops.max() <= 12 - SIDE
    steps = tops.diff(dim=0)
    assert steps.abs().max() == 1
    turns = (steps[1:] != steps[:-1]) & (steps[1:] != 0)
    at_border = (tops[1:-1] == 0) | (tops[1:-1] == 12 - SIDE)
    assert not (turns & ~at_border).any()
    assert torch.equal(frames[0].labels, frames[-1].labels)


def test_scenes_depend_on_the_generator_alone():
    one, same, other = (WORLD.canvases(5, drawn(seed), digits=2, clutter=1) for seed in (4, 4, 5))
    assert torch.equal(one.images, same.images)
    assert not torch.equal(one.images, other.images)


def test_impossible_scenes_are_refused():
    with pytest.raises(InputError):
        WORLD.canvases(1, drawn(), size=7)
    with pytest.raises(InputError, match="move"):
        WORLD.videos(1, 2, drawn(), size=8)
