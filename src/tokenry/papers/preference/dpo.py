"""DPO in the toy preference world, where the optimum that it aims at is known in closed form.

The baseline is likelihood training on the chosen completions (what one does with pairs without a
preference objective); the ceiling is the exact maximiser of E[r] - beta KL at the same KL.
"""

from __future__ import annotations

from tokenry.lab.outcome import Outcome, verdict
from tokenry.lab.plots import curves
from tokenry.lab.preference_world import PreferenceBench, add_point, frontier, frontier_gap
from tokenry.lab.scale import Scale, at
from tokenry.lab.table import Table, over_seeds
from tokenry.lab.toy_training import NegativeLogLikelihood
from tokenry.learn.preference.dpo import DPO
from tokenry.papers.base import Paper
from tokenry.tasks.worlds.preference import PreferenceWorld

BETAS = (0.3, 1.0)
RATES = (3e-4, 1e-3)  # of the baseline
GAP = "dpo minus likelihood: reward at equal KL"
SHARE = "dpo: share of the optimum's gain"
LABELS = ("true reward", "KL(policy || reference)")


def reproduce(seed: int, scale: Scale = "full") -> Outcome:
    """Four worlds, seeds from `100 seed`."""
    worlds, size = at(
        scale,
        full=(4, {"steps": 120, "measure_every": 30, "samples": 512}),
        smoke=(2, {"steps": 2, "measure_every": 1, "samples": 16, "fit_steps": 2, "drawn": 64}),
    )
    table, lines = Table(), {}

    def trained(number: int):
        bench = PreferenceBench(PreferenceWorld(number), batch_size=32, learning_rate=3e-4, **size)
        dpo = [bench.train(DPO(beta))[1] for beta in BETAS]
        likelihood = [
            bench.train(NegativeLogLikelihood(), chosen_only=True, learning_rate=rate)[1]
            for rate in RATES
        ]
        return bench, dpo, likelihood

    for number, (bench, dpo, likelihood) in over_seeds(trained, seed, worlds):
        start = float(bench.world.reward(bench.sequences).mean())
        last = dpo[-1][-1]
        optimum = bench.world.optimum_at(last.kl)
        best = optimum.expected(bench.world.token_reward)
        strongest = max((p for points in likelihood for p in points), key=lambda p: p.reward)
        table.add("reference: true reward", start, "per sequence", number)
        add_point(table, "dpo", last, number, LABELS)
        add_point(table, "likelihood of chosen, at its best", strongest, number, LABELS)
        table.add("optimum: true reward at DPO's KL", best, "per sequence", number)
        table.add(SHARE, (last.reward - start) / (best - start), "", number)
        table.add(GAP, frontier_gap(dpo, likelihood), "per sequence", number)
        lines[f"DPO [{number}]"] = frontier(dpo[-1])
        lines[f"likelihood of chosen [{number}]"] = frontier(likelihood[-1])
        lines[f"closed-form optimum [{number}]"] = [
            (kl, bench.world.optimum_at(kl).expected(bench.world.token_reward))
            for kl, _ in frontier(dpo[-1])[1:]
        ]
    return verdict(
        table,
        {
            "DPO's true reward at equal KL, each method at the better of two settings, is above "
            "that of likelihood training on chosen completions": table.above(GAP, 0.0),
            "at beta 1 it has at least 75 % of the closed-form optimum's gain over the reference "
            "at its KL": table.above(SHARE, 0.75),
        },
        plots=[curves(lines, "KL(policy || reference), nats", "true reward")],
    )


PAPER = Paper(
    number=None,
    key="dpo",
    title="Direct Preference Optimization: Your Language Model is Secretly a Reward Model",
    arxiv="2305.18290",
    role="objective",
    family="preference",
    claim="Classifying preference pairs by the policy's implicit reward reaches the optimum of "
    "KL-constrained RLHF without a reward model or sampling.",
    reproduce=reproduce,
    threads=1,
)
