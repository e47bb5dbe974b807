"""Continuous chains of thought on signed sums of three digits, against one trace and no thoughts.

All models are the same small transformer, trained as long on the same digits and judged on others:
one answers at once, one writes the partial sums of the best signs, one thinks the distribution of
all signs' partial sums. The last is then trained further by CoT2 with three tokens a thought.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any

import torch
from torch import Tensor

from tokenry.core.batch import TokenBatch
from tokenry.decode.continuous import continuous_generate
from tokenry.lab.on_policy_world import train_on_policy
from tokenry.lab.outcome import Outcome, verdict
from tokenry.lab.plots import curves
from tokenry.lab.scale import Scale, at
from tokenry.lab.table import Table, over_seeds
from tokenry.lab.toy_model import toy_model
from tokenry.lab.toy_training import train_on
from tokenry.learn.policy.cot2 import CoT2
from tokenry.learn.policy.sources.mixtures import Mixtures
from tokenry.learn.pretraining.csft import CSFT, traced_batch
from tokenry.papers.base import Paper
from tokenry.tasks.worlds.signed_sums import part_of, smallest_sum, traces

DIGITS, LARGEST, TOKENS = 3, 9, 3
ASK, FIRST = 10, 11 + DIGITS * LARGEST  # behind the digits; the id of the sum 0
VOCABULARY = FIRST + DIGITS * LARGEST + 1
BUDGETS = {"no thoughts": None, "one trace": 1, "all traces": 2**DIGITS}
MODES: dict[str, Any] = {"no thoughts": "mean", "one trace": "greedy", "all traces": "mean"}


@dataclass(frozen=True)
class Sums:
    """Digits to learn from ("train") or to be judged by ("test")."""

    part: str

    @cached_property
    def digits(self) -> list[tuple[int, ...]]:
        every = product(range(1, LARGEST + 1), repeat=DIGITS)
        return [digits for digits in every if part_of(digits) == self.part]

    @cached_property
    def prompts(self) -> Tensor:
        return torch.tensor([[*digits, ASK] for digits in self.digits])

    def answers(self, prompts: Tensor) -> Tensor:
        """The ids of the smallest sums."""
        return torch.tensor([FIRST + smallest_sum(row[:DIGITS]) for row in prompts.tolist()])

    def given(self, budget: int | None) -> TokenBatch:
        """Prompts with the traces of a budget, None for no thoughts, and the answers."""
        chosen = [traces(digits, budget or 1) for digits in self.digits]
        thoughts = [[[FIRST + v for v in t[: -1 if budget else 0]] for t in own] for own in chosen]
        return traced_batch(self.prompts.tolist(), thoughts, self.answers(self.prompts)[:, None])


TRAIN, TEST = Sums("train"), Sums("test")


def accuracy(model: Any, steps: int, mode: Any, seed: int = 0) -> tuple[float, float]:
    """Right answers to the test's digits, and the entropy of a thought in nats."""
    draw = torch.Generator().manual_seed(seed)
    how: dict[str, Any] = {"tokens": TOKENS, "generator": draw}
    alpha, answers = continuous_generate(model, TEST.prompts, steps, mode, **how)
    right = torch.tensor(answers)[:, 0] == TEST.answers(TEST.prompts)
    return float(right.float().mean()), float(torch.special.entr(alpha).sum(-1).mean())


def taught(budget: int | None, width: int, steps: int, seed: int) -> Any:
    rows = TRAIN.given(budget)

    def batches(draw: torch.Generator) -> TokenBatch:
        return rows.select(torch.randint(len(rows.ids), (128,), generator=draw))

    model, rate = toy_model(VOCABULARY, 16, seed, width=width), 3e-3
    return train_on(batches, CSFT(), model, steps=steps, learning_rate=rate, seed=seed, decay=0.5)


def reproduce(seed: int, scale: Scale = "full") -> Outcome:
    """Three seeds from `100 seed`, at widths of 8 and 24."""
    steps, updates, seeds = at(scale, full=(1000, 50, 3), smoke=(2, 1, 2))
    table, thoughts = Table(), DIGITS - 1

    def run(number: int) -> None:
        for width in (8, 24):
            for name, budget in BUDGETS.items():
                model = taught(budget, width, steps, number)
                share, _ = accuracy(model, thoughts if budget else 0, MODES[name])
                table.add(f"{name}: right, width {width}", share, "", number)
            right = {n: table.values(f"{n}: right, width {width}")[number] for n in BUDGETS}
            table.add(f"gain, width {width}", right["all traces"] - right["one trace"], "", number)
        before, entropy = accuracy(model, thoughts, "mts", number)
        policy, _ = train_on_policy(
            CoT2(), model, TRAIN.prompts,
            lambda batch: (batch.ids[:, -1] == TRAIN.answers(batch.ids)).float(),
            steps=updates, batch_size=128, samples=8, max_new_tokens=DIGITS,
            source=Mixtures(TOKENS, thoughts), learning_rate=3e-4, seed=number,
        )  # fmt: skip
        after, left = accuracy(policy, thoughts, "mts", number)
        table.add_all({"before": before, "after": after}, "", number, "three tokens, right")
        table.add_all({"before": entropy, "after": left}, "nats", number, "entropy of a thought")

    for _ in over_seeds(run, seed, seeds):
        pass
    means = {
        name: [(width, table.mean(f"{name}: right, width {width}")) for width in (8, 24)]
        for name in BUDGETS
    }
    wide = {name: f"{name}: right, width 24" for name in BUDGETS}
    return verdict(
        table,
        {
            "at width 24 all traces are right more often than one": table.gap(
                wide["all traces"], wide["one trace"]
            ),
            "and one more often than no thoughts": table.gap(
                wide["one trace"], wide["no thoughts"]
            ),
            "training by rewards with three tokens a thought loses no right answers, by 0.02": (
                table.gap("three tokens, right: after", "three tokens, right: before", by=-0.02)
            ),
            "and its thoughts have less entropy": table.gap(
                "entropy of a thought: before", "entropy of a thought: after"
            ),
            "at width 8 all traces gain less over one": table.gap(
                "gain, width 24", "gain, width 8"
            ),
        },
        plots=[curves(means, "width", "right answers")],
    )


PAPER = Paper(
    number=129,
    key="cot2",
    title="Continuous Chain of Thought Enables Parallel Exploration and Reasoning",
    arxiv="2505.23648",
    role="objective",
    family="policy",
    claim="Thoughts that are mixtures of tokens follow many traces at once and are right more "
    "often than one trace, where the width can hold them; rewards sharpen them further.",
    reproduce=reproduce,
    threads=1,
)
