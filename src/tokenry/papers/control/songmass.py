"""SongMASS: pre-training on unpaired songs, and attention that knows which word is sung on which
note.

Made-up songs: 200 with lyrics and melody, 2,000 whose lyrics and melodies do not belong together.
A small encoder-decoder for each of the two learns to write the melody for lyrics (a) from the pairs
alone, (b) after song-level masked pre-training on the unpaired ones, (c) after it, with the
alignment loss and the sentence mask on its cross-attention. On new songs: the negative
log-likelihood of a melody token, and how well the dynamic programme, run on the last layer's
attention, tells which notes belong to which word.
"""

from __future__ import annotations

from tokenry.lab.outcome import Outcome, verdict
from tokenry.lab.plots import bars
from tokenry.lab.scale import Scale, at
from tokenry.lab.songs import SongBench, SongScores
from tokenry.lab.table import Table, over_seeds, paired
from tokenry.papers.base import Paper

COST, F1 = "negative log-likelihood, {}", "alignment F1, {}"
ALONE, MASS, BOTH = "pairs alone", "with pre-training", "with pre-training and constraints"


def reproduce(seed: int, scale: Scale = "full") -> Outcome:
    """Two draws of songs, with seeds from `100 seed`."""
    small = {"paired": 4, "unpaired": 8, "tested": 5, "pretraining": 2, "fine_tuning": 2}
    seeds, size = at(scale, full=(2, {"pretraining": 220, "fine_tuning": 220}), smoke=(2, small))
    table, songs = Table(), {name: [] for name in (ALONE, MASS, BOTH)}

    def taught(number: int) -> dict[str, SongScores]:
        bench = SongBench(number, **size)
        modules = bench.pretrained()
        alone, mass = bench.taught(bench.fresh()), bench.taught(modules)
        return {ALONE: alone, MASS: mass, BOTH: bench.taught(modules, constrained=True)}

    for number, systems in over_seeds(taught, seed, seeds):
        for name, scores in systems.items():
            table.add(COST.format(name), float(scores.cost.mean()), "nats a token", number)
            table.add(F1.format(name), float(scores.f1.mean()), "", number)
            songs[name] += zip(scores.cost.tolist(), scores.f1.tolist(), strict=True)
    cost, f1 = ({name: [song[n] for song in songs[name]] for name in songs} for n in (0, 1))
    return verdict(
        table,
        {
            "pre-training lowers the negative log-likelihood of new melodies, over the "
            "songs": paired(cost[ALONE], cost[MASS]),
            "pre-training with both attention constraints raises the F1 of the alignment over "
            "pairs alone": paired(f1[BOTH], f1[ALONE]),
        },
        plots=[
            bars({name: {"NLL": table.mean(COST.format(name))} for name in songs}, "nats a token"),
            bars({name: {"F1": table.mean(F1.format(name))} for name in songs}, "alignment F1"),
        ],
    )


PAPER = Paper(
    number=3,
    key="songmass",
    title="SongMASS: Automatic Song Writing with Pre-training and Alignment Constraint",
    arxiv="2012.05168",
    role="objective",
    family="control",
    claim="Song-level masked pre-training on unpaired lyrics and melodies makes better melodies, "
    "and attention constraints align them with the words.",
    reproduce=reproduce,
    threads=1,
)
