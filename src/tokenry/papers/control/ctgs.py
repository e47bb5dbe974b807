"""Word filters on SmolLM2: perplexity on e-free sentences, and letters that slip through.

Measured are the perplexity of sentences without the letter e, plain and filtered; how many sampled
continuations contain an e, plain and filtered; and under "words of three to five letters" the share
of words that break the rule, with the paper's mask on token strings and with that on words.
"""

from __future__ import annotations

import math
from statistics import fmean
from typing import Any

import torch
from transformers import TopKLogitsWarper

from tokenry.core.batch import TokenBatch
from tokenry.decode.constraints.words import WordConstraint
from tokenry.decode.generate import ends
from tokenry.decode.sample import sample
from tokenry.decode.steering.ctgs import VocabFilterProcessor, token_mask
from tokenry.decode.steering.word_filters import Length, WithoutLetters
from tokenry.lab.models import language_model
from tokenry.lab.outcome import Outcome, verdict
from tokenry.lab.plots import bars, curves
from tokenry.lab.scale import Scale, at
from tokenry.lab.table import Table, items_above
from tokenry.measure.word_filters import broken_share, filtered_perplexity
from tokenry.papers.base import Paper
from tokenry.tasks.suites.lipograms import OPENINGS, SENTENCES


def reproduce(seed: int, scale: Scale = "full") -> Outcome:
    """Twenty sentences; three texts of thirty tokens behind each of ten openings."""
    sentences, openings, copies, tokens = at(scale, full=(20, 10, 3, 30), smoke=(1, 1, 2, 2))
    model, tokenizer = language_model(scale)
    no_e = WordConstraint(WithoutLetters("e"), tokenizer, wordless=True)
    sized = WordConstraint(Length(3, 5), tokenizer, wordless=True)
    scored = [
        filtered_perplexity(model, tokenizer(sentence)["input_ids"], no_e)
        for sentence in SENTENCES[:sentences]
    ]
    rows = [tokenizer(text)["input_ids"] for text in OPENINGS[:openings] for _ in range(copies)]
    batch = TokenBatch.from_ids(rows, pad_id=tokenizer.pad_token_id, padding_side="left")
    cut, eos = TopKLogitsWarper(50), ends(model, tokenizer)
    options: Any = {"temperature": 0.8, "leave": False, "max_new_tokens": tokens, "ends": eos}

    def written(*processors: Any) -> list[str]:
        """A text behind each opening, sampled at temperature 0.8 from the 50 likeliest tokens."""
        own = {"processors": [*processors, cut], "generator": torch.Generator().manual_seed(seed)}
        drawn = sample(model, batch.ids, batch.attention, **options, **own)
        return tokenizer.batch_decode(drawn, skip_special_tokens=True)

    def fits(string: str) -> bool:
        return sum(map(str.isalpha, string)) in (0, 3, 4, 5)

    mask = token_mask(tokenizer, fits)  # the paper's controller: one fixed mask
    by_token = written(lambda _, scores: scores.masked_fill(~mask, -math.inf))
    free = ["e" in text.lower() for text in written()]
    without = ["e" in text.lower() for text in written(VocabFilterProcessor(no_e))]
    word_breaks = broken_share(sized, written(VocabFilterProcessor(sized)))
    shares = {
        "texts with an e, plain": fmean(free),
        "texts with an e, filtered": fmean(without),
        "words not of 3-5 letters, token mask": broken_share(sized, by_token),
        "words not of 3-5 letters, word mask": word_breaks,
    }
    table = Table()
    for name, values in zip(("plain", "filtered"), zip(*scored, strict=True), strict=True):
        table.add(f"perplexity, {name}", torch.tensor(values).log().mean().exp())
    lower = [filtered < plain for plain, filtered in scored]
    table.add("sentences with lower perplexity", fmean(lower), "share")
    table.add_all(shares, "share", seed)
    return verdict(
        table,
        {
            "filtered perplexity is below the plain one on every sentence": all(lower),
            "no filtered text has an e": not any(without),
            "more than 9 of 10 plain ones have": items_above(free, 0.9),
            "no word is outside the length limits under the word mask": word_breaks == 0,
        },
        reason="the comparison with models fine-tuned on e-free books is not run",
        plots=[
            bars({"share": shares}, "share that breaks the rule"),
            curves({"e-free sentences": sorted(scored)}, "perplexity, plain", "filtered"),
        ],
    )


PAPER = Paper(
    number=62,
    key="ctgs",
    title="Most Language Models can be Poets too: An AI Writing Assistant and Constrained Text "
    "Generation Studio",
    arxiv="2306.15926",
    role="logits controller",
    family="control",
    claim="A word filter never raises perplexity on conforming text, and no violation remains",
    reproduce=reproduce,
)
