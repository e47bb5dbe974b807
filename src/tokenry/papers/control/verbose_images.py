"""Verbose images on a toy captioner: three losses against one, noise, and what answers them.

Digits of 8 x 8 pixels; a convolution makes four embeddings of each, behind which a two-layer
transformer writes a caption letter by letter: the digit's name and then adjectives, the likelier to
go on the more ink the image has, which the name does not tell. Images are perturbed by at most 0.1
per pixel (of a range of 1). Lengths are means over captions sampled from the image after the last
step, so none is long by selection.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from tokenry.core.extras import require_extra
from tokenry.lab.toy_model import toy_model
from tokenry.learn.fit import fit, linear
from tokenry.measure.audit.length_inflation import anomaly_inputs, generate_from, read_from
from tokenry.measure.audit.verbosity import (
    Generated,
    length_anomaly,
    length_cap,
    length_stress_test,
)
from tokenry.papers.base import Measurement, Outcome, Paper, mean_and_error

NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
ADJECTIVES = " big", " red", " old", " new"
LETTERS = "^$ " + "abcdefghijklmnopqrstuvwxyz"  # the start, the end, and what is written
START, END = 0, 1
WIDTH, PREFIX, LIMIT, LONGEST = 48, 4, 80, 40
TRAINING, BATCH = 600, 32
IMAGES, STEPS, EPS, DRAWS, TOP_P = 16, 30, 0.1, 12, 0.9
VARIANTS = {
    "noise": (),
    "EOS loss": ("eos",),
    "EOS and uncertainty": ("uniformity", "eos"),
    "all three": ("uniformity", "eos", "diversity"),
}


def reproduce(seed: int) -> Outcome:
    """One captioner, sixteen images, four kinds of perturbation."""
    images, digits = digit_images()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    chosen = images[order[:IMAGES]]
    captioner = trained(images[order[IMAGES:]], digits[order[IMAGES:]], seed)
    draw = torch.Generator().manual_seed(seed)
    clean = captioner.captions(chosen.repeat(DRAWS, 1, 1), draw)
    found = {"clean": Lengths(clean.lengths.view(DRAWS, -1), captioner.anomaly(chosen, clean))}
    for name, losses in VARIANTS.items():
        stressed = length_stress_test(
            lambda x: captioner.captions(x, draw),
            captioner.read,
            chosen,
            END,
            eps=EPS,
            alpha=EPS / 10,
            steps=STEPS,
            losses=losses,
            low=0.0,
            high=1.0,
            regenerate_every=2,
            generator=draw,
        )
        perturbed = chosen + stressed.last
        again = captioner.captions(perturbed.repeat(DRAWS, 1, 1), draw)
        found[name] = Lengths(again.lengths.view(DRAWS, -1), captioner.anomaly(perturbed, again))
    many = captioner.captions(images[order[IMAGES : IMAGES + 200]], draw).lengths
    cap = length_cap(many)
    measured = [
        Measurement(f"caption, {name}", value.mean, "letters", seed)
        for name, value in found.items()
    ]
    measured += [
        Measurement(f"share of clean length, {name}", value.mean / found["clean"].mean, "x", seed)
        for name, value in found.items()
        if name != "clean"
    ]
    capped = found["all three"].lengths.clamp(max=cap).double().mean().item()
    area = area_under_curve(found["clean"].anomaly, found["all three"].anomaly)
    measured += [
        Measurement("cap at the 99.5th percentile of clean captions", cap, "letters", seed),
        Measurement("caption, all three, under the cap", capped, "letters", seed),
        Measurement("anomaly score tells all three from clean", area, "AUC", seed),
    ]
    gain, error = found["all three"].above(found["EOS loss"])
    over_noise, noise_error = found["EOS loss"].above(found["noise"])
    return Outcome(
        held=gain > 2 * error and over_noise > -2 * noise_error,
        needs="captions with all three losses are longer than with the EOS loss alone, by more "
        "than two standard errors over the images, and those not shorter than with random noise "
        "of the same size (by more than two standard errors)",
        measurements=measured,
        reason=f"all three over EOS alone: {gain:+.1f} ± {error:.1f} letters; EOS alone over "
        f"noise: {over_noise:+.1f} ± {noise_error:.1f}",
        figure=lambda figure: plot(figure, found, cap),
    )


@dataclass(frozen=True)
class Lengths:
    """Lengths [draws, images] and the anomaly score of each caption."""

    lengths: Tensor
    anomaly: Tensor

    @property
    def mean(self) -> float:
        return float(self.lengths.double().mean())

    def above(self, other: Lengths) -> tuple[float, float]:
        """Mean difference over images, and its standard error."""
        return mean_and_error((self.lengths.double() - other.lengths.double()).mean(0))


class Captioner(nn.Module):
    """Pixels [B, 8, 8] in 0..1 -> four embeddings -> letters."""

    def __init__(self, seed: int):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
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
        return generate_from(
            self.writer, *self.prefix(images), [END], LIMIT, generator=generator, top_p=TOP_P
        )

    def read(self, images: Tensor, texts: Generated) -> Any:
        return read_from(self.writer, *self.prefix(images), texts)

    @torch.no_grad()
    def anomaly(self, images: Tensor, texts: Generated) -> Tensor:
        repeated = images.repeat(len(texts.tokens) // len(images), 1, 1)
        read = read_from(self.writer, *self.prefix(repeated), texts, hidden=False)
        return length_anomaly(*anomaly_inputs(read, [END]))


def digit_images() -> tuple[Tensor, Tensor]:
    """The 1,797 handwritten digits that scikit-learn ships: [N, 8, 8] in 0..1, and which."""
    require_extra("reading digits", "sklearn")
    from sklearn.datasets import load_digits

    data: Any = load_digits()
    return torch.tensor(data.images, dtype=torch.float32) / 16, torch.tensor(data.target)


def caption(digit: int, ink: float, draw: torch.Generator) -> str:
    """A name and adjectives; one more follows with probability 0.1 + 0.7 ink, ink in 0..1."""
    text = NAMES[digit]
    while len(text) < LONGEST - 5 and float(torch.rand((), generator=draw)) < 0.1 + 0.7 * ink:
        text += ADJECTIVES[int(torch.randint(len(ADJECTIVES), (), generator=draw))]
    return text


def trained(images: Tensor, digits: Tensor, seed: int) -> Captioner:
    """A captioner of these images; every step draws new captions."""
    captioner = Captioner(seed)
    ink = images.mean((1, 2)).argsort().argsort() / len(images)  # as a share of the images

    def loss(step: int, draw: torch.Generator) -> Tensor:
        rows = torch.randint(len(images), (BATCH,), generator=draw)
        written = [
            [*map(LETTERS.index, caption(int(digits[row]), float(ink[row]), draw)), END]
            for row in rows
        ]
        lengths = torch.tensor([len(row) for row in written])
        width = int(lengths.max())
        tokens = torch.tensor([row + [END] * (width - len(row)) for row in written])
        read = captioner.read(images[rows], Generated(tokens, lengths))
        return cross_entropy(read.logits[read.mask], tokens[read.mask])

    fit(
        loss,
        captioner,
        steps=TRAINING,
        learning_rate=3.1e-3,
        schedule=linear(end=1 / 31),
        optimizer=torch.optim.Adam,
        clip=None,
        seed=seed,
    )
    return captioner.eval().requires_grad_(False)


def area_under_curve(negative: Tensor, positive: Tensor) -> float:
    """The chance that a positive scores above a negative; ties count half."""
    gap = positive[:, None] - negative
    return float(((gap > 0).double() + 0.5 * (gap == 0).double()).mean())


def plot(figure: Any, found: dict[str, Lengths], cap: int) -> None:
    """Lengths of captions, and the cap; the anomaly scores."""
    lengths, scores = figure.subplots(1, 2)
    for name in ("clean", "noise", "EOS loss", "all three"):
        lengths.hist(
            found[name].lengths.flatten().numpy(), bins=range(0, LIMIT + 5, 4), histtype="step",
            label=name,
        )  # fmt: skip
    lengths.axvline(cap, linestyle="--", color="grey")
    lengths.set(xlabel="letters", ylabel="captions")
    lengths.legend()
    for name in ("clean", "all three"):
        scores.hist(found[name].anomaly.numpy(), bins=20, histtype="step", label=name)
    scores.set(xlabel="length anomaly (nats)")
    scores.legend()


PAPER = Paper(
    number=66,
    key="verbose-images",
    title="Inducing High Energy-Latency of Large Vision-Language Models with Verbose Images",
    arxiv="2401.11170",
    role="analysis",
    family="control",
    claim="Delaying the end, flattening the next-token distributions and diversifying hidden "
    "states together make texts longer than delaying the end alone, within a small perturbation.",
    reproduce=reproduce,
    threads=1,
)
