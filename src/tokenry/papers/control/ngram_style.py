"""N-gram style control: a little of a corpus's n-grams may help, a lot makes text collapse.

SmolLM2 is steered by the n-grams of Python's reference manual (one style) and, as large, of the
documentation of many modules (a mixture). At each strength texts are sampled with the same random
numbers and judged by the corpus's n-grams and by the model without steering.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from tokenry.lab.models import language_model
from tokenry.lab.outcome import Outcome, verdict
from tokenry.lab.plots import curves
from tokenry.lab.scale import Scale, at
from tokenry.lab.table import Table, items_above, over_seeds
from tokenry.measure.ngram_style import StylePoint, style_sweep
from tokenry.papers.base import Paper
from tokenry.tasks.documentation import MANY_MODULES, help_texts, manual
from tokenry.text.ngrams import NGramModel

ADD_K, LOUD_K = 1e-3, 1e-6
LOUD = f"manual, k = {LOUD_K:g}"
PROMPTS = """In the morning we went down to
The most important thing to know about a language is
When the value of
My grandmother always said that
There are two ways of
The first chapter of this book""".splitlines()
PERPLEXITIES = {"style perplexity": "style_perplexity", "base perplexity": "base_perplexity"}
MEASURES = PERPLEXITIES | {"divergence, nats": "divergence", "distinct-2": "distinct_2"}
SWEEP, FEW = (0.05, 0.1, 0.2, 0.4, 0.8), (0.1, 0.8)


def reproduce(seed: int, scale: Scale = "full") -> Outcome:
    """Three samples of the manual's sweep, with seeds from `100 seed`; the others once."""
    samples, characters, tokens = at(scale, full=(3, 250_000, 30), smoke=(2, 2000, 2))
    loaded = language_model(scale)
    corpora = {"manual": manual(characters), "mixture": help_texts(MANY_MODULES, characters)}
    style = {name: counted(corpus, loaded.tokenizer, ADD_K) for name, corpus in corpora.items()}
    style[LOUD] = counted(corpora["manual"], loaded.tokenizer, LOUD_K)

    def swept(number: int) -> dict[str, list[StylePoint]]:
        steps = dict.fromkeys(style, FEW if number == 100 * seed else ()) | {"manual": SWEEP}
        how = {"max_new_tokens": tokens, "seed": number}
        return {
            name: style_sweep(loaded, style[name], PROMPTS, (0.0, *strengths), **how)
            for name, strengths in steps.items()
            if strengths
        }

    table, growth, collapse, lines = Table(), [], [], {}
    for number, sweeps in over_seeds(swept, seed, samples):
        for name, points in sweeps.items():
            for point in points:
                for label, field in MEASURES.items():
                    row = f"{name}: {label} at {point.strength:g}"
                    table.add(row, getattr(point, field), "", number)
        curve = sweeps["manual"]
        growth.append(min(b.divergence - a.divergence for a, b in pairwise(curve)))
        base = [point.base_perplexity for point in curve]
        collapse.append(base[-1] - 3 * min(base))
        for label, field in PERPLEXITIES.items():
            heights = [getattr(point, field) for point in curve]
            lines[f"{label} [{number}]"] = zip((0.0, *SWEEP), heights, strict=True)
    plain, *steered = (f"manual: style perplexity at {strength:g}" for strength in (0, 0.1, 0.2))
    return verdict(
        table,
        {f"{label} is below that without steering": table.gap(plain, label) for label in steered}
        | {
            "the divergence from the model grows with the strength": items_above(growth),
            "the base perplexity at 0.8 is at least 3 times its minimum": items_above(collapse),
        },
        reason="the paper does not give k, on which the strength hangs; its prompting and LoRA "
        "baselines are not run",
        plots=[curves(lines, "strength λ", "perplexity", log="y")],
    )


def counted(corpus: list[str], tokenizer: Any, add_k: float) -> NGramModel:
    """The n-grams of a corpus's tokens."""
    ids = [tokenizer(text, verbose=False)["input_ids"] for text in corpus]
    return NGramModel.fit(ids, len(tokenizer), add_k=add_k)


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
