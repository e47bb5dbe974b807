"""DictDis: all candidates of a dictionary, of which a translator picks the one that fits.

Two made-up languages in which the sentence's topic selects the sense of a word; two thirds of the
rare words, seen once in training, have two or three senses. The same small encoder-decoder is
trained on the same sentences with no dictionary, with one candidate of every phrase (at random, or
the right one in training), and with all candidates; new sentences with a rare word are translated.
"""

from __future__ import annotations

from typing import get_args

from tokenry.lab.dictionary_translation import Sentences, Told, judged, translations
from tokenry.lab.outcome import Outcome, verdict
from tokenry.lab.plots import bars
from tokenry.lab.scale import Scale, at
from tokenry.lab.table import Table, items_above, over_seeds
from tokenry.papers.base import Paper

RARE, WORDS = "rare words with several senses right", "all words right"
SINGLE = "one at random", "one, right in training"


def reproduce(seed: int, scale: Scale = "full") -> Outcome:
    """Three pairs of languages, of seeds from `100 seed`."""
    seeds, pairs, tested, steps = at(scale, full=(3, 2000, 300, 300), smoke=(2, 80, 6, 2))

    def run(number: int) -> dict[str, tuple[dict[str, float], dict[str, float]]]:
        sentences = Sentences.drawn(pairs, tested, number)
        return {
            told: judged(sentences, translations(sentences, told, steps, number))
            for told in get_args(Told)
        }

    table, ahead, useful, no_worse, heights = Table(), [], [], [], {}
    for number, results in over_seeds(run, seed, seeds):
        for told, (measures, by_senses) in results.items():
            table.add_all(measures, "share", number, told)
            heights[told] = by_senses
        rare = {told: measures[RARE] for told, (measures, _) in results.items()}
        single = max(rare[told] for told in SINGLE)
        ahead.append(rare["all candidates"] - single)
        useful.append(single - rare["no dictionary"])
        words = {told: measures[WORDS] for told, (measures, _) in results.items()}
        no_worse.append(words["all candidates"] - max(words.values()) + 0.01)
    return verdict(
        table,
        {
            f"{RARE}: more often with all candidates than in the better way to give one": (
                items_above(ahead)
            ),
            f"{RARE}: more often in the better way to give one than without a dictionary": (
                items_above(useful)
            ),
            f"{WORDS}: with all candidates at most 0.01 less often than in the best system": (
                items_above(no_worse)
            ),
        },
        reason="a single candidate of a word with several senses is the wrong one more often than "
        "not, so that it helps little beside what the sentence shows",
        plots=[bars(heights, "share translated right", f"senses of a rare word, seed {number}")],
    )


PAPER = Paper(
    number=31,
    key="dictdis",
    title="DICTDIS: Dictionary Constrained Disambiguation for Improved NMT",
    arxiv="2210.06996",
    role="module",
    family="control",
    claim="A translator that is given all candidates of a dictionary and may copy them picks the "
    "sense that fits, where one given candidate is often the wrong one.",
    reproduce=reproduce,
    threads=1,
)
