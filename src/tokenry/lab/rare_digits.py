"""Digits of which some are rare: encoders that learn from it, judged on all classes alike.

    n_k = round(n_0 (n_9 / n_0)^(k / 9))        images of the class of rank k, n_0 to n_9

Which digit has which rank is drawn. An encoder (64 - 128 - 64, a projection to 32) learns from two
views of each image, shifted by up to a pixel, with noise; then a linear classifier is fitted to its
frozen features of width 64, with every class drawn equally often, and tested on as many test images
as there are of each digit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize, pad

from tokenry.learn.fit import fit, linear
from tokenry.learn.pretraining.sbcl import SBCL
from tokenry.learn.pretraining.subclasses import Subclasses
from tokenry.tasks.worlds.digits import Digits

BATCH = 64
NOISE = 0.1
TAIL = 3


@dataclass
class RareDigits:
    """One draw of the world.

    seed: of ranks, images and weights. most, fewest: images of the first and the last class.
    epochs: of the encoder. probe: steps of the classifier.
    """

    seed: int
    most: int = 120
    fewest: int = 5
    epochs: int = 40
    probe: int = 300
    world: Digits = field(default_factory=Digits, init=False)

    def __post_init__(self) -> None:
        self.generator = torch.Generator().manual_seed(self.seed)
        self.ranked = torch.randperm(10, generator=self.generator)
        share = self.fewest / self.most
        sizes = [round(self.most * share ** (rank / 9)) for rank in range(10)]
        rows = []
        for digit, size in zip(self.ranked.tolist(), sizes, strict=True):
            own = (self.world.labels == digit).nonzero().flatten()
            rows.append(own[torch.randperm(len(own), generator=self.generator)[:size]])
        self.images = self.world.images[torch.cat(rows)]
        self.labels = self.world.labels[torch.cat(rows)]

    def encoder(
        self, loss: Callable[[Any, Tensor, Tensor, int], Tensor], weights: Sequence[Tensor] = ()
    ) -> nn.Sequential:
        """Trained by loss(encoder, rows, views [B, 2, 8, 8], epoch), with further weights."""
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            body = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64))
            encoder = nn.Sequential(body, nn.Sequential(nn.ReLU(), nn.Linear(64, 32)))
        each = max(1, len(self.images) // BATCH)
        order = torch.arange(len(self.images))

        def at(step: int, generator: torch.Generator) -> Tensor:
            nonlocal order
            if step % each == 0:
                order = torch.randperm(len(self.images), generator=generator)
            rows = order[step % each :: each]
            views = torch.stack([augmented(self.images[rows], generator) for _ in range(2)], 1)
            return loss(encoder, rows, views, step // each)

        steps, trained = each * self.epochs, [*encoder.parameters(), *weights]
        fit(at, trained, steps=steps, learning_rate=3e-3, schedule=linear(0.1), seed=self.seed)
        return encoder

    def contrastive(self, method: SBCL, split: bool = True) -> nn.Sequential:
        """By SBCL, or without `split` by SupCon."""
        state: dict[str, Any] = {"epoch": -1, "subclasses": None}

        def loss(encoder: Any, rows: Tensor, views: Tensor, epoch: int) -> Tensor:
            if split and epoch > state["epoch"] and method.splits_before(epoch):
                with torch.no_grad():
                    features = encoder(self.images)
                state["subclasses"] = method.split(features, self.labels, self.generator)
            state["epoch"] = epoch
            all_of = state["subclasses"]
            chosen = None if all_of is None else Subclasses(all_of.ids[rows], all_of.temperatures)
            return method(features_of(encoder, views), self.labels[rows], chosen)

        return self.encoder(loss)

    def supervised(self) -> nn.Sequential:
        """By cross-entropy of a linear layer on the projection, both views counting."""
        head = torch.zeros(32, 10, requires_grad=True)

        def loss(encoder: Any, rows: Tensor, views: Tensor, epoch: int) -> Tensor:
            logits = encoder(views.flatten(0, 1)) @ head
            return cross_entropy(logits, self.labels[rows].repeat_interleave(2))

        return self.encoder(loss, [head])

    def accuracy(self, encoder: nn.Sequential) -> Tensor:
        """Of a balanced linear classifier on frozen features, by rank of the class, [10]."""
        with torch.no_grad():
            train, test = (
                normalize(encoder[0](images), dim=-1)
                for images in (self.images, self.world.test_images)
            )
        weight = 1 / self.labels.bincount(minlength=10).float()[self.labels]
        layer = nn.Linear(64, 10)

        def loss(step: int, generator: torch.Generator) -> Tensor:
            rows = weight.multinomial(BATCH, replacement=True, generator=generator)
            return cross_entropy(layer(train[rows]) * 10, self.labels[rows])

        with torch.no_grad():
            layer.weight.zero_()
            layer.bias.zero_()
        fit(loss, layer, steps=self.probe, learning_rate=1e-2, schedule=linear(), seed=self.seed)
        right = (layer(test).argmax(-1) == self.world.test_labels).float()
        return torch.stack([right[self.world.test_labels == k].mean() for k in self.ranked])


def augmented(images: Tensor, generator: torch.Generator) -> Tensor:
    """Images [N, 8, 8], each moved by up to a pixel both ways, with normal noise."""
    shifts = torch.randint(3, (len(images), 2), generator=generator)
    index = torch.arange(8)
    rows, columns = (shifts[:, :1] + index)[:, :, None], (shifts[:, 1:] + index)[:, None]
    moved = pad(images, (1, 1, 1, 1))[torch.arange(len(images))[:, None, None], rows, columns]
    return moved + NOISE * torch.randn(images.shape, generator=generator)


def features_of(encoder: nn.Module, views: Tensor) -> Tensor:
    """[B, V, 8, 8] -> [B, V, 32]."""
    return encoder(views.flatten(0, 1)).unflatten(0, views.shape[:2])
