"""A toy captioner of digits: how long its captions get is not in what they say.

A convolution makes four embeddings of an image of 8 x 8 pixels, behind which a two-layer
transformer writes letter by letter: the digit's name and then adjectives, the likelier to go on the
more ink the image has, which the name does not tell.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from tokenry.lab.toy_model import toy_model
from tokenry.lab.toys import trained
from tokenry.learn.fit import fit, linear
from tokenry.measure.audit.length_inflation import anomaly_inputs, generate_from, read_from
from tokenry.measure.audit.verbosity import Generated, Read, length_anomaly
from tokenry.tasks.worlds.digits import Digits

NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
ADJECTIVES = " big", " red", " old", " new"
LETTERS = "^$ " + "abcdefghijklmnopqrstuvwxyz"  # the start, the end, and what is written
START, END = 0, 1
WIDTH, PREFIX, LIMIT, LONGEST = 48, 4, 80, 40


class Captioner(nn.Module):
    """Pixels [B, 8, 8] in 0..1 -> four embeddings -> letters, at most `LIMIT` with the end."""

    def __init__(self, seed: int):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)  # torch initialises layers from the global generator
            self.look = nn.Sequential(
                nn.Conv2d(1, 8, 3, stride=2, padding=1),
                nn.GELU(),
                nn.Flatten(),
                nn.Linear(8 * 16, PREFIX * WIDTH),
            )
        self.writer = toy_model(len(LETTERS), PREFIX + LIMIT + 2, seed, width=WIDTH)

    def prefix(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings [B, 4 + 1, D], the start token's included, and their attention."""
        seen = self.look(images[:, None]).view(len(images), PREFIX, WIDTH)
        start = self.writer.get_input_embeddings().weight[START].expand(len(images), 1, -1)
        embedded = torch.cat([seen, start], 1)
        return embedded, torch.ones(embedded.shape[:2], dtype=torch.bool)

    @torch.no_grad()
    def captions(self, images: Tensor, generator: torch.Generator) -> Generated:
        """Sampled captions, one for each image."""
        options: Any = {"generator": generator, "top_p": 0.9}
        return generate_from(self.writer, *self.prefix(images), [END], LIMIT, **options)

    def read(self, images: Tensor, texts: Generated) -> Read:
        """The model's pass over images and captions of them."""
        return read_from(self.writer, *self.prefix(images), texts)

    @torch.no_grad()
    def anomaly(self, images: Tensor, texts: Generated) -> Tensor:
        """`length_anomaly` of captions, of which each image has as many, image by image in turn."""
        repeated = images.repeat(len(texts.tokens) // len(images), 1, 1)
        read = read_from(self.writer, *self.prefix(repeated), texts, hidden=False)
        return length_anomaly(*anomaly_inputs(read, [END]))


def caption(digit: int, ink: float, draw: torch.Generator) -> str:
    """A name and adjectives; one more follows with probability 0.1 + 0.7 ink, ink in 0..1."""
    text = NAMES[digit]
    while len(text) < LONGEST - 5 and float(torch.rand((), generator=draw)) < 0.1 + 0.7 * ink:
        text += ADJECTIVES[int(torch.randint(len(ADJECTIVES), (), generator=draw))]
    return text


def captioner(world: Digits, steps: int = 600, batch: int = 32) -> Any:
    """A captioner of the world's training images, frozen; every step draws new captions. Kept."""
    images = world.images
    ink = images.mean((1, 2)).argsort().argsort() / len(images)  # as a share of the images

    def loss_of(model: Any, draw: torch.Generator) -> Tensor:
        rows = torch.randint(len(images), (batch,), generator=draw)
        written = [
            [*map(LETTERS.index, caption(int(world.labels[row]), float(ink[row]), draw)), END]
            for row in rows
        ]
        lengths = torch.tensor([len(row) for row in written])
        width = int(lengths.max())
        tokens = torch.tensor([row + [END] * (width - len(row)) for row in written])
        read = model.read(images[rows], Generated(tokens, lengths))
        return cross_entropy(read.logits[read.mask], tokens[read.mask])

    def train(model: Any) -> None:
        rate: Any = {"learning_rate": 3.1e-3, "schedule": linear(end=1 / 31), "clip": None}
        rate |= {"optimizer": torch.optim.Adam, "seed": world.seed}
        fit(lambda step, draw: loss_of(model, draw), model, steps=steps, **rate)

    return trained(lambda: Captioner(world.seed), train, world, steps, batch)
