"""PRO on prompts of three kinds, each of which asks for another virtue of the answer.

A prompt is its kind and three words; an answer may be short, may contain the prompt's words, may be
polite. Which of the three counts depends on the kind, and nobody says so: it shows only in which
answers were preferred. The orchestrator learns it from 500 preferred answers; then the policy is
trained with its weights, and with every fixed weighting of a grid, at the same settings.
"""

from __future__ import annotations

from tokenry.lab.answers import AnswerBench
from tokenry.lab.outcome import Outcome, verdict
from tokenry.lab.plots import bars
from tokenry.lab.scale import Scale, at
from tokenry.lab.table import Table, over_seeds
from tokenry.learn.policy.pro import PRO
from tokenry.papers.base import Paper
from tokenry.tasks.worlds.answers import KINDS

FIXED = {
    "equal weights": (1 / 3, 1 / 3, 1 / 3),
    "brevity only": (0.8, 0.1, 0.1),
    "coverage only": (0.1, 0.8, 0.1),
    "politeness only": (0.1, 0.1, 0.8),
}
KL = "orchestrator: KL(targets || weights) on held-out prompts"


def reproduce(seed: int, scale: Scale = "full") -> Outcome:
    """Ten worlds, seeds from `100 seed`."""
    small = {"fit_steps": 2, "preferred": 32, "held_out": 32, "orchestrator_steps": 2, "judged": 32}
    worlds, steps, size = at(scale, full=(10, 40, {}), smoke=(2, 1, small))
    table, predicted = Table(), {}

    def run(number: int) -> tuple[dict[str, float], float]:
        bench = AnswerBench(number, **size)
        orchestrator, kl, weights = bench.orchestrator()
        methods = {"pro": PRO(orchestrator=orchestrator)}
        for name, fixed in FIXED.items():
            methods[name] = PRO(orchestrator=orchestrator, user_weights=fixed, user_share=1.0)
        utilities = {"before training": bench.utility(bench.base)}
        for name, method in methods.items():
            policy = bench.train(method, steps=steps, batch_size=96, learning_rate=3e-3)
            utilities[name] = bench.utility(policy)
        for kind, row in zip(KINDS, weights.tolist(), strict=True):
            predicted.setdefault(f"asks for {kind}", dict(zip(KINDS, row, strict=True)))
        return utilities, kl

    for number, (utilities, kl) in over_seeds(run, seed, worlds):
        table.add_all(
            {f"{name}: utility": value for name, value in utilities.items()}, "of 1", number
        )
        table.add(KL, kl, "nats", number)
    means = {name: table.mean(f"{name}: utility") for name in ("before training", "pro", *FIXED)}
    best = max(FIXED, key=lambda name: means[name])
    return verdict(
        table,
        {
            "utility under each prompt's true weights is higher with the orchestrator's weights "
            "than with equal ones": table.gap("pro: utility", "equal weights: utility"),
            f"and than with the best fixed ones of the grid ({best})": table.gap(
                "pro: utility", f"{best}: utility"
            ),
            "the orchestrator's KL on held-out prompts is below 0.05 nats": table.below(KL, 0.05),
        },
        plots=[
            bars(predicted, "weight in the first world", "of the reward for"),
            bars({"utility": means}, "utility under the prompts' true weights"),
        ],
    )


PAPER = Paper(
    number=141,
    key="pro",
    title="Preference Orchestrator: Prompt-Aware Multi-Objective Alignment",
    arxiv="2511.10656",
    role="objective",
    family="preference",
    claim="Reward weights predicted for each prompt from preferred responses align a policy better "
    "than any fixed weighting of the rewards.",
    reproduce=reproduce,
    threads=1,
)
