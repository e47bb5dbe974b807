"""Digits: small real images, and scenes, masks and videos made of them.

The 1,797 handwritten digits of 8 x 8 pixels that come with scikit-learn (no download), in [0, 1].
A canvas is a larger square on which digits stand, each with its mask and box; clutter are pieces of
digits that nobody asks for; in a video every digit moves on a straight line and bounces off the
borders. Everything drawn depends on the generator alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tokenry.core.checks import in_range, within
from tokenry.core.errors import InputError, ModelError

SIDE = 8


@dataclass(frozen=True)
class Scenes:
    """images: [N, S, S] in [0, 1]. labels: [N, K], the digits. boxes: [N, K, 4], top, left, bottom,
    right, half-open. masks: [N, K, S, S] bool, where each digit has ink that is not covered by a
    later one."""

    images: Tensor
    labels: Tensor
    boxes: Tensor
    masks: Tensor


@dataclass(frozen=True)
class Digits:
    """The images, split once: `held_out` of them, the same for the same seed, are for testing.

    images, test_images: [N, 8, 8] float32 in [0, 1]. labels, test_labels: [N] long.
    """

    seed: int = 0
    held_out: int = 397
    images: Tensor = field(init=False, repr=False, compare=False)
    labels: Tensor = field(init=False, repr=False, compare=False)
    test_images: Tensor = field(init=False, repr=False, compare=False)
    test_labels: Tensor = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        within(self, "[1, 1700]", "held_out", integer=True)
        try:
            from sklearn.datasets import load_digits
        except ImportError as error:
            raise ModelError(
                'the digits come with scikit-learn: pip install "tokenry[audit]"'
            ) from error
        data: Any = load_digits()
        order = torch.randperm(len(data.target), generator=_generator(self.seed))
        images = torch.tensor(data.images, dtype=torch.float32)[order] / 16
        labels = torch.tensor(data.target, dtype=torch.long)[order]
        for name, value in (
            ("images", images[self.held_out :]),
            ("labels", labels[self.held_out :]),
            ("test_images", images[: self.held_out]),
            ("test_labels", labels[: self.held_out]),
        ):
            object.__setattr__(self, name, value)

    def draw(
        self, count: int, generator: torch.Generator, test: bool = False
    ) -> tuple[Tensor, Tensor]:
        """`count` images [N, 8, 8] and their labels [N], with replacement."""
        images, labels = self._of(test)
        rows = torch.randint(len(images), (count,), generator=generator)
        return images[rows], labels[rows]

    def canvases(
        self,
        count: int,
        generator: torch.Generator,
        *,
        size: int = 16,
        digits: int = 1,
        clutter: int = 0,
        test: bool = False,
    ) -> Scenes:
        """`digits` digits at random places on each canvas of `size` pixels, over `clutter` pieces.

        InputError when the canvas is smaller than a digit.
        """
        in_range("size", size, "[8, inf)", integer=True)
        in_range("digits", digits, "[1, inf)", integer=True)
        in_range("clutter", clutter, "[0, inf)", integer=True)
        canvas = self._clutter(count, size, clutter, generator, test)
        chosen, labels = self.draw(count * digits, generator, test)
        places = torch.randint(size - SIDE + 1, (count, digits, 2), generator=generator)
        return _scene(
            canvas, chosen.view(count, digits, SIDE, SIDE), labels.view(count, -1), places
        )

    def videos(
        self,
        count: int,
        frames: int,
        generator: torch.Generator,
        *,
        size: int = 16,
        digits: int = 1,
        speed: int = 2,
        test: bool = False,
    ) -> list[Scenes]:
        """One `Scenes` for each frame; every digit moves by up to `speed` pixels a frame."""
        in_range("frames", frames, "[1, inf)", integer=True)
        in_range("speed", speed, "[0, inf)", integer=True)
        if size <= SIDE:
            raise InputError(f"nothing can move on a canvas of {size} pixels: more than {SIDE}")
        free = size - SIDE
        chosen, labels = self.draw(count * digits, generator, test)
        start = torch.randint(free + 1, (count, digits, 2), generator=generator)
        step = torch.randint(-speed, speed + 1, (count, digits, 2), generator=generator)
        chosen, labels = chosen.view(count, digits, SIDE, SIDE), labels.view(count, -1)
        shown = []
        for time in range(frames):
            # a place beyond the border is its mirror image: the way there and back has 2 * free
            at = (start + time * step).remainder(2 * free)
            places = torch.where(at > free, 2 * free - at, at)
            shown.append(_scene(torch.zeros(count, size, size), chosen, labels, places))
        return shown

    def _of(self, test: bool) -> tuple[Tensor, Tensor]:
        return (self.test_images, self.test_labels) if test else (self.images, self.labels)

    def _clutter(
        self, count: int, size: int, pieces: int, generator: torch.Generator, test: bool
    ) -> Tensor:
        """Canvases [N, S, S] with quarter digits on them."""
        canvas = torch.zeros(count, size, size)
        if not pieces:
            return canvas
        half = SIDE // 2
        chosen, _ = self.draw(count * pieces, generator, test)
        corner = torch.randint(half + 1, (count * pieces, 2), generator=generator)
        index = torch.arange(half)
        rows = torch.arange(count * pieces)[:, None, None]
        cut = chosen[rows, (corner[:, :1] + index)[:, :, None], (corner[:, 1:] + index)[:, None]]
        places = torch.randint(size - half + 1, (count, pieces, 2), generator=generator)
        for piece in range(pieces):
            _paste(canvas, cut.view(count, pieces, half, half)[:, piece], places[:, piece])
        return canvas


def _scene(canvas: Tensor, chosen: Tensor, labels: Tensor, places: Tensor) -> Scenes:
    """Digits [N, K, 8, 8] put onto canvases [N, S, S] at places [N, K, 2], later ones on top."""
    count, digits = labels.shape
    size = canvas.shape[-1]
    masks = torch.zeros(count, digits, size, size, dtype=torch.bool)
    for number in range(digits):
        alone = torch.zeros(count, size, size)
        _paste(alone, chosen[:, number], places[:, number])
        ink = alone > 0
        canvas = torch.where(ink, alone, canvas)
        masks[:, :number] &= ~ink[:, None]
        masks[:, number] = ink
    return Scenes(canvas, labels, torch.cat([places, places + SIDE], -1), masks)


def _paste(canvas: Tensor, pieces: Tensor, places: Tensor) -> None:
    """The larger of canvas [N, S, S] and piece [N, p, p] at each piece's place [N, 2], in place."""
    index = torch.arange(pieces.shape[-1])
    batch = torch.arange(len(pieces))[:, None, None]
    rows, columns = (places[:, :1] + index)[:, :, None], (places[:, 1:] + index)[:, None]
    canvas[batch, rows, columns] = torch.maximum(canvas[batch, rows, columns], pieces)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
