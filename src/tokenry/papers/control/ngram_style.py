"""N-gram style control: a little of a corpus's n-grams may help, a lot makes text collapse.

SmolLM2 is steered by the 1-, 2- and 3-grams of two corpora that every Python carries: its own
reference manual (one source with one style) and, as large, documentation of many modules (a
mixture). At each strength texts are sampled with the same random numbers and judged by the corpus's
n-grams and by the model without steering.
"""

from __future__ import annotations

from itertools import pairwise

from tokenry.lab.models import language_model
from tokenry.lab.outcome import Outcome, verdict
from tokenry.lab.plots import curves
from tokenry.lab.scale import Scale, at
from tokenry.lab.table import Table, items_above, over_seeds
from tokenry.measure.ngram_style import StylePoint, judge, sample, style_sweep
from tokenry.papers.base import Paper
from tokenry.tasks.documentation import help_texts, manual
from tokenry.text.ngrams import NGramModel

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
MEASURES = {
    "style perplexity": ("style_perplexity", ""),
    "base perplexity": ("base_perplexity", ""),
    "divergence": ("divergence", "nats"),
    "distinct-2": ("distinct_2", "share"),
}
SWEEP, FEW = (0.05, 0.1, 0.2, 0.4, 0.8), (0.1, 0.8)


def reproduce(seed: int, scale: Scale = "full") -> Outcome:
    """Three samples of the manual's sweep, with seeds from `100 seed`; the others once."""
    samples, characters, tokens, prompts = at(
        scale, full=(3, 250_000, 30, PROMPTS), smoke=(2, 2000, 3, PROMPTS[:2])
    )
    loaded, one, mixed = (
        language_model(scale),
        manual(characters),
        help_texts(MODULES.split(), characters),
    )

    def counted(corpus: list[str], add_k: float) -> NGramModel:
        ids = [loaded.tokenizer(text, verbose=False)["input_ids"] for text in corpus]
        return NGramModel.fit(ids, len(loaded.tokenizer), add_k=add_k)

    style = {
        "manual": counted(one, ADD_K),
        "mixture": counted(mixed, ADD_K),
        LOUD: counted(one, LOUD_K),
    }

    def swept(number: int) -> dict[str, list[StylePoint]]:
        how = {"max_new_tokens": tokens, "seed": number}
        # without steering, the texts are the same for every corpus
        plain = sample(loaded, style["manual"], prompts, 0.0, **how)
        names = style if number == 100 * seed else ["manual"]
        return {
            name: [
                judge(loaded, style[name], 0.0, *plain),
                *style_sweep(
                    loaded, style[name], prompts, SWEEP if name == "manual" else FEW, **how
                ),
            ]
            for name in names
        }

    table, growth, collapse, lines = Table(), [], [], {}
    for number, sweeps in over_seeds(swept, seed, samples):
        for name, points in sweeps.items():
            for point in points:
                for label, (field, unit) in MEASURES.items():
                    table.add(
                        f"{name}: {label} at {point.strength:g}",
                        getattr(point, field),
                        unit,
                        number,
                    )
        curve = sweeps["manual"]
        growth.append(min(b.divergence - a.divergence for a, b in pairwise(curve)))
        base = [point.base_perplexity for point in curve]
        collapse.append(base[-1] - 3 * min(base))
        lines |= {
            f"{label} [{number}]": [(p.strength, getattr(p, MEASURES[label][0])) for p in curve]
            for label in ("style perplexity", "base perplexity")
        }
    checks = {
        f"on the manual, style perplexity at {strength:g} is below the unsteered": table.gap(
            "manual: style perplexity at 0", f"manual: style perplexity at {strength:g}"
        )
        for strength in (0.1, 0.2)
    }
    return verdict(
        table,
        {
            **checks,
            "the divergence from the model grows with the strength": items_above(growth),
            "the base perplexity at 0.8 is at least 3 times its minimum": items_above(collapse),
        },
        reason="the paper does not give k, on which the strength hangs; its prompting and LoRA "
        "baselines are not run",
        plots=[curves(lines, "strength λ", "perplexity", log="y")],
    )


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
)
