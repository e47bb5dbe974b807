"""FrugalPrompt at laptop scale: what shortened texts still say to an encoder that never saw any.

Two kinds of text in words. Reviews of three clauses, each with one word of praise or blame among
others that say nothing; the answer is what the majority says. Sums, "two plus one minus one",
modulo 3, where every word counts. A small encoder that knows the task scores the words, another one
of another seed answers from what is kept: the best, random, or the worst of them. Beside it,
SmolLM2 reads some of the reviews, shortened by its own scores.
"""

from __future__ import annotations

from statistics import fmean

from tokenry.lab.models import language_model
from tokenry.lab.outcome import Outcome, verdict
from tokenry.lab.plots import curves
from tokenry.lab.scale import Scale, at
from tokenry.lab.shortened import Way, answers_by_share, reviews_judged
from tokenry.lab.table import Table, paired
from tokenry.model.attribution.decompx import DecompX
from tokenry.model.attribution.globenc import GlobEnc
from tokenry.papers.base import Paper
from tokenry.tasks.worlds.reviews import review, sum_of_words

TASKS = {"sentiment": review, "arithmetic": sum_of_words}
PERCENTS = (80, 60, 50)
WAYS: dict[str, Way] = {
    "globenc": (GlobEnc(), "top"),
    "decompx": (DecompX(), "top"),
    "random": (GlobEnc(), "random"),
    "bottom": (GlobEnc(), "bottom"),
}
REAL = [("all", 100, WAYS["globenc"])]
REAL += [(way, percent, WAYS[way]) for way in ("globenc", "random") for percent in (80, 50)]


def reproduce(seed: int, scale: Scale = "full") -> Outcome:
    steps, count, reviews = at(scale, full=(300, 800, 16), smoke=(2, 6, 1))
    model, tokenizer = language_model(scale)
    right = {
        task: answers_by_share(make, WAYS, PERCENTS, seed, steps=steps, count=count)
        for task, make in TASKS.items()
    }
    judged = reviews_judged(model, tokenizer, REAL, reviews, seed + 9000)
    table, lines = Table(), {}
    for name, by_share in {**right, "SmolLM2": judged}.items():
        for (way, percent), values in by_share.items():
            label = f"{name}, {way}, {percent} % of the words"
            table.add(label, fmean(map(float, values)), "accuracy", seed)
            lines.setdefault(name, {}).setdefault(way, []).append((percent, table.mean(label)))
    texts, sums = right["sentiment"], right["arithmetic"]
    best, random, worst = (texts[way, 50] for way in ("globenc", "random", "bottom"))
    return verdict(
        table,
        {
            "reviews lose less than 3 points of accuracy at 80 % of the words": paired(
                texts["globenc", 80] + 0.03, texts["all", 100]
            ),
            "at 50 % the best words answer better than random ones": paired(best, random),
            "and these better than the worst": paired(random, worst),
            "sums lose more than 20 points at 80 %": paired(
                sums["all", 100] - 0.2, sums["globenc", 80]
            ),
        },
        reason="Encoders that were trained on the task both score and read, and neither has seen a "
        f"shortened text. SmolLM2's accuracy on {reviews} reviews is an observation, not part of "
        "the claim.",
        plots=[curves(lines[task], "percent of the words", f"accuracy, {task}") for task in TASKS],
    )


PAPER = Paper(
    number=27,
    key="frugalprompt",
    title="FrugalPrompt: Reducing Contextual Overhead in LLMs via Token Attribution",
    arxiv="2510.16439",
    role="token attribution",
    family="efficiency",
    claim="Four fifths of a prompt's words, chosen by attribution, keep what classification needs; "
    "arithmetic loses sharply.",
    reproduce=reproduce,
    threads=1,
)
