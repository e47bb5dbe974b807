"""Where reward moved a small policy: sums written by a base, and by what DAPO made of it.

The shift is measured along the trained policy's own answers; beside it that of a policy which read
further right answers until it was right as often. Then one policy writes and the other chooses the
tokens on which both differ by more than 0.1 nats, both ways, at most so many to an answer; for
control it chooses as many tokens at random.
"""

from __future__ import annotations

from tokenry.lab.crossed_answers import CrossedPolicies
from tokenry.lab.outcome import Outcome, verdict
from tokenry.lab.plots import curves
from tokenry.lab.policy_bench import PolicyBench, bench_sizes
from tokenry.lab.scale import Scale, at
from tokenry.lab.table import Table, over_seeds
from tokenry.papers.base import Paper


def reproduce(seed: int, scale: Scale = "full") -> Outcome:
    """Four benches, seeds from `100 seed`."""
    sizes = bench_sizes(scale)[1]
    seeds, options, swept = at(
        scale,
        full=(4, {}, ((1, 2, 3, None), (0.1, 0.25, 0.5, 0.8))),
        smoke=(2, {"samples": 1, "taught_steps": 2}, ((None,), (0.5,))),
    )
    table, spread, lines = Table(), {}, {}

    def measured(number: int) -> None:
        policies = CrossedPolicies(PolicyBench(number, **sizes), **options)
        base, rl, taught = policies.bench.base, policies.rl, policies.taught
        for name, policy in (("rl", rl), ("taught", taught)):
            shares, curve = policies.profile(policy)
            table.add_all(shares, "share", number, name)
            spread[f"{name} [{number}]"] = curve
        table.add("taught: accuracy", policies.accuracy(taught), "", number)
        ways = {"forward": (base, rl), "reverse": (rl, base)}
        found = {way: policies.swept(*pair, *swept) for way, pair in ways.items()}
        low, high = (found[way][0]["accuracy before"] for way in ways)
        for way, (values, points) in found.items():
            moved = abs(values["accuracy"] - values["accuracy before"])
            values["of the gain"] = moved / (high - low) if high > low else 0.0
            table.add_all(values, "share", number, way)
            lines.update({f"{way}, {kind} [{number}]": line for kind, line in points.items()})

    list(over_seeds(measured, seed, seeds))
    near = "positions with JS below 0.05"
    return verdict(
        table,
        {
            "more than 60 % of rl's positions have JS below 0.05": table.above(f"rl: {near}", 0.6),
            "and fewer of a policy's that was taught to the same accuracy": table.gap(
                f"rl: {near}", f"taught: {near}"
            ),
            "at most 15 % effective swaps": table.below("forward: effective swaps", 0.15),
            "bring at least 80 % of the gain": table.above("forward: of the gain", 0.8),
            "as many swaps at random bring less": table.gap(
                "forward: accuracy", "forward: accuracy, as many at random"
            ),
            "the other way round they lose at least 80 %": table.above("reverse: of the gain", 0.8),
        },
        reason="an answer here has five or six tokens, most of them digits that were learnt: there "
        "is little that both write alike, so a fifth of the positions shift, and those below the "
        "threshold carry what is missing of the gain. The taught policy, which went on with what "
        "the base had learnt from, was moved less than by reward",
        plots=[
            curves(spread, "share of the positions", "share of their JS"),
            curves(lines, "effective swaps, share of the tokens", "right answers"),
        ],
    )


PAPER = Paper(
    number=151,
    key="rlvr-shift",
    title="Sparse but Critical: A Token-Level Analysis of Distributional Shifts in RLVR "
    "Fine-Tuning of LLMs",
    arxiv="2603.22446",
    role="analysis",
    family="policy",
    claim="Reinforcement learning moves the predictions of few tokens; swapping those alone "
    "between base and trained model carries the whole gain, or loses it.",
    reproduce=reproduce,
    threads=1,
)
