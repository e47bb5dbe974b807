"""DHPO between GRPO and GSPO on written sums, with three updates on each draw of answers.

All see the same prompts and as many tokens, each at the better of two learning rates. With several
updates the policy leaves the one that wrote the answers, and the ratios and their clips matter.
"""

from __future__ import annotations

from tokenry.lab.outcome import Outcome, verdict
from tokenry.lab.plots import bars
from tokenry.lab.policy_bench import against_grpo
from tokenry.lab.scale import Scale
from tokenry.learn.policy.dhpo import DHPO
from tokenry.learn.policy.presets import GSPO
from tokenry.papers.base import Paper

UPDATES, TOKENS = 3, 40_000
METHODS = {"gspo": GSPO(), "dhpo": DHPO()}


def reproduce(seed: int, scale: Scale = "full") -> Outcome:
    """Five benches, seeds from `100 seed`."""
    table = against_grpo(METHODS, seed, scale, TOKENS, updates=UPDATES)
    rewards = {name: table.mean(f"{name}: pass@1") for name in ("before", "grpo", *METHODS)}
    return verdict(
        table,
        {
            f"DHPO answers right more often than {name.upper()}": table.gap(
                "dhpo: pass@1", f"{name}: pass@1"
            )
            for name in ("grpo", "gspo")
        }
        | {
            "its reward changes less from step to step than GRPO's": table.gap(
                "grpo: roughness", "dhpo: roughness"
            )
        },
        plots=[bars({"pass@1": rewards}, "right answers")],
    )


PAPER = Paper(
    number=6,
    key="dhpo",
    title="Orchestrating Tokens and Sequences: Dynamic Hybrid Policy Optimization for RLVR",
    arxiv="2601.05607",
    role="objective",
    family="policy",
    claim="Mixing a token's own ratio with its completion's, each clipped in its own region, "
    "reaches more reward than GRPO and GSPO, with smoother curves.",
    reproduce=reproduce,
    threads=1,
)
