"""Balanced Aggregation on written sums, whose good and bad answers differ in length.

GRPO (a mean of completions' means), a mean over all tokens and Balanced Aggregation see the same
prompts and as many tokens, each at the better of two learning rates. What good answers pull against
bad ones is exact and measured on the base policy's own answers.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from tokenry.core.aggregate import per_sequence
from tokenry.lab.outcome import Outcome, verdict
from tokenry.lab.plots import bars
from tokenry.lab.policy_bench import PolicyBench, add_of_bases, against_grpo
from tokenry.lab.scale import Scale
from tokenry.lab.table import Evidence
from tokenry.learn.policy.balanced import Balanced
from tokenry.learn.policy.groups import balanced_weights, group_advantage
from tokenry.learn.policy.presets import GRPO
from tokenry.papers.base import Paper

METHODS = {"token mean": replace(GRPO().composed(), aggregation="token-mean"), "ba": Balanced()}
PULL = "pull of bad answers to that of good ones"


def pulls(bench: PolicyBench) -> dict[str, float]:
    """sum |w A| over bad answers' tokens / that over good ones', of the base's answers, under the
    weights w of the two aggregations; a mean over prompts whose answers differ."""
    batch, correct = bench.answers(bench.base, bench.judged, 8)
    group = bench.asked_by(8)
    advantage = group_advantage(correct.double(), group, eps=0.0)[:, None]
    tokens = advantage.expand(batch.shape).masked_fill(~batch.target, 0.0)
    weights = balanced_weights(tokens, batch.target, group)
    ratios: dict[str, float] = {}
    for name, weight in {"token mean": torch.ones_like(weights), "ba": weights}.items():
        mass = per_sequence(weight * tokens, batch.target, "sum")
        good, bad = (
            torch.zeros(bench.judged, dtype=mass.dtype).index_add(0, group, side)
            for side in (mass.clamp_min(0), (-mass).clamp_min(0))
        )
        ratios[f"{name}: {PULL}"] = (
            float((bad / good)[good > 0].mean()) if bool((good > 0).any()) else 1.0
        )
    return ratios


def reproduce(seed: int, scale: Scale = "full") -> Outcome:
    """Five benches, seeds from `100 seed`."""
    table = against_grpo(METHODS, seed, scale)
    add_of_bases(table, pulls, seed, scale)
    start = table.values("before: length")
    for name in ("grpo", *METHODS):
        for number, length in table.values(f"{name}: length").items():
            table.add(f"{name}: drift of the length", abs(length - start[number]), "tokens", number)
    rewards = {name: table.mean(f"{name}: pass@1") for name in ("grpo", *METHODS)}
    worse = min(("grpo", "token mean"), key=rewards.__getitem__)
    ratio = table.values(f"ba: {PULL}").values()
    return verdict(
        table,
        {
            "under BA bad answers pull as hard as good ones, to a millionth": Evidence(
                tuple(1e-6 - abs(value - 1) for value in ratio), exact=True
            ),
            "the length drifts less under BA than under a mean over all tokens": table.gap(
                "token mean: drift of the length", "ba: drift of the length"
            ),
            f"BA's reward is not below that of the worse other one ({worse}) by 0.02": table.gap(
                "ba: pass@1", f"{worse}: pass@1", by=-0.02
            ),
        },
        plots=[bars({"pass@1": rewards}, "right answers")],
    )


PAPER = Paper(
    number=117,
    key="balanced",
    title="Balanced Aggregation: Understanding and Fixing Aggregation Bias in GRPO",
    arxiv="2605.04077",
    role="objective",
    family="policy",
    claim="Averaging the tokens of good and of bad completions apart takes their lengths out of "
    "how hard they pull, and trains more stably than a mean over all tokens.",
    reproduce=reproduce,
    threads=1,
)
