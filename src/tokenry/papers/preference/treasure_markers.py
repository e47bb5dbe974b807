"""Treasure markers on a long tail of string tasks: what can be asked for that is rarely seen.

Six transformations of 4 letters, with frequencies from 50% down to 1%; a prompt's cues of the task
and of the answer's length are often wrong. Small transformers are fine-tuned on the same texts
without markers, with markers and dropout (0.5, 0.5), and with markers that are always in the
prompt; they answer greedily, the markers inferred or set by the user.
"""

from __future__ import annotations

from tokenry.lab.outcome import Outcome, verdict
from tokenry.lab.plots import bars
from tokenry.lab.scale import Scale, at
from tokenry.lab.string_tasks import Answers, StringBench
from tokenry.lab.table import Table, over_seeds, paired
from tokenry.learn.preference.treasure_markers import TreasureMarkers
from tokenry.papers.base import Paper
from tokenry.tasks.worlds.string_tasks import FREQUENCIES, TAIL

ALLOWED = 0.05  # two standard errors of the share of right answers to 400 tests


def reproduce(seed: int, scale: Scale = "full") -> Outcome:
    """Two data sets, seeds from `100 seed`; differences are paired over their tests."""
    small = {"rows": 400, "per_task": 4, "steps": 2}
    sets, size = at(scale, full=(2, {}), smoke=(2, small))
    table, pooled, by_task = Table(), {}, {}

    def answered(number: int) -> tuple[StringBench, dict[str, Answers]]:
        bench = StringBench(number, **size)
        plain = bench.train(TreasureMarkers(computed=()), markers=False)
        models = {
            "markers": bench.train(TreasureMarkers(computed=())),
            "always shown": bench.train(TreasureMarkers(0.0, 0.0, computed=())),
        }
        return bench, {"no markers": bench.answers(plain)} | {
            f"{name}, {use}": bench.answers(model, fixed=use == "fixed")
            for name, model in models.items()
            for use in ("inferred", "fixed")
        }

    for number, (bench, runs) in over_seeds(answered, seed, sets):
        tail = [row["markers"]["task"] in TAIL for row in bench.data[1]]
        for name, answers in runs.items():
            right, length, marker = (
                values.float() for values in (answers.right, answers.wrong_length, answers.marker)
            )
            values = {
                "accuracy on tasks of at most 3%": float(right[tail].mean()),
                "accuracy over all tasks": float(right.mean()),
                "answers of the wrong length": float(length.mean()),
            }
            if "inferred" in name:
                values["task marker right without a hint"] = float(marker.mean())
            table.add_all(values, "", number, name)
            for what, items in (("tail", right[tail]), ("length", length), ("marker", marker)):
                pooled.setdefault((name, what), []).extend(items.tolist())
            by_task[name] = dict(
                zip(FREQUENCIES, right.view(len(FREQUENCIES), -1).mean(1).tolist(), strict=True)
            )
    inferred, fixed, plain = (
        pooled[n, "tail"] for n in ("markers, inferred", "markers, fixed", "no markers")
    )
    hidden = pooled["always shown, inferred", "marker"]
    return verdict(
        table,
        {
            "on tasks of at most 3 % fixed markers are more accurate than inferred ones": paired(
                fixed, inferred
            ),
            "and those not less, by two standard errors, than no markers": paired(
                inferred, [x - ALLOWED for x in plain]
            ),
            "fixed markers violate the length less than no markers": paired(
                pooled["no markers", "length"], pooled["markers, fixed", "length"]
            ),
            "without a hint dropout makes the task marker right more than twice as often": paired(
                pooled["markers, inferred", "marker"], [2 * x for x in hidden]
            ),
        },
        plots=[bars(by_task, "accuracy", "task, from 50 % of the data to 1 %")],
    )


PAPER = Paper(
    number=43,
    key="treasure-markers",
    title="Treasure Hunt: Real-time Targeting of the Long Tail using Training-Time Markers",
    arxiv="2506.14702",
    role="objective",
    family="preference",
    claim="Training with markers before the completion, and with dropout behind the prompt, lets a "
    "model infer them and lets users set them: most of all for what is rare in the data.",
    reproduce=reproduce,
    threads=1,
)
