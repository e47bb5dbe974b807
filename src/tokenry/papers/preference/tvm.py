"""TVM: token values from shared prefixes against outcome labels, on running maxima.

A question lists five digits; its solution goes through them, a step for each, and writes down the
largest so far. A small transformer is fitted to solutions with slips, about half of which end
right; 48 of its own solutions to each training question teach two value models that differ in
their targets only: the pass rate of every prefix (TVM), or the outcome at every token (ORM). On
other questions they tell right from wrong halfway, and guide a stepwise beam.
"""

from __future__ import annotations

import copy
from statistics import mean
from typing import Any

import torch
from torch import Tensor

from tokenry.core.batch import TokenBatch
from tokenry.decode.rollouts import rollouts
from tokenry.decode.search import stepwise_beam_search
from tokenry.lab.toy_model import toy_model
from tokenry.learn.compute import compute_loss
from tokenry.learn.data.precompute import joined_batch
from tokenry.learn.fit import fit
from tokenry.learn.rewards.token_value import TVM, TokenValueModel, prefix_values
from tokenry.model.score import score
from tokenry.papers.base import Measurement, Outcome, Paper

RUNS = 2
VALUES, DIGITS = 8, 5
COMMA, EQUALS, STEP, END = range(VALUES, VALUES + 4)
LENGTH = 2 * (DIGITS - 1)  # a digit and a delimiter for each step
FIT_STEPS, FIT_BATCH, FIT_RATE = 250, 64, 3e-3
SLIP = 0.2  # of the fitted solutions' steps: random digits, from which they go on
QUESTIONS, SAMPLES, TESTS, TEST_SAMPLES, SEARCHED = 200, 48, 200, 8, 60
STEPS, BATCH, RATE = 200, 64, 1e-3
WIDTH, CANDIDATES = 2, 8


def reproduce(seed: int) -> Outcome:
    measurements, table, drawn = [], {}, []
    for run in range(RUNS):
        at = seed * 100 + run
        rows, paths = compare(at)
        drawn = drawn or paths
        for label, value in rows.items():
            table.setdefault(label, []).append(value)
            measurements.append(Measurement(label, value, "", at))
    average = {label: mean(values) for label, values in table.items()}
    halfway = [average[f"{name}: AUC at the middle step"] for name in ("tvm", "orm")]
    beam = [average[f"{name}: accuracy of stepwise beam search"] for name in ("tvm", "orm")]
    single = average["generator: accuracy of a sample"]
    failed = [
        text
        for text, good in (
            ("TVM's AUC is not above ORM's", halfway[0] > halfway[1]),
            ("TVM's beam is below ORM's", beam[0] >= beam[1]),
            ("ORM's beam is not above a sample", beam[1] > single),
        )
        if not good
    ]
    return Outcome(
        held=not failed,
        needs=f"means over {RUNS} runs: at the middle step TVM's values separate right from wrong "
        "solutions better than ORM's (AUC); accuracy of stepwise beam search with TVM >= with ORM "
        "> that of a single sample",
        measurements=measurements,
        reason=f"AUC {halfway[0]:.3f} (TVM) and {halfway[1]:.3f} (ORM); accuracy of the beam "
        f"{beam[0]:.2f} and {beam[1]:.2f}, of a sample {single:.2f}"
        + "".join(f"; {text}" for text in failed),
        figure=lambda figure: _draw(figure, drawn),
    )


