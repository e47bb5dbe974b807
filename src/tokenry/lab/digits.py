"""What experiments on digits share: encoders trained once, accuracy, and a distance of image sets.

    frechet(A, B) = |m_A - m_B|^2 + tr( C_A + C_B - 2 (C_A C_B)^(1/2) )

with means and covariances in the space of the first 16 principal components of the training images:
0 for the same images, larger the more two sets differ in what they show and how varied it is.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from tokenry.core.errors import ShapeError
from tokenry.lab.toys import trained
from tokenry.learn.fit import fit, linear
from tokenry.tasks.worlds.digits import SIDE, Digits

COMPONENTS = 16


class TinyViT(nn.Module):
    """Patches of an image as tokens, two transformer layers, a class from the mean token.

    size: pixels of a side, a multiple of `patch`. width: of a token, a multiple of 4.
    """

    def __init__(self, size: int = SIDE, patch: int = 2, width: int = 48, layers: int = 2):
        super().__init__()
        if size % patch:
            raise ShapeError(f"patches of {patch} pixels do not tile a side of {size}")
        self.patch = patch
        self.embed = nn.Linear(patch * patch, width)
        self.position = nn.Parameter(torch.randn((size // patch) ** 2, width) * 0.02)
        block = nn.TransformerEncoderLayer(
            width, 4, 2 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(block, layers, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 10)

    def tokens(self, images: Tensor) -> Tensor:
        """[N, S, S] -> [N, tokens, width], one token a patch, row by row."""
        count, size, _ = images.shape
        side = size // self.patch
        cut = images.view(count, side, self.patch, side, self.patch).transpose(2, 3)
        embedded = self.embed(cut.reshape(count, side * side, -1)) + self.position
        return self.norm(self.blocks(embedded))

    def forward(self, images: Tensor) -> Tensor:
        """Class logits, [N, 10]."""
        return self.head(self.tokens(images).mean(1))


@cache
def vit(seed: int = 0, steps: int = 300) -> TinyViT:
    """A ViT that tells the digits apart, frozen; trained once and kept (`lab.toys`)."""
    world = Digits()

    def build() -> TinyViT:
        with torch.random.fork_rng():
            torch.manual_seed(seed)  # torch initialises layers from the global generator
            return TinyViT()

    def train(model: Any) -> None:
        def loss(step: int, generator: torch.Generator) -> Tensor:
            images, labels = world.draw(64, generator)
            return cross_entropy(model(images), labels)

        fit(loss, model, steps=steps, learning_rate=3e-3, schedule=linear(0.1), seed=seed)

    return trained(build, train, "digits vit", seed, steps)


@torch.no_grad()
def accuracy(images: Tensor, labels: Tensor, classifier: Any = None) -> float:
    """The share of images [N, 8, 8] that a classifier (by default `vit()`) reads as their label."""
    model = classifier or vit()
    return float((model(images).argmax(-1) == labels).float().mean())


def frechet(images: Tensor, others: Tensor) -> float:
    """The Frechet distance of two sets of images [N, 8, 8], in the fixed space; see above.

    Raises ShapeError for fewer than two images.
    """
    mean_a, cov_a = _moments(images)
    mean_b, cov_b = _moments(others)
    root = _root(cov_a)
    cross = torch.linalg.eigvalsh(root @ cov_b @ root).clamp_min(0).sqrt().sum()
    distance = (mean_a - mean_b).square().sum() + cov_a.trace() + cov_b.trace() - 2 * cross
    return float(distance.clamp_min(0))


@cache
def components() -> tuple[Tensor, Tensor]:
    """The mean [64] and the first principal axes [64, 16] of the training images, float64."""
    flat = Digits().images.flatten(1).double()
    mean = flat.mean(0)
    axes = torch.linalg.svd(flat - mean, full_matrices=False).Vh[:COMPONENTS].T
    return mean, axes


def _moments(images: Tensor) -> tuple[Tensor, Tensor]:
    if images.ndim != 3 or len(images) < 2 or images.shape[1:] != (SIDE, SIDE):
        raise ShapeError(f"images must be [N >= 2, {SIDE}, {SIDE}], got {list(images.shape)}")
    mean, axes = components()
    points = (images.flatten(1).double() - mean) @ axes
    return points.mean(0), torch.cov(points.T)


def _root(matrix: Tensor) -> Tensor:
    """The square root of a positive semidefinite matrix."""
    values, vectors = torch.linalg.eigh(matrix)
    return vectors @ torch.diag(values.clamp_min(0).sqrt()) @ vectors.T
