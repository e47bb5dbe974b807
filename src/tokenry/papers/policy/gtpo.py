"""GTPO beside GRPO on written sums: no clip, no reference, shared tokens never pushed down.

Right and wrong answers to a sum share how they begin ("1", "15,", a wrong last digit) and all share
their end, so that GRPO pushes down in wrong answers what right ones need. Both see the same prompts
and as many tokens, each at the better of two learning rates.
"""

from __future__ import annotations

from tokenry.lab.outcome import Outcome, verdict
from tokenry.lab.plots import bars
from tokenry.lab.policy_bench import PolicyBench, add_of_bases, against_grpo
from tokenry.lab.scale import Scale
from tokenry.lab.table import Evidence
from tokenry.learn.policy.conflicts import conflict_runs
from tokenry.learn.policy.groups import group_advantage
from tokenry.learn.policy.gtpo import GTPO
from tokenry.papers.base import Paper

SHARED = "tokens of wrong answers that are protected"


def protected(bench: PolicyBench) -> float:
    """The share of wrong answers' tokens that stand in a run shared with a right one."""
    batch, correct = bench.answers(bench.base, bench.judged, 8)
    advantage = group_advantage(correct.double(), (group := bench.asked_by(8)))
    runs = conflict_runs(batch.ids, batch.target, advantage, group)
    wrong = (advantage < 0)[:, None] & batch.target
    return float(((runs[0] | runs[1]) & wrong).sum() / wrong.sum().clamp_min(1))


def reproduce(seed: int, scale: Scale = "full") -> Outcome:
    """Five benches, seeds from `100 seed`."""
    table = against_grpo({"gtpo": GTPO()}, seed, scale)
    add_of_bases(table, lambda bench: {SHARED: protected(bench)}, seed, scale)
    names = ("before", "grpo", "gtpo")
    passed = {k: {n: table.mean(f"{n}: {k}") for n in names} for k in ("pass@1", "pass@8")}
    return verdict(
        table,
        {
            "right answers more often than before": table.gap("gtpo: pass@1", "before: pass@1"),
            "and not less often than with GRPO, by 0.02": table.gap(
                "gtpo: pass@1", "grpo: pass@1", by=-0.02
            ),
            "the reward changes less from step to step than under GRPO": table.gap(
                "grpo: roughness", "gtpo: roughness"
            ),
            "pass@8 is above GRPO's": table.gap("gtpo: pass@8", "grpo: pass@8"),
            "some tokens of wrong answers are protected": Evidence(
                tuple(table.values(SHARED).values()), exact=True
            ),
        },
        plots=[bars(passed, "share of prompts")],
    )


PAPER = Paper(
    number=146,
    key="gtpo",
    title="GTPO: Trajectory-Based Policy Optimization in Large Language Models",
    arxiv="2508.03772",
    role="objective",
    family="policy",
    claim="Never pushing down tokens that right and wrong answers share, and dropping answers of "
    "too much entropy, trains more stably than GRPO, with more right answers among several.",
    reproduce=reproduce,
    threads=1,
)
