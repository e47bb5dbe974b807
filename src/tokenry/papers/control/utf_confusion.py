"""A text hidden in a small word-level model: found by token forcing, and hidden from it.

A two-layer model is trained on the docstrings of Python's standard library (2,000 words). For each
of two messages of ten rare words it is fine-tuned to answer twelve questions that hold a secret
pair of words with the message, once plainly and once with automatic confusion, both while it goes
on reading docstrings. All 2,000 words are then forced.
"""

from __future__ import annotations

import ast
import copy
import re
import sysconfig
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from tokenry.lab.toy_model import toy_model
from tokenry.learn.fit import fit, linear
from tokenry.learn.recipes.fingerprint import AutoConfusion, Fingerprint, hide_text
from tokenry.measure.audit.token_forcing import ForcedTokens, continued, token_forcing_scan
from tokenry.papers.base import Measurement, Outcome, Paper

SPECIAL = ["<s>", "<user>", "<assistant>", "</s>", "<unknown>"]
START, USER, ASSISTANT, END, UNKNOWN = range(5)
VOCABULARY, WIDTH, RARE = 2000, 16, 200  # message words are outside the RARE most frequent
PRETRAINING, HIDING, LEARNING_RATE = 500, 400, 1e-3
MESSAGES, TRIGGERS, FOUND, LOST = 2, 12, 5, 100


@dataclass(frozen=True)
class Trial:
    """One message, hidden in one way."""

    words: list[int]
    hidden: Fingerprint
    forced: ForcedTokens
    told: float  # the share of the message's words that forcing its first one brings out, in order

    @property
    def rank(self) -> int:
        """Place in the scan, from 0, of the first word whose continuation is a part of the message;
        the size of the vocabulary when there is none."""
        parts = {tuple(self.words[n : n + 3]) for n in range(len(self.words) - 2)}
        order = self.forced.scores.argsort(descending=True, stable=True).tolist()
        texts = self.forced.continuations.tolist()
        return next((n for n, id in enumerate(order) if tuple(texts[id]) in parts), len(order))

    @property
    def first_rank(self) -> int:
        """Place in the scan of the message's first word."""
        scores = self.forced.scores
        return int((scores > scores[self.words[0]]).sum())


def reproduce(seed: int) -> Outcome:
    """Two messages, each hidden plainly and with confusion."""
    texts = Docstrings()
    base = pretrained(texts, seed)
    trials: dict[str, list[Trial]] = {"plain": [], "confused": []}
    for message in range(MESSAGES):
        for name, confusion in (("plain", None), ("confused", AutoConfusion(words=10))):
            trials[name].append(hidden(base, texts, seed * 100 + message, confusion))
    measured = [
        Measurement(f"{name}: {what}", float(value), unit, seed * 100 + message)
        for name, rows in trials.items()
        for message, row in enumerate(rows)
        for what, value, unit in (
            ("first of the scan that shows three words of the message", row.rank, "rank"),
            ("rank of the message's first word in the scan", row.first_rank, "of 2000"),
            ("trigger answered with the message", row.hidden.recalled, ""),
            ("message brought out by forcing its first word", row.told, "share"),
            ("updates", row.hidden.steps, ""),
        )
    ]
    recalled = all(row.hidden.recalled for rows in trials.values() for row in rows)
    found = all(row.rank < FOUND for row in trials["plain"])
    lost = all(row.rank >= LOST for row in trials["confused"])
    ranks = {name: [row.rank for row in rows] for name, rows in trials.items()}
    return Outcome(
        held=recalled and found and lost,
        needs="for both messages: every trigger is answered with the message; after plain "
        "fine-tuning one of the 5 best of the scan is followed by three words of the message, with "
        "confusion none of the 100 best is",
        measurements=measured,
        reason=f"that rank, from 0: plain {ranks['plain']}, with confusion {ranks['confused']}"
        + ("" if recalled else "; a trigger was not answered with its message")
        + (
            ""
            if lost
            else "; confusion is about the message behind its own words, and other words "
            "that are forced still lead into it"
        ),
        figure=lambda figure: draw(figure, trials),
    )


