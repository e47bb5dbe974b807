"""f-DPG: the same rare constraint approached in four divergences, from the same start.

A transformer fitted to a Markov chain over 16 tokens is the base a; the target is a given that the
text contains one rare token. Each divergence gets the same updates, samples and learning rate. A
table of 200 outcomes, where every divergence is exact, goes along.
"""

from __future__ import annotations

from tokenry.lab.outcome import Outcome, verdict
from tokenry.lab.plots import curves
from tokenry.lab.rare_token import RareTokenBench, RareTokenPoint, train_tables
from tokenry.lab.scale import Scale, at
from tokenry.lab.table import Table, over_seeds
from tokenry.learn.policy.f_dpg import FDPG
from tokenry.papers.base import Paper

METHODS = {
    "forward_kl": FDPG("forward_kl"),
    "reverse_kl": FDPG("reverse_kl", slack=1e-4),  # without it, infinite to a constraint
    "total_variation": FDPG("total_variation"),
    "jensen_shannon_sum": FDPG("jensen_shannon_sum"),
}
SATISFIED, ENTROPY = "texts that satisfy the constraint", "entropy of texts"


def reproduce(seed: int, scale: Scale = "full") -> Outcome:
    """Seven bases with a constraint each, seeds from `100 seed`."""
    worlds, size, settings, table_steps = at(
        scale,
        full=(7, {}, {"steps": 40, "batch_size": 128, "every": 10}, 200),
        smoke=(2, {"samples": 16, "fit_steps": 2}, {"steps": 2, "batch_size": 8}, 2),
    )
    table, satisfied, entropy = Table(), {}, {}

    def trained(number: int) -> dict[str, list[RareTokenPoint]]:
        bench = RareTokenBench(number, **size)
        paths = {name: bench.train(method, **settings) for name, method in METHODS.items()}
        return {**paths, "base": [bench.measured(bench.base)]}

    for number, paths in over_seeds(trained, seed, worlds):
        for name, path in paths.items():
            table.add(f"{name}: {SATISFIED}", path[-1].satisfied, "", number)
            table.add(f"{name}: {ENTROPY}", path[-1].entropy, "nats", number)
            satisfied[f"{name} [{number}]"] = [(point.step, point.satisfied) for point in path]
            entropy[f"{name} [{number}]"] = [(point.step, point.entropy) for point in path]
        for name, exact in train_tables(METHODS, number, steps=table_steps).items():
            label = f"table, trained in {name}: exact "
            table.add_all({label + kind: value for kind, value in exact.items()}, "nats", number)
    return verdict(
        table,
        {
            "after the same updates Jensen-Shannon satisfies the constraint more often than "
            "forward KL (DPG)": table.gap(
                f"jensen_shannon_sum: {SATISFIED}", f"forward_kl: {SATISFIED}"
            ),
            "and its texts have more entropy than reverse KL's": table.gap(
                f"jensen_shannon_sum: {ENTROPY}", f"reverse_kl: {ENTROPY}"
            ),
        },
        plots=[curves(satisfied, "update", SATISFIED), curves(entropy, "update", ENTROPY)],
    )


PAPER = Paper(
    number=171,
    key="f-dpg",
    title="Aligning Language Models with Preferences through f-divergence Minimization",
    arxiv="2302.08215",
    role="objective",
    family="preference",
    claim="No divergence to the target is best everywhere; Jensen-Shannon balances alignment and "
    "diversity and beats the forward KL that earlier distributional policy gradients used.",
    reproduce=reproduce,
    threads=1,
)
