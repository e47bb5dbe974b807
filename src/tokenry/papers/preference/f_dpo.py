"""f-DPO: what a divergence buys, exactly in tables of 64 outcomes and trained in the toy world.

The tables give each divergence's own optimum: expected reward, entropy, and how many outcomes keep
a tenth of their probability. In the world, policies are trained on the same pairs at one beta.
"""

from __future__ import annotations

import torch

from tokenry.lab.frontiers import crossing
from tokenry.lab.outcome import Outcome, verdict
from tokenry.lab.outcome_tables import QUANTITIES, OutcomeTables, at_equal_reward
from tokenry.lab.plots import curves
from tokenry.lab.preference_world import PreferenceBench, add_point
from tokenry.lab.scale import Scale, at
from tokenry.lab.table import Table, over_seeds, paired
from tokenry.learn.preference.f_dpo import FDPO
from tokenry.measure.diversity import distinct_ngrams
from tokenry.papers.base import Paper
from tokenry.tasks.worlds.preference import PreferenceWorld

DIVERGENCES = ("reverse_kl", "jensen_shannon_sum", "alpha:0.5", "forward_kl")
BETA = 0.1  # the paper's
LEVELS = (0.3, 0.6, 0.9)  # of the way from the reference's reward to the best outcome's
EQUAL = "world, reverse_kl: entropy when its reward was forward_kl's final one"


def reproduce(seed: int, scale: Scale = "full") -> Outcome:
    """Twenty tables and three worlds, seeds from `100 seed`."""
    worlds, betas, size = at(
        scale,
        full=(3, 40, {"steps": 150, "measure_every": 50, "samples": 512}),
        smoke=(2, 10, {"steps": 2, "measure_every": 1, "samples": 16, "fit_steps": 2, "drawn": 64}),
    )
    table, tables = Table(), OutcomeTables(seed)
    grid = torch.logspace(-2.5, 2, betas, dtype=torch.float64).tolist()
    optima = {name: tables.optima(name, grid) for name in DIVERGENCES}
    for name in DIVERGENCES:
        values = dict(zip(QUANTITIES, tables.optimum(name, BETA).mean(-1).tolist(), strict=True))
        table.add_all(values, "", seed, f"tables, {name} at beta {BETA}")
    levels = {level: at_equal_reward(optima, level) for level in LEVELS}
    for level, rows in levels.items():
        for name, row in rows.items():
            entropy, kept = row.mean(-1).tolist()
            label = f"tables, {name} at {level:.0%} of the reward"
            table.add_all({"entropy, nats": entropy, "outcomes kept": kept}, "", seed, label)
    high, middle, low = (
        torch.stack([rows[name][0] for rows in levels.values()]).mean(0).tolist()
        for name in ("forward_kl", "alpha:0.5", "reverse_kl")
    )

    def trained(number: int):
        world = PreferenceWorld(number, length=8)
        bench = PreferenceBench(world, batch_size=32, learning_rate=3e-4, **size)
        return bench, {name: bench.train(FDPO(BETA, name)) for name in DIVERGENCES}

    for number, (bench, runs) in over_seeds(trained, seed, worlds):
        for name, (policy, points) in runs.items():
            drawn = bench.draw(policy, seed=54321)
            add_point(table, f"world, {name}", points[-1], number)
            table.add(f"world, {name}: distinct trigrams", distinct_ngrams(drawn, 3), "", number)
        points, wanted = runs["reverse_kl"][1], runs["forward_kl"][1][-1].reward
        entropy = crossing([(p.reward, p.entropy) for p in points], wanted)
        table.add(EQUAL, points[-1].entropy if entropy is None else entropy, "nats", number)
    plain, *varied = (f"world, {n}: distinct trigrams" for n in DIVERGENCES if "jensen" not in n)
    shown = [
        (what, {name: path.mean(-1)[:, [0, row]].tolist() for name, path in optima.items()})
        for row, what in ((1, "entropy, nats"), (2, "outcomes kept"))
    ]
    return verdict(
        table,
        {
            "the optimum's entropy at equal expected reward (mean of three levels) is higher under "
            "forward KL than under alpha 0.5": paired(high, middle),
            "and under alpha 0.5 than under reverse KL": paired(middle, low),
            "trained at the same beta, forward KL or alpha 0.5 has at least as many distinct "
            "trigrams as reverse KL": table.gap(max(varied, key=table.mean), plain),
        },
        reason="trained at the same beta the others are more varied, but have less reward. Of all "
        "policies of a given expected reward the tilt, to which reverse KL leads, has the least KL "
        "from the reference, hence under a flat reference the most entropy; what the others keep "
        "is coverage, outcomes with a tenth of their probability",
        plots=[curves(lines, "expected reward of the optimum", what) for what, lines in shown],
    )


PAPER = Paper(
    number=172,
    key="f-dpo",
    title="Beyond Reverse KL: Generalizing Direct Preference Optimization with Diverse Divergence "
    "Constraints",
    arxiv="2309.16240",
    role="objective",
    family="preference",
    claim="The divergence of DPO trades alignment for diversity: reverse KL aligns most and is "
    "least diverse, forward KL the other way round, Jensen-Shannon and alpha lie between.",
    reproduce=reproduce,
    threads=1,
)
