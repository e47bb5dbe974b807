"""DPH-RL on splits of a sum: does a divergence on stored answers keep the many right ones?

Every split of a number is a right answer. Numbers that the base policy splits rightly six times of
eight are mastered: its right answers to them are the rehearsal. GRPO, with and without reverse KL,
and DPH-RL with two divergences explore the others on as many tokens, at the better of two rates.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch

from tokenry.lab.on_policy_world import roll_out
from tokenry.lab.outcome import Outcome, verdict
from tokenry.lab.plots import bars
from tokenry.lab.policy_bench import RATES, Outcomes, PolicyBench, add_at_better_rates, bench_sizes
from tokenry.lab.scale import Scale, at
from tokenry.lab.table import Table, over_seeds
from tokenry.learn.policy.dph_rl import DPHRL, partition_prompts
from tokenry.learn.policy.presets import GRPO
from tokenry.learn.policy.scored_rehearsal import RehearsalBuffer
from tokenry.papers.base import Paper
from tokenry.tasks.worlds.split_sums import SplitSums

DRAWS, MASTERED, SIZE = 8, 6, 32
OURS = ("forward_kl", "js")
NAMES = ("before", "grpo", "reverse kl", *OURS)


def parted(bench: PolicyBench, world: SplitSums) -> tuple[torch.Tensor, RehearsalBuffer]:
    """The numbers to explore, and the base's right answers to the others."""
    numbers, asked = torch.arange(world.largest + 1), world.asked
    settings: dict[str, Any] = {"samples": DRAWS, "max_new_tokens": world.longest, "eos": world.end}
    batch = roll_out(bench.base, world.asking(numbers), seed=bench.seed, **settings)
    right, number = world.correct(batch), batch.ids[:, 0] * 10 + batch.ids[:, 1]
    counts = torch.bincount(number[right], minlength=len(numbers))
    mastered, others = partition_prompts(counts, DRAWS, MASTERED)
    if not len(mastered):  # at smoke scale the base masters nothing: what it wrote has to do
        mastered, others, right = numbers, numbers, batch.target[:, asked]
    stored = batch.ids[right & torch.isin(number, mastered)].tolist()
    rows = [(row[:asked], row[asked : asked + world.longest]) for row in stored]
    return others, RehearsalBuffer.scored(rows, bench.base, SIZE)


def outcomes(number: int, table: Table, world: SplitSums, sizes: dict[str, Any]) -> Outcomes:
    bench = PolicyBench(number, world=world, level=0.6, **sizes)
    table.add_all(bench.measure(bench.base), "", number, "before")
    others, rehearsal = parted(bench, world)
    explored = replace(world, numbers=tuple(others.tolist())).prompts
    objectives: dict[str, Any] = {"grpo": GRPO(), "reverse kl": GRPO(beta=0.1)}
    objectives |= {kind: DPHRL(kind=kind, eta=0.1, rehearsal=rehearsal) for kind in OURS}
    return {
        (name, rate): bench.outcome(objective, rate, prompts=explored)
        for name, objective in objectives.items()
        for rate in RATES
    }


def reproduce(seed: int, scale: Scale = "full") -> Outcome:
    """Five benches, seeds from `100 seed`."""
    seeds, sizes = bench_sizes(scale)
    table, world = Table(), SplitSums(at(scale, full=99, smoke=4))
    run = partial(outcomes, table=table, world=world, sizes={"tokens": 40_000} | sizes)
    add_at_better_rates(table, over_seeds(run, seed, seeds))
    rows = {k: {n: table.mean(f"{n}: {k}") for n in NAMES} for k in ("pass@1", "different")}
    return verdict(
        table,
        {
            f"with {name} a prompt gets more different right answers than with {other}": table.gap(
                f"{name}: different", f"{other}: different"
            )
            for name in OURS
            for other in ("grpo", "reverse kl")
        }
        | {
            f"and with {name} right answers are not rarer than with grpo, by 0.03": table.gap(
                f"{name}: pass@1", "grpo: pass@1", by=-0.03
            )
            for name in OURS
        },
        plots=[bars({k: v}, k) for k, v in rows.items()],
    )


PAPER = Paper(
    number=175,
    key="dph-rl",
    title="The Choice of Divergence: A Neglected Key to Mitigating Diversity Collapse in RL with "
    "Verifiable Reward",
    arxiv="2509.07430",
    role="objective",
    family="policy",
    claim="A mass-covering divergence on the first policy's right answers keeps more different "
    "solutions than GRPO with or without a reverse KL, at as much accuracy.",
    reproduce=reproduce,
    threads=1,
)
