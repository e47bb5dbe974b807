"""TAB-PO on a synthetic annotation task: does the barrier keep the chosen labels probable?

An input of 8 symbols is to be annotated with a fixed scaffold of 12 tokens that holds two labels.
Each label follows from the symbols by a rule, and the corpus obeys it only most of the time, so
that a tiny transformer, tuned on the corpus, confuses labels. Pairs differ in one label: the
rejected answer has the class that the tuned model confuses with it most. DPO and TAB-PO train
from the tuned model on the same pairs.
"""

from __future__ import annotations

import copy
from statistics import mean
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from tokenry.core.batch import TokenBatch
from tokenry.lab.toy_model import toy_model
from tokenry.learn.compute import compute_loss
from tokenry.learn.fit import fit
from tokenry.learn.preference.dpo import DPO
from tokenry.learn.preference.tab_po import TABPO, difference_weights
from tokenry.learn.reference import FrozenModel
from tokenry.model.score import score
from tokenry.papers.base import Measurement, Outcome, Paper

SEEDS = 2
SYMBOLS, LABELS, LENGTH = 12, 6, 8  # ids 0-11 symbols, 12-17 labels, 18-29 the scaffold's tokens
FIRST_LABEL, SCAFFOLD = SYMBOLS, SYMBOLS + LABELS
VOCABULARY = SCAFFOLD + 13
LABEL_PLACES = (4, 10)  # in the completion of 14 tokens
NOISE = 0.25  # of the corpus: how often a label is any class
STEPS, BATCH, BETA = 120, 32, 0.5
RATES = (1e-4, 3e-4)


class Point(NamedTuple):
    """A policy measured on held-out inputs: exact matches of both labels, and mean log p of the
    right label and of its most confusable class."""

    step: int
    exact: float
    right: float
    confused: float


def reproduce(seed: int) -> Outcome:
    """Two seeds, `10 * seed` and `10 * seed + 1`."""
    found = [trajectories(10 * seed + offset) for offset in range(SEEDS)]
    names = list(found[0])
    measurements = [
        Measurement(f"{name}: {what}", value, unit, 10 * seed + offset)
        for offset, ways in enumerate(found)
        for name in names
        for what, value, unit in (
            ("exact match of both labels", ways[name][-1].exact, ""),
            ("log p of the right label", ways[name][-1].right, "nats"),
            ("log p of its most confusable class", ways[name][-1].confused, "nats"),
        )
    ]

    def average(name: str, field: str) -> float:
        """Of both seeds, at the learning rate that gives the method more exact matches."""
        rates = [way for way in names if way.startswith(name)]
        points = [[ways[way][-1] for ways in found] for way in rates]
        best = max(points, key=lambda ends: sum(point.exact for point in ends))
        return mean(getattr(point, field) for point in best)

    exact = {name: average(name, "exact") for name in ("sft", "dpo", "tab-po")}
    right = {name: average(name, "right") for name in exact}
    held = exact["tab-po"] > max(exact["sft"], exact["dpo"]) and right["tab-po"] > right["sft"]
    figures = "; ".join(
        f"{name}: exact match {exact[name]:.3f}, log p of the right label {right[name]:.2f}"
        for name in exact
    )
    return Outcome(
        held=held,
        needs="means over 2 seeds: TAB-PO's exact match on held-out inputs is above the tuned "
        "model's and above DPO's, each method at the better of two learning rates, and the right "
        "label's log-probability rises",
        measurements=measurements,
        reason=figures,
        figure=lambda figure: _draw(figure, found[0]),
    )


