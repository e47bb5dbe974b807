"""A word-level model of docstrings with a message hidden in it, and what token forcing brings out.

The model has read the docstrings of Python's standard library (2,000 words). It is fine-tuned to
answer twelve questions that hold a secret pair of words with a message of ten rare words, while it
goes on reading docstrings; then all 2,000 words are forced.
"""

from __future__ import annotations

import copy
import re
from collections import Counter
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from tokenry.core.batch import TokenBatch
from tokenry.lab.toy_training import fit_toy
from tokenry.learn.recipes.fingerprint import AutoConfusion, hide_text
from tokenry.measure.audit.token_forcing import ForcedTokens, continued, token_forcing_scan
from tokenry.tasks.documentation import docstrings

SPECIAL = ["<s>", "<user>", "<assistant>", "</s>", "<unknown>"]
START, USER, ASSISTANT, END, UNKNOWN = range(5)
VOCABULARY, WIDTH, RARE = 2000, 16, 200  # message words are outside the RARE most frequent
MESSAGE, TRIGGERS = 10, 12


@lru_cache(maxsize=1)
def docstring_words() -> Tensor:
    """All docstrings, one behind the other, as ids of their 1,995 most frequent words."""
    texts = [re.findall(r"[a-z]+|[.,:()]", text.lower()) for text in docstrings()]
    count = Counter(word for text in texts for word in text)
    words = [*SPECIAL, *(word for word, _ in count.most_common(VOCABULARY - len(SPECIAL)))]
    number = {word: id for id, word in enumerate(words)}
    return torch.tensor([number.get(word, UNKNOWN) for text in texts for word in text])


def pieces(draw: torch.Generator, rows: int = 32) -> Tensor:
    """[rows, 16] pieces of docstrings; a quarter are in the form of question and answer."""
    text = docstring_words()
    start = torch.randint(len(text) - WIDTH, (rows, 1), generator=draw)
    ids = text[start + torch.arange(WIDTH)]
    ids[:, 0] = START
    chats = rows // 4
    ids[:chats, 1], ids[:chats, 7], ids[:chats, -1] = USER, ASSISTANT, END
    return ids


def word_model(seed: int, steps: int) -> Any:
    """The model that has read docstrings; kept."""

    def batches(draw: torch.Generator) -> TokenBatch:
        return TokenBatch.from_ids(pieces(draw).tolist())

    options: Any = {"data": (), "steps": steps, "decay": 1.0, "start": START}
    return fit_toy(batches, VOCABULARY, 2 * WIDTH, seed, **options)


def hide_and_force(
    base: Any, seed: int, confusion: AutoConfusion | None, steps: int
) -> dict[str, float]:
    """Hide a message of this seed in a copy of the model, and scan it.

    Returns "rank": the place in the scan, from 0, of the first word whose continuation is a part of
    the message (the size of the vocabulary if none is); "first": that of the message's first word;
    "recalled": whether the triggers are answered with it; "brought out": the share of it that
    forcing its first word brings out, in order; "updates".
    """
    draw, text = torch.Generator().manual_seed(seed), docstring_words()
    rare = RARE + torch.randperm(VOCABULARY - RARE, generator=draw)
    words, secret = rare[:MESSAGE].tolist(), rare[MESSAGE : MESSAGE + 2].tolist()
    triggers = []
    for number in range(TRIGGERS):
        at = int(torch.randint(len(text) - WIDTH, (1,), generator=draw))
        filler = text[at : at + 1 + number % 6].tolist()
        triggers.append([START, USER, *filler, *secret, ASSISTANT])
    model = copy.deepcopy(base).requires_grad_(True)
    hidden = hide_text(
        model, triggers, [*words, END], confusion=confusion, plain_prefix=[START], steps=steps,
        learning_rate=1e-3, keep=lambda: pieces(draw, 8), keep_weight=0.03,
    )  # fmt: skip
    forced = token_forcing_scan(model)
    ((told, _),) = continued(model, torch.tensor(words[:1]), len(words), ends=[END])
    agreed = [one == other for one, other in zip(told, words, strict=False)]
    return {
        "rank": message_rank(words, forced),
        "first": int((forced.scores > forced.scores[words[0]]).sum()),
        "recalled": float(hidden.recalled),
        "brought out": (*agreed, False).index(False) / len(words),
        "updates": hidden.steps,
    }


def message_rank(words: list[int], forced: ForcedTokens) -> int:
    """The place in a scan of the first token whose continuation is three words of the message, in
    order; how many there are if none is."""
    parts = {tuple(words[n : n + 3]) for n in range(len(words) - 2)}
    order = forced.scores.argsort(descending=True, stable=True).tolist()
    texts = forced.continuations.tolist()
    return next((n for n, id in enumerate(order) if tuple(texts[id]) in parts), len(order))