def compare(seed: int) -> tuple[dict[str, float], list[tuple[str, list[float]]]]:
    """AUCs and accuracies; and the values along a right and a wrong solution."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(VALUES**DIGITS, generator=generator)
    digits = torch.cartesian_prod(*[torch.arange(VALUES)] * DIGITS)[order].tolist()
    train, test = digits[:QUESTIONS], digits[QUESTIONS : QUESTIONS + TESTS]
    model = fitted(seed, generator)
    prompts, solutions, outcomes = sampled(model, train, SAMPLES, seed)
    by_prefix, by_outcome = [], []
    for start in range(0, len(solutions), SAMPLES):
        part = slice(start, start + SAMPLES)
        rate = mean(outcomes[part])
        for values in prefix_values(solutions[part], outcomes[part]):
            by_prefix.append([rate, *values][:-1])  # of what stands before each token
    by_outcome = [[outcome] * len(ids) for ids, outcome in zip(solutions, outcomes, strict=True)]
    held_out = sampled(model, test, TEST_SAMPLES, seed + 1)
    found = {"generator: accuracy of a sample": mean(held_out[2])}
    paths = []
    for name, targets in (("tvm", by_prefix), ("orm", by_outcome)):
        judge = value_model(model, prompts, solutions, targets, seed)
        values = judged(judge, held_out[0], held_out[1])  # [N, LENGTH]
        right = torch.tensor(held_out[2]).bool()
        for step in range(DIGITS - 1):
            label = "the middle step" if step == (DIGITS - 1) // 2 else f"step {step + 1}"
            found[f"{name}: AUC at {label}"] = auc(values[:, min(2 * step + 1, LENGTH - 2)], right)
        found[f"{name}: accuracy of stepwise beam search"] = searched(model, judge, test, seed)
        for kind, rows in (("right", right), ("wrong", ~right)):
            paths.append((f"{name}, {kind}", values[rows].mean(0)[:-1].tolist()))
    return found, paths


def prompt(digits: list[int]) -> list[int]:
    """d , d , ... , d =, two tokens a digit as the solution has two a step."""
    return [*[token for digit in digits for token in (digit, COMMA)][:-1], EQUALS]


def solution(digits: list[int], generator: torch.Generator) -> list[int]:
    """Every running maximum with its delimiter, some with a slip."""
    ids, largest = [], digits[0]
    slips = torch.rand(len(digits), generator=generator).tolist()
    for digit, slip in zip(digits[1:], slips, strict=False):
        largest = max(largest, digit)
        if slip < SLIP:
            largest = int(torch.randint(VALUES, (1,), generator=generator))
        ids += [largest, STEP]
    return [*ids[:-1], END]


def fitted(seed: int, generator: torch.Generator) -> Any:
    """A transformer fitted to solutions with slips."""
    model = toy_model(END + 1, 2048, seed)

    def loss(step: int, generator: torch.Generator) -> Tensor:
        digits = torch.randint(VALUES, (FIT_BATCH, DIGITS), generator=generator).tolist()
        solutions = [solution(question, generator) for question in digits]
        batch = joined_batch([prompt(question) for question in digits], solutions)
        logprob = score(model, batch, ("logprob",), grad=True).need("logprob")
        return -logprob.sum() / batch.target.sum()

    fit(loss, model, steps=FIT_STEPS, learning_rate=FIT_RATE, clip=None, seed=generator)
    return model.eval().requires_grad_(False)


def sampled(
    model: Any, digits: list[list[int]], copies: int, seed: int
) -> tuple[list[list[int]], list[list[int]], list[float]]:
    """Prompts, sampled solutions and whether their last digit is right, question by question."""
    prompts = [prompt(question) for question in digits]
    drawn = rollouts(model, prompts, copies, max_new_tokens=LENGTH, seed=seed)
    rows = [(p, s, d) for p, d, texts in zip(prompts, digits, drawn, strict=True) for s in texts]
    outcomes = [float(s[-2] == max(d)) for _, s, d in rows]
    return [p for p, *_ in rows], [s for _, s, _ in rows], outcomes


def value_model(
    model: Any,
    prompts: list[list[int]],
    solutions: list[list[int]],
    targets: list[list[float]],
    seed: int,
) -> TokenValueModel:
    """The generator's trunk with a value head, trained on the targets."""
    trunk, goal = copy.deepcopy(model).requires_grad_(True), TVM()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        head = goal.modules(trunk)
    weights = [*trunk.parameters(), *head.parameters()]
    value = torch.zeros(len(prompts), len(prompts[0]) + LENGTH)
    value[:, -LENGTH:] = torch.tensor(targets)
    whole: TokenBatch = joined_batch(prompts, solutions).with_columns(value=value)

    def loss(step: int, generator: torch.Generator) -> Tensor:
        batch = whole.select(torch.randint(len(prompts), (BATCH,), generator=generator))
        return compute_loss(goal, batch, trunk, modules=head).loss

    fit(loss, weights, steps=STEPS, learning_rate=RATE, clip=None, seed=seed)
    return TokenValueModel(trunk.eval(), head).requires_grad_(False)


@torch.no_grad()
def judged(judge: TokenValueModel, prompts: list[list[int]], solutions: list[list[int]]) -> Tensor:
    """Values after every token of the solutions, [N, LENGTH]."""
    batch = joined_batch(prompts, solutions)
    return judge(batch.ids, batch.attention)[:, -LENGTH:]


def auc(values: Tensor, right: Tensor) -> float:
    """How often a right solution is valued above a wrong one; ties count half."""
    gap = values[right][:, None] - values[~right][None]
    return float((gap > 0).double().mean() + 0.5 * (gap == 0).double().mean())


def searched(model: Any, judge: TokenValueModel, digits: list[list[int]], seed: int) -> float:
    """Accuracy of stepwise beam search under the value model."""
    generator, scorer = torch.Generator().manual_seed(seed), judge.scorer(ends=[END])
    found = []
    for question in digits[:SEARCHED]:
        best = stepwise_beam_search(
            model,
            prompt(question),
            scorer,
            step_end=lambda ids: ids[-1] == STEP,
            max_steps=DIGITS - 1,
            width=WIDTH,
            candidates=CANDIDATES,
            max_step_tokens=2,
            ends=[END],
            seed=generator,
        ).best
        found.append(float(len(best) >= 2 and best[-2] == max(question)))
    return mean(found)


def _draw(figure: Any, paths: list[tuple[str, list[float]]]) -> None:
    axes = figure.subplots()
    for name, values in paths:
        style = "-" if name.startswith("tvm") else "--"
        axes.plot(range(1, len(values) + 1), values, style, marker="o", label=name)
    axes.set(xlabel="tokens of the solution", ylabel="mean value")
    axes.legend()


PAPER = Paper(
    number=46,
    key="tvm",
    title="Token-Supervised Value Models for Enhancing Mathematical Reasoning Capabilities of "
    "Large Language Models",
    arxiv="2407.12863",
    role="objective",
    family="preference",
    claim="Value models taught the pass rate of every sampled prefix judge partial solutions "
    "better than those taught outcomes, and guide stepwise search better.",
    reproduce=reproduce,
    threads=1,
)
