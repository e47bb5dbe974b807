"""HAPO beside DAPO and GRPO on written sums.

All see the same prompts and as many tokens, each at the better of two learning rates. The answers
are sampled at temperature 1 for all: HAPO's temperature of each token is not part of this.
"""

from __future__ import annotations

from tokenry.lab.outcome import Outcome, verdict
from tokenry.lab.plots import bars
from tokenry.lab.policy_bench import against_grpo
from tokenry.lab.scale import Scale
from tokenry.learn.policy.hapo import HAPO
from tokenry.learn.policy.presets import DAPO
from tokenry.papers.base import Paper

METHODS = {"dapo": DAPO(), "hapo": HAPO()}


def reproduce(seed: int, scale: Scale = "full") -> Outcome:
    """Five benches, seeds from `100 seed`."""
    table = against_grpo(METHODS, seed, scale)
    names = ("before", "grpo", *METHODS)
    rewards = {name: table.mean(f"{name}: pass@1") for name in names}
    entropies = {name: table.mean(f"{name}: entropy") for name in names}
    return verdict(
        table,
        {
            "HAPO answers right more often than DAPO": table.gap("hapo: pass@1", "dapo: pass@1"),
            "its policy has more entropy": table.gap("hapo: entropy", "dapo: entropy"),
            "and writes longer": table.gap("hapo: length", "dapo: length"),
        },
        plots=[
            bars({"pass@1": rewards}, "right answers"),
            bars({"entropy": entropies}, "nats a token"),
        ],
    )


PAPER = Paper(
    number=121,
    key="hapo",
    title="From Uniform to Heterogeneous: Tailoring Policy Optimization to Every Token's Nature",
    arxiv="2509.16591",
    role="objective",
    family="policy",
    claim="Letting each token's entropy decide its advantage and its clip reaches more reward than "
    "DAPO, with higher entropy and longer answers.",
    reproduce=reproduce,
    threads=1,
)
