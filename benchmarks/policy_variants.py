"""Every policy objective on two benches: what its updates are, exactly, and what they lead to.

enumerated   a world of 7 texts in which all groups of 4 completions are listed, random rewards:
             the cosine of the expected update with the policy gradient, its length beside that
             gradient's, and its spread, for the policy that wrote the completions and for one that
             has moved on from it
trained      sums with or without working (`tokenry.lab.policy_bench`): a tiny transformer that is
             right now and then, a budget of 60,000 sampled tokens, the better of two learning
             rates

    python benchmarks/policy_variants.py [--seeds N] [--only KEY ...]

writes results/policy-variants.json, from which `make docs` builds the table. An objective that
needs a frozen model beside the reference, several rewards or none, or rollouts of a source of its
own is left out.
"""

import argparse
import json
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from tokenry.core.files import write_whole
from tokenry.lab.expected_updates import expected_update, policy_gradient
from tokenry.lab.policy_bench import RATES, UNITS, PolicyBench
from tokenry.learn.objective import frozen_sources
from tokenry.learn.objective import objective as objectives
from tokenry.learn.policy.gradient import Preset
from tokenry.tasks.worlds.enumerable import EnumerableWorld

RESULTS = Path(__file__).parents[1] / "results" / "policy-variants.json"
MOVED = 0.3  # standard deviation of how far logits have moved


def variants(only: list[str]) -> dict[str, Preset]:
    made = {e.key: e.value() for e in objectives if issubclass(e.value, Preset)}
    usable = {
        key: objective
        for key, objective in made.items()
        if set(frozen_sources(objective)) <= {"reference"}
        and objective.num_rewards == 1
        and objective.rollout_source == "plain"
    }
    return {key: usable[key] for key in only or usable}


def enumerated(objective: Preset, seeds: int) -> dict[str, float]:
    """Means over worlds."""
    rows: dict[str, list[float]] = {}
    for seed in range(seeds):
        world = EnumerableWorld(3, 2, seed)
        old = world.table(seed + 1).detach()
        moved = old + MOVED * world.table(seed + 2).detach()
        frozen = {"reference": world.table(seed + 3)}
        gradient = policy_gradient(world, old)
        for name, table in (("on-policy", old), ("off-policy", moved)):
            update = expected_update(objective, world, old, table, frozen=frozen)
            wanted = gradient if name == "on-policy" else policy_gradient(world, table)
            for field, value in (
                ("cosine", update.cosine(wanted)),
                ("length", float(update.mean.norm() / wanted.norm())),
                ("spread", update.spread),
            ):
                rows.setdefault(f"{name} {field}", []).append(value)
    return {name: fmean(values) for name, values in rows.items()}


def trained(objective: Preset, seeds: int) -> dict[str, Any]:
    """The values of all benches at the better learning rate, and that rate."""
    runs = {
        rate: [PolicyBench(seed).outcome(objective, rate) for seed in range(seeds)]
        for rate in RATES
    }
    best = max(RATES, key=lambda rate: fmean(run["pass@1"] for run in runs[rate]))
    values = {name: [run[name] for run in runs[best]] for name in UNITS}
    return values | {"learning rate": best}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", nargs="*", default=[])
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: dict[str, Any] = json.loads(RESULTS.read_text())["rows"] if options.only else {}
    for key, objective in variants(options.only).items():
        rows[key] = {
            "enumerated": enumerated(objective, options.seeds),
            "trained": trained(objective, options.seeds),
        }
        print(key, json.dumps(rows[key]), flush=True)
    benches = [PolicyBench(seed) for seed in range(options.seeds)]
    starts = [bench.measure(bench.base) for bench in benches]
    before = {name: [start[name] for start in starts] for name in starts[0]}
    record = {"seeds": options.seeds, "before": before, "rows": rows}
    write_whole(RESULTS, json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
