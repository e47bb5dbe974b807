"""GUARD: one constraint, five proposals; how often each satisfies it, how far it bends the model.

The constraint asks for one token, which few texts of a small model contain. Proposals are the model
itself, the model behind a prompt that overdoes it, a copy that was fitted to accepted prompted
texts, and copies trained by the distributional policy gradient, from the model as it is and from
the fitted one. Whatever a proposal writes that breaks the constraint is rejected, so all of them
give valid texts only.
"""

from __future__ import annotations

from tokenry.lab.outcome import Outcome, verdict
from tokenry.lab.plots import bars, curves
from tokenry.lab.rare_token_proposals import HINT, START, RareTokenWorld
from tokenry.lab.scale import Scale, at
from tokenry.lab.table import Table, over_seeds
from tokenry.papers.base import Paper

Z, VALID = "probability of the constraint, Z", "valid texts of all outputs"
MEASURES = {
    "acceptance rate": ("acceptance", ""),
    "KL(target || output)": ("target_output", "nats"),
    "KL(output || target)": ("output_target", "nats"),
    "KL(target || proposal)": ("target_proposal", "nats"),
}
PROMPTED, WARM, OUTPUT = "prompted", "trained, warm start", "KL(target || output)"


def reproduce(seed: int, scale: Scale = "full") -> Outcome:
    """Three worlds, with seeds from `100 seed`."""
    small = {"fit_steps": 2, "steps": 2, "samples": 16, "warm_texts": 4, "warm_steps": 1}
    small |= {"target_texts": 4, "output_texts": 4}
    worlds, size = at(scale, full=(3, {}), smoke=(2, small))
    table, lines, models = Table(), {}, {}
    for number, world in over_seeds(lambda number: RareTokenWorld(number, **size), seed, worlds):
        fitted, _ = world.train(steps=0, warm=True)
        cold, cold_points = world.train(steps=world.steps, warm=False)
        warm, warm_points = world.train(steps=world.steps, warm=True)
        lines |= {f"cold start [{number}]": cold_points, f"warm start [{number}]": warm_points}
        models = {
            "the model itself": (world.model, START),
            PROMPTED: (world.model, HINT),
            "fitted to prompted texts": (fitted, START),
            "trained, cold start": (cold, START),
            WARM: (warm, START),
        }
        judged = {name: world.judge(*proposal) for name, proposal in models.items()}
        table.add(Z, world.z, "", number)
        table.add(VALID, min(valid for _, valid in judged.values()), "share", number)
        for name, (divergences, _) in judged.items():
            for label, (field, unit) in MEASURES.items():
                table.add(f"{name}: {label}", getattr(divergences, field), unit, number)
    return verdict(
        table,
        {
            "warm-started training is accepted more than five times as often as the "
            "model": table.gap(f"{WARM}: acceptance rate", Z, factor=5.0),
            "its output is nearer to the target than the prompted model's in "
            "KL(target || output)": table.gap(f"{PROMPTED}: {OUTPUT}", f"{WARM}: {OUTPUT}"),
            "every text is valid": all(share == 1.0 for share in table.values(VALID).values()),
        },
        plots=[
            bars({name: {OUTPUT: table.mean(f"{name}: {OUTPUT}")} for name in models}, "nats"),
            curves(
                {name: [(p.step, p.acceptance) for p in line] for name, line in lines.items()},
                "update",
                "acceptance rate",
            ),
        ],
    )


PAPER = Paper(
    number=21,
    key="guard",
    title="Guaranteed Generation from Large Language Models",
    arxiv="2410.06716",
    role="sampler",
    family="control",
    claim="A proposal trained towards the constrained model, followed by rejection, satisfies the "
    "constraint always, quickly, and with less distortion than a prompt that asks for it.",
    reproduce=reproduce,
    threads=1,
)
