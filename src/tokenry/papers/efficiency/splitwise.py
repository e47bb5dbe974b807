"""Splitwise at laptop scale: ten servers simulated request by request, for two kinds of traffic.

Requests with the lengths of the published coding and conversation traces, Llama 2 70B with the
times that were measured on A100 and H100. Compared are the largest rates under the paper's latency
targets of ten A100 servers in one pool (batched in the better of two ways) and in the best of all
divisions, with and without lending; and prices, with H100 for prompts and A100 or H100 for tokens.
"""

from __future__ import annotations

from itertools import product

import numpy as np

from tokenry.lab.outcome import Outcome, verdict
from tokenry.lab.plots import curves
from tokenry.lab.scale import Scale, at
from tokenry.lab.table import Table, over_seeds
from tokenry.papers.base import Paper
from tokenry.serving.divisions import Servers
from tokenry.serving.phases import MACHINES, SHAPES
from tokenry.serving.planner import Design, Planner
from tokenry.serving.policies import MixedPools, SharedPool, SplitPools
from tokenry.serving.simulation import Batching, simulate
from tokenry.serving.targets import SLO
from tokenry.serving.trace import poisson_trace

MODEL, TARGETS = SHAPES["llama2-70b"], SLO()
A100, H100 = MACHINES["A100"], MACHINES["H100"]
TRACES = ("coding", "conversation")
LEVELS = range(1, 100)  # percentiles of the picture
BATCHINGS: tuple[Batching, ...] = ("mixed", "prompts first")


def reproduce(seed: int, scale: Scale = "full") -> Outcome:
    seeds, requests, count, rate = at(scale, full=(5, 1000, 10, 40.0), smoke=(2, 80, 2, 4.0))
    servers, table, lines = Servers(MODEL, A100, count), Table(), {}

    for (number, _), name in product(over_seeds(int, seed, seeds), TRACES):
        trace = poisson_trace(1.0, name, requests, number)
        shared = {how: servers.shared_rate(trace, TARGETS, how) for how in BATCHINGS}
        batching = max(BATCHINGS, key=lambda how: shared[how])
        split, prompt_servers = servers.best_division(trace, TARGETS, SplitPools())
        lent, _ = servers.best_division(trace, TARGETS, MixedPools())
        rates = {f"one pool, {how}": value for how, value in shared.items()}
        rates |= {"one pool": shared[batching], "two pools": split, "two pools that lend": lent}
        table.add_all(rates, "requests/s", number, name)
        table.add(f"{name}: servers for prompts", prompt_servers, f"of {count}", number)
        same = trace.at_rate(shared[batching])
        runs = {"one pool": simulate(same, servers.cluster(), SharedPool(), batching=batching)}
        runs["two pools"] = simulate(same, servers.cluster(prompt_servers), SplitPools())
        for pool, served in runs.items():
            longest = 1000 * served.tbt_max
            for kind, gaps in (("mean", 1000 * served.tbt_mean), ("largest", longest)):
                label = f"{name}: {kind} gap of 99 % of answers, {pool}"
                table.add(label, float(np.nanpercentile(gaps, 99)), "ms", number)
            tail = np.nanpercentile(longest, LEVELS)
            lines[f"{name}, {pool} [{number}]"] = zip(tail, LEVELS, strict=True)
        planner = Planner(MODEL, trace, TARGETS, A100)
        for design in (Design(H100, A100), Design(H100, H100)):
            plan = planner.smallest(design, rate)
            price = np.inf if plan is None else plan.price("cost") / 3.6 / rate
            table.add(f"{name}: {rate:g} requests/s on {design.name}", price, "$ a 1000", number)

    checks = {}
    for name in TRACES:
        gap = f"{name}: mean gap of 99 % of answers"
        cost = f"{name}: {rate:g} requests/s on"
        checks[f"{name}: two pools serve a higher rate on time than one"] = table.gap(
            f"{name}: two pools", f"{name}: one pool"
        )
        checks[f"{name}: at equal rate the gaps between their tokens are shorter"] = table.gap(
            f"{gap}, one pool", f"{gap}, two pools"
        )
        checks[f"{name}: A100 for tokens costs less per request than H100"] = table.gap(
            f"{cost} H100 + H100", f"{cost} H100 + A100"
        )
    return verdict(
        table,
        checks,
        reason="Within the targets an A100 server writes for fewer requests at once than an H100 "
        "one, by about the ratio of their prices, so which of them writes decides little. "
        "Simulated with published times; links are not shared, nothing fails. The paper compares "
        "clusters of its own choice.",
        plots=[curves(lines, "largest gap in an answer (ms)", "% of answers", log="x")],
    )


PAPER = Paper(
    number=142,
    key="splitwise",
    title="Splitwise: Efficient generative LLM inference using phase splitting",
    arxiv="2311.18677",
    role="analysis",
    family="efficiency",
    claim="Reading prompts and writing tokens on machines of their own serves more requests on "
    "time than machines that do both, and lets the token machines be cheaper ones.",
    reproduce=reproduce,
    threads=1,
)
