"""Treasure markers on a long tail of string tasks: what can be asked for that is rarely seen.

Six transformations of 4 letters, with frequencies from 50% down to 1%. A prompt names its task by
a cue that is right 60% of the time only, and whether the answer is to be short (2 letters) or long
by a cue that is right 75% of the time: the rest must be inferred, or be said by a marker. Small
transformers are fine-tuned on the same texts without markers, with markers and dropout (0.5, 0.5),
and with markers that are always in the prompt; they answer greedily.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from statistics import mean
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from tokenry.core.batch import TokenBatch
from tokenry.lab.toy_model import toy_model
from tokenry.lab.toy_training import sample_on, train_on
from tokenry.learn.data.precompute import joined_batch
from tokenry.learn.preference.treasure_markers import TreasureMarkers
from tokenry.papers.base import Measurement, Outcome, Paper
from tokenry.text.markers import MarkerSchema

SEEDS = 1
FREQUENCIES = {"copy": 50, "reverse": 25, "upper": 15, "shift": 6, "first": 3, "last": 1}
TAIL = ("first", "last")
LETTERS = "abcdef"
ROWS, PER_TASK, STEPS, BATCH, LEARNING_RATE = 8000, 100, 450, 48, 3e-3
METHODS = {
    "no markers": TreasureMarkers(computed=()),
    "markers": TreasureMarkers(computed=()),
    "always shown": TreasureMarkers(0.0, 0.0, computed=()),
}


@dataclass(frozen=True)
class Answers:
    """Shares over test examples: right text by task; wrong length; task marker written rightly."""

    right: dict[str, float]
    too_short_or_long: float
    marker: float | None = None

    @property
    def tail(self) -> float:
        return mean(self.right[task] for task in TAIL)


def example(task: str, draw: random.Random) -> dict[str, Any]:
    """A training or test row: prompt, chosen, markers."""
    letters = [draw.choice(LETTERS) for _ in range(4)]
    whole = {
        "copy": letters,
        "reverse": letters[::-1],
        "upper": [letter.upper() for letter in letters],
        "shift": [LETTERS[(LETTERS.index(letter) + 1) % 6] for letter in letters],
        "first": letters[:1] * 4,
        "last": letters[-1:] * 4,
    }[task]
    length = draw.choice(["short", "long"])
    cue = task if draw.random() < 0.6 else draw.choice(list(FREQUENCIES))
    size = length if draw.random() < 0.75 else draw.choice(["short", "long"])
    return {
        "prompt": f"{cue} {size} {' '.join(letters)} =",
        "chosen": " ".join(whole if length == "long" else whole[:2]),
        "markers": {"length": length, "task": task},
    }


def reproduce(seed: int) -> Outcome:
    """One data set, seed `seed * 100`: twice the training would not fit in the time."""
    runs = [results(seed * 100 + offset) for offset in range(SEEDS)]
    measurements = [
        Measurement(f"{name}: {what}", value, "", seed * 100 + offset)
        for offset, run in enumerate(runs)
        for name, found in run.items()
        for what, value in (
            ("accuracy on tasks of at most 3%", found.tail),
            ("accuracy over all tasks", mean(found.right.values())),
            ("answers of the wrong length", found.too_short_or_long),
            ("task marker right without a hint", found.marker),
        )
        if value is not None
    ]

    def average(name: str, field: str) -> float:
        return mean(getattr(run[name], field) for run in runs)

    tail = {name: average(name, "tail") for name in runs[0]}
    length = {name: average(name, "too_short_or_long") for name in runs[0]}
    marker = {n: average(n, "marker") for n in ("markers, inferred", "always shown, inferred")}
    error = (0.25 / (SEEDS * PER_TASK * len(TAIL))) ** 0.5
    held = (
        tail["markers, fixed"] > tail["markers, inferred"]
        and tail["markers, inferred"] >= tail["no markers"] - 2 * error
        and length["markers, fixed"] < length["no markers"]
        and marker["markers, inferred"] > 2 * marker["always shown, inferred"]
    )
    return Outcome(
        held=held,
        needs="on tasks of at most 3% fixed markers are more accurate than "
        "inferred ones, and those not less (by two standard errors) than no markers; fixed markers "
        "violate the length less than no markers; and without a hint the task marker is right more "
        "than twice as often with dropout as without",
        measurements=measurements,
        reason="tail accuracy "
        + ", ".join(f"{name} {value:.2f}" for name, value in tail.items())
        + "; wrong length "
        + ", ".join(f"{name} {value:.2f}" for name, value in length.items())
        + "; task marker right "
        + ", ".join(f"{name} {value:.2f}" for name, value in marker.items()),
        figure=lambda figure: _draw(figure, runs[0]),
    )


def results(seed: int) -> dict[str, Answers]:
    """Test results by method and use."""
    draw = random.Random(seed)
    tokenizer = word_tokenizer()
    tasks = draw.choices(list(FREQUENCIES), list(FREQUENCIES.values()), k=ROWS)
    rows = [_tokenized(example(task, draw), tokenizer) for task in tasks]
    tests = [_tokenized(example(t, draw), tokenizer) for t in FREQUENCIES for _ in range(PER_TASK)]
    schema = MarkerSchema.of_data(row["markers"] for row in rows)
    context = SimpleNamespace(tokenizer=tokenizer, seed=seed)
    found = {}
    for name, objective in METHODS.items():
        given = [{**row, "markers": None} for row in rows] if name == "no markers" else rows
        annotated = objective.precompute(given, context)
        model = train_on(
            lambda generator, annotated=annotated: _batch(annotated, generator),
            objective,
            toy_model(len(tokenizer), 40, seed),
            steps=STEPS,
            learning_rate=LEARNING_RATE,
            decay=0.5,
            seed=seed,
        )
        if name == "no markers":
            plain = answers(model, tokenizer, tests, schema, fixed=False)
            found[name] = Answers(plain.right, plain.too_short_or_long)
            continue
        for use in ("inferred", "fixed"):
            found[f"{name}, {use}"] = answers(model, tokenizer, tests, schema, fixed=use == "fixed")
    return found


def answers(
    model: Any, tokenizer: Any, tests: list[dict[str, Any]], schema: MarkerSchema, *, fixed: bool
) -> Answers:
    """Greedy answers to the tests; fixed shows the true markers behind the prompt."""
    prompts = []
    for row in tests:
        shown = schema.render(row["markers"]) if fixed else ""
        prompts.append([*row["prompt_ids"], *tokenizer(shown)["input_ids"]])
    drawn = sample_on(
        model, torch.tensor(prompts), 16, torch.Generator(), end=tokenizer.eos_token_id, greedy=True
    )
    right: dict[str, list[bool]] = {task: [] for task in FREQUENCIES}
    wrong_length, markers = [], []
    for row, ids in zip(tests, drawn.tolist(), strict=True):
        words = tokenizer.decode(ids, skip_special_tokens=True)
        written, _, text = words.rpartition("]")
        right[row["markers"]["task"]].append(text.split() == row["chosen"].split())
        wrong_length.append(len(text.split()) != len(row["chosen"].split()))
        markers.append(f"task : {row['markers']['task']}" in written)
    return Answers(
        {task: mean(map(float, values)) for task, values in right.items()},
        mean(map(float, wrong_length)),
        None if fixed else mean(map(float, markers)),
    )


def word_tokenizer() -> Any:
    """Every word and punctuation mark of the task is one token."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = [*LETTERS, *LETTERS.upper(), *FREQUENCIES, "short", "long", *"=[]|:", "length", "task"]
    vocabulary = {word: number for number, word in enumerate(["<end>", *words])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<end>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>")


def _tokenized(row: dict[str, Any], tokenizer: Any) -> dict[str, Any]:
    ids = {side: tokenizer(row[side])["input_ids"] for side in ("prompt", "chosen")}
    return {**row, "prompt_ids": ids["prompt"], "chosen_ids": [*ids["chosen"], 0]}


def _batch(rows: list[dict[str, Any]], generator: torch.Generator) -> TokenBatch:
    index = torch.randint(len(rows), (BATCH,), generator=generator).tolist()
    part = [rows[place] for place in index]
    batch = joined_batch([r["prompt_ids"] for r in part], [r["marked_ids"] for r in part])
    learned: Tensor = torch.zeros(batch.shape)
    learned[batch.target] = torch.tensor([x for row in part for x in row["marked_learned"]])
    return batch.with_columns(learned=learned)


def _draw(figure: Any, run: dict[str, Answers]) -> None:
    axes = figure.subplots()
    for name, found in run.items():
        axes.plot(list(FREQUENCIES), list(found.right.values()), marker="o", label=name)
    labels = [f"{task}\n{percent}%" for task, percent in FREQUENCIES.items()]
    axes.set_xticks(range(len(labels)), labels)
    axes.set(xlabel="task and its frequency in training", ylabel="accuracy")
    axes.legend()


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