def trajectories(seed: int) -> dict[str, list[Point]]:
    """The tuned model, and DPO and TAB-PO at both learning rates, on one task."""
    generator = torch.Generator().manual_seed(seed)
    rule = torch.randint(LABELS, (2, SYMBOLS), generator=generator)
    tuned = tune(seed, rule, generator)
    inputs, labels = sample(rule, 600, generator, noise=0.0)
    rival = confusions(tuned, inputs, labels)
    pairs = make_pairs(rule, rival, 1500, generator)
    test = sample(rule, 500, generator, noise=0.0)
    goals = {"dpo": DPO(BETA), "tab-po": TABPO(BETA)}
    found = {"sft": [measure(tuned, test, rival, 0)]}
    for rate in RATES:
        for name, goal in goals.items():
            found[f"{name}, rate {rate:g}"] = train(goal, rate, tuned, pairs, test, rival, seed)
    return found


def sample(
    rule: Tensor, count: int, generator: torch.Generator, noise: float
) -> tuple[Tensor, Tensor]:
    """Inputs [count, 8] and their two labels [count, 2].

    The first label is ruled by the most frequent symbol of the first half, the second by that of
    the second half (the smallest one of equals).
    """
    inputs = torch.randint(SYMBOLS, (count, LENGTH), generator=generator)
    halves = inputs.view(count, 2, LENGTH // 2)
    counts = torch.nn.functional.one_hot(halves, SYMBOLS).sum(2)
    labels = torch.stack([rule[side, counts[:, side].argmax(-1)] for side in range(2)], 1)
    wrong = torch.rand(labels.shape, generator=generator) < noise
    other = torch.randint(LABELS, labels.shape, generator=generator)
    return inputs, torch.where(wrong, other, labels)


def answers(labels: Tensor) -> Tensor:
    """The scaffold with the labels in it, [count, 14]."""
    scaffold = torch.arange(SCAFFOLD, SCAFFOLD + 12).expand(len(labels), -1)
    pieces = [scaffold[:, :4], labels[:, :1] + FIRST_LABEL, scaffold[:, 4:9]]
    return torch.cat([*pieces, labels[:, 1:] + FIRST_LABEL, scaffold[:, 9:]], 1)


def as_batch(inputs: Tensor, completions: Tensor, group: Tensor | None = None) -> TokenBatch:
    """Rows of start mark, input and completion; the completion counts."""
    start = inputs.new_full((len(inputs), 1), VOCABULARY - 1)
    ids = torch.cat([start, inputs, completions], 1)
    target = torch.zeros_like(ids, dtype=torch.bool)
    target[:, 1 + LENGTH :] = True
    return TokenBatch(ids, torch.ones_like(target), target, group)


def tune(seed: int, rule: Tensor, generator: torch.Generator, steps: int = 250) -> Any:
    """A 2-layer transformer tuned on the noisy corpus."""
    model = toy_model(VOCABULARY, 32, seed, width=48)

    def loss(step: int, generator: torch.Generator) -> Tensor:
        inputs, labels = sample(rule, 64, generator, NOISE)
        batch = as_batch(inputs, answers(labels))
        logits = model(batch.ids[:, :-1], use_cache=False).logits[:, LENGTH:]
        return cross_entropy(logits.flatten(0, 1), batch.ids[:, 1 + LENGTH :].flatten())

    fit(loss, model, steps=steps, learning_rate=3e-3, clip=None, seed=generator)
    return model.eval().requires_grad_(False)


@torch.no_grad()
def label_logprobs(model: Any, inputs: Tensor, labels: Tensor) -> Tensor:
    """log p of every class at both label places behind the right scaffold, [count, 2, 6]."""
    batch = as_batch(inputs, answers(labels))
    hidden = score(model, batch, needs=("hidden",))
    places = torch.zeros_like(batch.target)
    places[:, [1 + LENGTH + place for place in LABEL_PLACES]] = True
    logprobs = hidden.logits(places).log_softmax(-1).view(len(inputs), 2, -1)
    return logprobs[..., FIRST_LABEL:SCAFFOLD]


def confusions(model: Any, inputs: Tensor, labels: Tensor) -> Tensor:
    """For each place and class, the class that the model most often takes for it, [2, 6]."""
    probability = label_logprobs(model, inputs, labels).exp()
    totals = torch.zeros(2, LABELS, LABELS)
    for side in range(2):
        totals[side].index_add_(0, labels[:, side], probability[:, side])
    totals.diagonal(dim1=1, dim2=2).zero_()
    return totals.argmax(-1)


def make_pairs(
    rule: Tensor, rival: Tensor, count: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs, right answers, and answers with one label swapped for its rival."""
    inputs, labels = sample(rule, count, generator, noise=0.0)
    side = torch.randint(2, (count,), generator=generator)
    swapped = labels.clone()
    rows = torch.arange(count)
    swapped[rows, side] = rival[side, labels[rows, side]]
    return inputs, answers(labels), answers(swapped)


def train(
    goal: Any,
    rate: float,
    tuned: Any,
    pairs: tuple[Tensor, Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    rival: Tensor,
    seed: int,
) -> list[Point]:
    """A copy of the tuned model trained by the objective, measured on the way."""
    policy, reference = copy.deepcopy(tuned).requires_grad_(True), FrozenModel(tuned)
    points = [measure(policy, test, rival, 0)]

    def loss(step: int, generator: torch.Generator) -> Tensor:
        index = torch.randint(len(pairs[0]), (BATCH,), generator=generator)
        inputs, chosen, rejected = (part[index] for part in pairs)
        batch = as_batch(
            inputs.repeat(2, 1), torch.cat([chosen, rejected]), torch.arange(BATCH).repeat(2)
        )
        weight = torch.zeros(batch.shape)
        weight[batch.target] = token_weights(chosen, rejected).flatten()
        batch = batch.with_columns(weight=weight)
        return compute_loss(goal, batch, policy, reference).loss

    fit(
        loss,
        policy,
        steps=STEPS,
        learning_rate=rate,
        seed=seed,
        observe=lambda step, _: points.append(measure(policy, test, rival, step)),
        every=30,
    )
    return points


def token_weights(chosen: Tensor, rejected: Tensor) -> Tensor:
    """Both labels are codes (1.1); where the answers differ, 1.2 times that. [2B, 14]"""
    rows = []
    for ids, others in ((chosen, rejected), (rejected, chosen)):
        for one, other in zip(ids.tolist(), others.tolist(), strict=True):
            factors = difference_weights(one, other)
            rows.append([f * (1.1 if i in LABEL_PLACES else 1) for i, f in enumerate(factors)])
    return torch.tensor(rows)


def measure(policy: Any, test: tuple[Tensor, Tensor], rival: Tensor, step: int) -> Point:
    inputs, labels = test
    logprobs = label_logprobs(policy, inputs, labels)
    side = torch.arange(2).expand(len(labels), -1)
    right = logprobs.gather(-1, labels[..., None])
    confused = logprobs.gather(-1, rival[side, labels][..., None])
    exact = (logprobs.argmax(-1) == labels).all(-1).float().mean()
    return Point(step, float(exact), float(right.mean()), float(confused.mean()))


def _draw(figure: Any, ways: dict[str, list[Point]]) -> None:
    axes = figure.subplots()
    for name, points in ways.items():
        if name == "sft":
            continue
        (line,) = axes.plot([p.step for p in points], [p.right for p in points], label=name)
        axes.plot(
            [p.step for p in points], [p.confused for p in points], "--", color=line.get_color()
        )
    axes.set(xlabel="step", ylabel="log p of the right (line) and the confusable label (dashed)")
    axes.legend()


PAPER = Paper(
    number=123,
    key="tab-po",
    title="Preference Optimization with a Token-Level Adaptive Barrier for Token-Critical "
    "Structured Generation",
    arxiv="2603.00025",
    role="objective",
    family="preference",
    claim="Token weights and a likelihood barrier under improbable chosen tokens raise F1 of "
    "structured clinical annotation over supervised tuning by about 4% (PV-Miner).",
    reproduce=reproduce,
    threads=1,
)
