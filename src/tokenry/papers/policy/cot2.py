"""Continuous chains of thought on signed sums of three digits, against one trace and no thoughts.

All models are the same small transformer, trained as long on the same digits and judged on others:
one answers at once, one writes the partial sums of the best signs, one thinks the distribution of
all signs' partial sums. The last is then trained further by CoT2 with three tokens a thought.
"""

from __future__ import annotations

from tokenry.decode.continuous import Mode
from tokenry.lab.continuous_sums import DIGITS, TRAIN, accuracy, taught
from tokenry.lab.on_policy_world import train_on_policy
from tokenry.lab.outcome import Outcome, verdict
from tokenry.lab.plots import curves
from tokenry.lab.scale import Scale, at
from tokenry.lab.table import Table, over_seeds
from tokenry.learn.policy.cot2 import CoT2
from tokenry.learn.policy.sources.mixtures import Mixtures
from tokenry.papers.base import Paper

TOKENS, THOUGHTS, WIDTHS = 3, DIGITS - 1, (8, 24)
ARMS: dict[str, tuple[int | None, Mode]] = {
    "no thoughts": (None, "mean"),
    "one trace": (1, "greedy"),
    "all traces": (2**DIGITS, "mean"),
}


def add_run(table: Table, number: int, steps: int, updates: int) -> None:
    """What one seed measures."""
    for width in WIDTHS:
        right = {}
        for name, (budget, mode) in ARMS.items():
            model = taught(budget, width, steps, number)
            right[name], _ = accuracy(model, THOUGHTS if budget else 0, mode)
            table.add(f"{name}: right, width {width}", right[name], "", number)
        table.add(f"gain, width {width}", right["all traces"] - right["one trace"], "", number)
    policy, _ = train_on_policy(
        CoT2(), model, TRAIN.prompts,
        lambda batch: (batch.ids[:, -1] == TRAIN.answers(batch.ids)).float(),
        steps=updates, batch_size=128, samples=8, max_new_tokens=DIGITS,
        source=Mixtures(TOKENS, THOUGHTS), learning_rate=3e-4, seed=number,
    )  # fmt: skip
    for when, one in (("before", model), ("after", policy)):
        right_now, entropy = accuracy(one, THOUGHTS, "mts", TOKENS, number)
        table.add(f"three tokens, right: {when}", right_now, "", number)
        table.add(f"entropy of a thought: {when}", entropy, "nats", number)


def reproduce(seed: int, scale: Scale = "full") -> Outcome:
    """Three seeds from `100 seed`, at widths of 8 and 24."""
    steps, updates, seeds = at(scale, full=(1000, 50, 3), smoke=(2, 1, 2))
    table = Table()
    for _ in over_seeds(lambda number: add_run(table, number, steps, updates), seed, seeds):
        pass
    means = {
        name: [(width, table.mean(f"{name}: right, width {width}")) for width in WIDTHS]
        for name in ARMS
    }
    wide = {name: f"{name}: right, width 24" for name in ARMS}
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
