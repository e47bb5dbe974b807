"""PAMA on two rewards that pull apart and come on scales 10 to 1.

A small language has cheerful words after which a text likes to end. The first reward is the share
of cheerful words in a text, times ten; the second its length. Trained from one fitted model at the
same settings: PPO on the sum of both rewards (fixed equal weights, which the scales decide), exact
MGDA (the shortest mixture of the rewards' gradients), and PAMA under both scopes. Progress is each
reward's share of what it could still gain; a method is as good as the reward that it served worse.
"""

from __future__ import annotations

from tokenry.lab.outcome import Outcome, verdict
from tokenry.lab.plots import curves
from tokenry.lab.scale import Scale, at
from tokenry.lab.table import Table, over_seeds
from tokenry.lab.two_rewards import ExactMGDA, TwoRewardBench, TwoRewardRun
from tokenry.learn.policy.pama import PAMA
from tokenry.learn.policy.pro import PRO
from tokenry.papers.base import Paper

METHODS = {
    "fixed weights": PRO(kl=0.02),
    "mgda": ExactMGDA(kl=0.02),
    "pama": PAMA(kl=0.02),
    "pama, one weight per batch": PAMA(kl=0.02, scope="batch"),
}
GAIN, UNIT = "the smaller gain", "of the possible gain"


def reproduce(seed: int, scale: Scale = "full") -> Outcome:
    """Sixteen worlds, seeds from `100 seed`."""
    worlds, steps, fitted, counted = at(scale, full=(16, 30, 120, 1000), smoke=(2, 2, 2, 16))
    table, lines = Table(), {}

    def trained(number: int) -> dict[str, TwoRewardRun]:
        bench = TwoRewardBench(number, fit_steps=fitted, counted=counted)
        settings = {"steps": steps, "batch_size": 64, "learning_rate": 3e-3}
        return {name: bench.train(method, **settings) for name, method in METHODS.items()}

    for number, runs in over_seeds(trained, seed, worlds):
        for name, (path, shares, passes) in runs.items():
            both = {"gain in cheerful words": shares[0], "gain in length": shares[1]}
            table.add_all({**both, GAIN: min(shares)}, UNIT, number, name)
            table.add(f"{name}: backward passes of an update", passes, "", number)
            lines[f"{name} [{number}]"] = path
    passes = [table.values(f"{name}: backward passes of an update") for name in ("pama", "mgda")]
    return verdict(
        table,
        {
            "the smaller of both rewards' gains is larger with PAMA than with fixed equal weights "
            "on rewards scaled 10 to 1": table.gap(f"pama: {GAIN}", f"fixed weights: {GAIN}"),
            "and positive": table.above(f"pama: {GAIN}", 0.0),
            "an update of PAMA takes one backward pass, one of exact MGDA more": set(
                passes[0].values()
            )
            == {1.0}
            and min(passes[1].values()) > 1,
        },
        plots=[curves(lines, "share of cheerful words", "length, of the longest")],
    )


PAPER = Paper(
    number=134,
    key="pama",
    title="Pareto Multi-Objective Alignment for Language Models",
    arxiv="2508.07768",
    role="objective",
    family="preference",
    claim="Balancing several rewards by one clipped advantage each serves all of them, where fixed "
    "weights serve the one with the largest scale, at the price of one backward pass.",
    reproduce=reproduce,
    threads=1,
)