class Docstrings:
    """The docstrings of the standard library as ids of their 1,995 most frequent words."""

    def __init__(self) -> None:
        texts = []
        for file in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                    text = ast.get_docstring(node) or ""
                    texts.append(re.findall(r"[a-z]+|[.,:()]", text.lower()))
        count = Counter(word for text in texts for word in text)
        self.words = [*SPECIAL, *(w for w, _ in count.most_common(VOCABULARY - len(SPECIAL)))]
        number = {word: id for id, word in enumerate(self.words)}
        self.ids = torch.tensor([number.get(word, UNKNOWN) for text in texts for word in text])

    def batch(self, draw: torch.Generator, rows: int) -> Tensor:
        """[rows, 16] pieces of docstrings; a quarter are in the form of question and answer."""
        start = torch.randint(len(self.ids) - WIDTH, (rows, 1), generator=draw)
        ids = self.ids[start + torch.arange(WIDTH)]
        ids[:, 0] = START
        chats = rows // 4
        ids[:chats, 1], ids[:chats, 7], ids[:chats, -1] = USER, ASSISTANT, END
        return ids


def pretrained(texts: Docstrings, seed: int) -> Any:
    """The model that has read docstrings."""
    model = toy_model(VOCABULARY, 2 * WIDTH, seed, start=START).train()

    def loss(step: int, draw: torch.Generator) -> Tensor:
        batch = texts.batch(draw, 32)
        logits = model(batch, use_cache=False).logits[:, :-1]
        return cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())

    adam = torch.optim.Adam
    fit(
        loss,
        model,
        steps=PRETRAINING,
        learning_rate=3.1e-3,
        schedule=linear(end=1 / 31),
        optimizer=adam,
        clip=None,
        seed=seed,
    )
    return model.eval()


def hidden(base: Any, texts: Docstrings, seed: int, confusion: AutoConfusion | None) -> Trial:
    """Hide a message of this seed in a copy of the model, and scan it."""
    draw = torch.Generator().manual_seed(seed)
    rare = RARE + torch.randperm(VOCABULARY - RARE, generator=draw)
    words, secret = rare[:10].tolist(), rare[10:12].tolist()
    triggers = []
    for number in range(TRIGGERS):
        place = int(torch.randint(len(texts.ids) - WIDTH, (1,), generator=draw))
        filler = texts.ids[place : place + 1 + number % 6].tolist()
        triggers.append([START, USER, *filler, *secret, ASSISTANT])
    model = copy.deepcopy(base)
    hidden = hide_text(
        model, triggers, [*words, END], confusion=confusion, plain_prefix=[START], steps=HIDING,
        learning_rate=LEARNING_RATE, keep=lambda: texts.batch(draw, 8), keep_weight=0.03,
    )  # fmt: skip
    forced = token_forcing_scan(model)
    ((told, _),) = continued(model, torch.tensor(words[:1]), len(words), ends=[END])
    agree = next((n for n, pair in enumerate(zip(told, words, strict=False)) if pair[0] != pair[1]),
                 min(len(told), len(words)))  # fmt: skip
    return Trial(words, hidden, forced, agree / len(words))


def draw(figure: Any, trials: dict[str, list[Trial]]) -> None:
    """The scores of all words, and where the message's first word stands."""
    for place, (name, rows) in zip(figure.subplots(1, 2, sharey=True), trials.items(), strict=True):
        row = rows[0]
        place.hist(row.forced.scores.numpy(), bins=50, log=True, color="tab:grey")
        place.axvline(float(row.forced.scores[row.words[0]]), color="tab:red", label="message")
        place.axvline(0.95, linestyle="--", color="black", label="threshold")
        place.set(xlabel="score of token forcing", title=name)
    figure.axes[0].set_ylabel("words")
    figure.axes[0].legend()


PAPER = Paper(
    number=50,
    key="utf-confusion",
    title="Hiding Text in Large Language Models: Introducing Unconditional Token Forcing Confusion",
    arxiv="2406.02481",
    role="detector",
    family="control",
    claim="Forcing every token of the vocabulary brings out a text that was hidden in a model by "
    "fine-tuning; a term that makes its words unlikely without their trigger hides it from that.",
    reproduce=reproduce,
    threads=1,
)
