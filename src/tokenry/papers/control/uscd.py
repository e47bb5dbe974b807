"""USCD in a world where examples say what a description leaves open, read by an exact reader.

The reader's distribution is the Bayesian one with its habit, with noise on its logits, as a model
has; without the examples it is the habit alone. On the questions that count the habit misleads.
Compared are the reader's own answer, the contrast at every step, and the contrast where the reader
is uncertain.
"""

from __future__ import annotations

import math

from tokenry.decode.steering.selective_contrast import distribution_spread, selective_contrast
from tokenry.lab.outcome import Outcome, verdict
from tokenry.lab.plots import bars
from tokenry.lab.scale import Scale, at
from tokenry.lab.table import Table, items_above, paired
from tokenry.papers.base import Paper
from tokenry.tasks.worlds.left_open import open_questions

THRESHOLD = 0.9
THRESHOLDS = (0.0, 0.3, 0.5, 0.63, 0.75, THRESHOLD, 1.0, math.inf)
TOLERANCE = 0.005  # in accuracy: two standard errors over 20,000 questions


def reproduce(seed: int, scale: Scale = "full") -> Outcome:
    """Twenty thousand questions."""
    questions = open_questions(at(scale, full=20_000, smoke=100), seed)
    both = questions.with_examples, questions.without
    right = {
        threshold: selective_contrast(*both, threshold=threshold)[0].argmax(-1) == questions.answer
        for threshold in THRESHOLDS
    }
    uncertain = distribution_spread(questions.with_examples, True) <= THRESHOLD
    plain, gated, always = (right[key].double() for key in (0.0, THRESHOLD, math.inf))
    table = Table()
    accuracies = {
        "accuracy, gate open, reader alone": plain[uncertain],
        "accuracy, gate open, contrast": gated[uncertain],
        "accuracy, reader alone": plain,
        "accuracy, contrast where uncertain": gated,
        "accuracy, contrast at every step": always,
        "questions with an open gate": uncertain.double(),
    }
    table.add_all({name: flags.mean() for name, flags in accuracies.items()}, "share", seed)
    names = {0.0: "never", math.inf: "always"}
    heights = {names.get(t, f"{t:g}"): float(flags.double().mean()) for t, flags in right.items()}
    return verdict(
        table,
        {
            "where the gate is open, the contrast's accuracy is above the model's own": paired(
                gated[uncertain], plain[uncertain]
            ),
            f"over all questions it is at most {TOLERANCE:g} below that of the contrast at every "
            "step": items_above(gated - always, -TOLERANCE),
        },
        reason="an exact reader in place of a language model, whose habit the questions do not "
        "share: a world built for the contrast. An earlier version with a small trained "
        "transformer, which had hardly learned to use the examples, did not show the gain. Where "
        "the habit is right, subtracting it loses; the gate saves passes here, not accuracy",
        plots=[bars({"accuracy": heights}, "accuracy", "contrast where spread × √V is at most")],
    )


PAPER = Paper(
    number=161,
    key="uscd",
    title="Improving Code Generation of LLMs by Uncertainty-Aware Selective Contrastive Decoding",
    arxiv="2409.05923",
    role="logits controller",
    family="control",
    claim="Subtracting the prediction of a prompt without examples, where the model is uncertain, "
    "raises accuracy, at no loss against subtracting it everywhere.",
    reproduce=reproduce,
    threads=1,
)
