"""N-gram style control: a little of a corpus's n-grams may help, a lot makes text collapse.

SmolLM2 is steered by the 1-, 2- and 3-grams of two corpora that every Python carries: its own
reference manual (one source with one style) and, as large, docstrings of many modules (a mixture).
At each strength texts are sampled with the same random numbers and judged by the corpus's n-grams
and by the model without steering.
"""

import importlib
import inspect
import pydoc_data.topics
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from tokenry.measure.ngram_style import StylePoint, judge, sample, style_sweep
from tokenry.model.hub import load
from tokenry.papers.base import Measurement, Outcome, Paper
from tokenry.text.ngrams import NGramModel

CHARACTERS = 250_000  # of each corpus
ADD_K, LOUD_K = 1e-3, 1e-6
LOUD = f"manual, k = {LOUD_K:g}"
MODULES = """
    argparse ast asyncio collections concurrent.futures csv datetime decimal difflib email.message
    fractions ftplib functools heapq http.client inspect itertools json logging math mailbox
    multiprocessing numpy optparse os pathlib pickle plistlib random re shutil smtplib socket
    sqlite3 statistics string subprocess tarfile tempfile textwrap threading tkinter tokenize
    torch typing unittest urllib.request uuid wave xml.dom.minidom zipfile
"""
PROMPTS = [
    "In the morning we went down to",
    "The most important thing to know about a language is",
    "When the value of",
    "My grandmother always said that",
    "There are two ways of",
    "The first chapter of this book",
]
STRENGTHS, FEWER = (0.05, 0.1, 0.2, 0.4, 0.8), (0.1, 0.8)
TOKENS = 40


def reproduce(seed: int) -> Outcome:
    """Held if a little steering lowers style perplexity, the divergence grows with the strength,
    and the base perplexity explodes at the largest."""
    loaded = load("smollm2")
    curves = {}
    plain_texts = None
    for name, corpus, add_k, strengths in (
        ("manual", manual(), ADD_K, STRENGTHS),
        ("mixture", docstrings(), ADD_K, FEWER),
        (LOUD, manual(), LOUD_K, FEWER),
    ):
        counted = [loaded.tokenizer(text, verbose=False)["input_ids"] for text in corpus]
        ngrams = NGramModel.fit(counted, len(loaded.tokenizer), add_k=add_k)
        if plain_texts is None:  # without steering, the texts are the same for every corpus
            plain_texts = sample(loaded, ngrams, PROMPTS, 0.0, max_new_tokens=TOKENS, seed=seed)
        curves[name] = [
            judge(loaded, ngrams, 0.0, *plain_texts),
            *style_sweep(loaded, ngrams, PROMPTS, strengths, max_new_tokens=TOKENS, seed=seed),
        ]
    curve = curves["manual"]
    plain, last = curve[0], curve[-1]
    small = [point for point in curve if point.strength in (0.1, 0.2)]
    best_base = min(point.base_perplexity for point in curve)
    collapse = last.base_perplexity / best_base
    conditions = {
        "a little steering does not lower style perplexity on the manual": all(
            point.style_perplexity < plain.style_perplexity for point in small
        ),
        f"base perplexity at 0.8 is only {collapse:.1f} times its minimum": collapse >= 3,
        "the divergence does not grow with the strength": all(
            a.divergence < b.divergence for a, b in pairwise(curve)
        ),
    }
    failed = [reason for reason, true in conditions.items() if not true]
    measured = [
        Measurement(f"{name}: {label} at {point.strength:g}", value, unit, seed)
        for name, points in curves.items()
        for point in points
        for label, value, unit in (
            ("style perplexity", point.style_perplexity, ""),
            ("base perplexity", point.base_perplexity, ""),
            ("divergence", point.divergence, "nats"),
            ("distinct-2", point.distinct_2, "share"),
        )
    ]
    return Outcome(
        held=not failed,
        needs="on the single-source corpus, style perplexity at strengths 0.1 and 0.2 is below "
        "that without steering, the divergence from the model grows with the strength, and the "
        "base perplexity at 0.8 is at least 3 times its minimum",
        measurements=measured,
        reason="; ".join([*failed, remark(curves)]),
        figure=lambda figure: draw(figure, curves),
    )


def remark(curves: dict[str, list[StylePoint]]) -> str:
    """What happened to the paper's gain in base perplexity, and how much hangs on k."""
    found = []
    for name in ("manual", "mixture"):
        at = {point.strength: point for point in curves[name]}
        change = at[0.1].base_perplexity / at[0.0].base_perplexity - 1
        found.append(
            f"{change:+.0%} on the {name} (distinct-2 {at[0.0].distinct_2:.2f} to "
            f"{at[0.1].distinct_2:.2f})"
        )
    quiet, loud = (curves[name][-1] for name in ("manual", LOUD))
    return (
        f"base perplexity at 0.1 changed by {' and '.join(found)}; at 0.8 it is "
        f"{quiet.base_perplexity:.0f} with k = {ADD_K:g} and {loud.base_perplexity:.0f} with "
        f"k = {LOUD_K:g}: the paper does not give k, on which the strength hangs; its prompting "
        "and LoRA baselines are not run"
    )


def manual() -> list[str]:
    """The topics of the Python reference manual."""
    return list(up_to(iter(pydoc_data.topics.topics.values())))


def docstrings() -> list[str]:
    """Docstrings of many modules, one module after the other in turn."""

    def of(module: str) -> Iterator[str]:
        try:
            members = vars(importlib.import_module(module))
        except ImportError:  # tkinter, sqlite3: not in every Python
            return
        for name in sorted(members):
            if not name.startswith("_") and (text := inspect.getdoc(members[name])):
                yield text

    def in_turn() -> Iterator[str]:
        open_modules = [of(module) for module in MODULES.split()]
        while open_modules:
            for module in list(open_modules):
                text = next(module, None)
                if text is None:
                    open_modules.remove(module)
                else:
                    yield text

    return list(up_to(iter(dict.fromkeys(in_turn()))))


def up_to(texts: Iterator[str]) -> Iterator[str]:
    """Texts until the size of a corpus is reached."""
    size = 0
    for text in texts:
        if size >= CHARACTERS:
            return
        size += len(text)
        yield text


def draw(figure: Any, curves: dict[str, list[StylePoint]]) -> None:
    """Style and base perplexity against the strength, one panel for each corpus."""
    for place, (name, points) in zip(figure.subplots(1, len(curves)), curves.items(), strict=True):
        strengths = [point.strength for point in points]
        style = [point.style_perplexity for point in points]
        base = [point.base_perplexity for point in points]
        place.plot(strengths, style, "o-", color="C0", label="style perplexity")
        place.set(xlabel="strength λ", ylabel="style perplexity", title=name, yscale="log")
        other = place.twinx()
        other.plot(strengths, base, "s--", color="C1", label="base perplexity")
        other.set(ylabel="base perplexity", yscale="log")
        lines = [*place.get_lines(), *other.get_lines()]
        place.legend(lines, [line.get_label() for line in lines])


PAPER = Paper(
    number=167,
    key="ngram-style",
    title="Limits of n-gram Style Control for LLMs via Logit-Space Injection",
    arxiv="2601.16224",
    role="logits controller",
    family="control",
    claim="Adding a corpus's n-gram log-probabilities to the logits helps in a narrow range of "
    "small strengths only; beyond it the text collapses.",
    reproduce=reproduce,
    threads=1,
)
