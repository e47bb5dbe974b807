"""Byte-exact probabilities: prompts that end inside a word, and models that share no vocabulary.

First, lines of the standard library's source are cut inside a name, and SmolLM2 completes the name
greedily: from the tokens of the cut prompt, with the last of them healed (taken back, and replaced
by the likeliest token that begins with its bytes), and byte by byte. Second, bits per byte of a
short text under SmolLM2, Gemma 3 and the average of their next-byte distributions.
"""

import inspect
import random
import re
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch

from tokenry.decode.bytes import ByteEnsemble, ByteModel, complete
from tokenry.model.decoding import DecodingState
from tokenry.model.hub import load
from tokenry.papers.base import Measurement, Outcome, Paper

PROMPTS, MOST_BYTES, CONTEXT = 24, 8, 160
NAME = re.compile(r"[A-Za-z_]{6,12}")
WAYS = ("tokens", "token healing", "bytes")
TEXT = (
    "The harbour was quiet that morning. A few fishing boats had come in before dawn, and their "
    "crews were mending nets on the quay."
)


def reproduce(seed: int) -> Outcome:
    """Both panels; held if bytes >= healing > tokens and the average beats the mean of the two."""
    loaded = load("smollm2")
    small = ByteModel(*loaded)
    cuts = cut_names(seed)
    found = {
        "tokens": [greedy(*loaded, cut.prompt, 0) for cut in cuts],
        "token healing": [greedy(*loaded, cut.prompt, 1) for cut in cuts],
        "bytes": [
            complete(small, cut.prompt, len(cut.rest), temperature=0).data.decode(errors="replace")
            for cut in cuts
        ],
    }
    share = {
        way: sum(text.startswith(cut.rest) for text, cut in zip(texts, cuts, strict=True)) / PROMPTS
        for way, texts in found.items()
    }
    bits = bits_per_byte(small, ByteModel(*load("gemma3-270m")))
    mean = (bits["SmolLM2"] + bits["Gemma 3"]) / 2
    fair = share["bytes"] >= share["token healing"] > share["tokens"]
    better = bits["average"] < mean
    reasons = [
        *([] if fair else ["the order of the three ways of completing is another one"]),
        *([] if better else ["the average of the models is not better than their mean"]),
    ]
    return Outcome(
        held=fair and better,
        needs="names completed exactly: bytes >= token healing > tokens; and bits per byte of the "
        "averaged models below the mean of the two",
        measurements=[
            *(Measurement(f"names completed, {way}", share[way], "share", seed) for way in WAYS),
            *(Measurement(f"{name}", value, "bits per byte", seed) for name, value in bits.items()),
            Measurement("mean of the two models", mean, "bits per byte", seed),
        ],
        reason="; ".join(reasons)
        or f"{PROMPTS} names, one text of {len(TEXT)} bytes: the order is tested, not its size",
        figure=lambda figure: draw(figure, share, bits),
    )


class Cut(NamedTuple):
    """A prompt that ends inside a name, and the rest of the name."""

    prompt: str
    rest: str


def cut_names(seed: int) -> list[Cut]:
    """Names in the standard library's source, cut after at least two letters."""
    choice = random.Random(seed)
    cuts = []
    for module in choice.choices(modules(), k=PROMPTS):
        source = inspect.getsource(module)
        names = [match for match in NAME.finditer(source) if match.start() > CONTEXT]
        name = choice.choice(names)
        at = choice.randrange(name.start() + 2, name.end() - 1)
        at = max(at, name.end() - MOST_BYTES)
        begin = source.rfind("\n", 0, name.start() - CONTEXT) + 1
        cuts.append(Cut(source[begin:at], source[at : name.end()]))
    return cuts


def modules() -> list[ModuleType]:
    import bisect
    import colorsys
    import csv
    import fnmatch
    import heapq
    import json.decoder
    import shelve
    import statistics
    import string
    import textwrap

    return [
        bisect, colorsys, csv, fnmatch, heapq, json.decoder, shelve, statistics, string, textwrap,
    ]  # fmt: skip


def greedy(model: Any, tokenizer: Any, prompt: str, healed: int) -> str:
    """What is written after `prompt`; with `healed` = 1 the last token is replaced first."""
    from tokenry.decode.bytes.canonical import canonical

    vocabulary = canonical(tokenizer).vocabulary
    ids = tokenizer(prompt)["input_ids"]
    taken = b"".join(vocabulary.pieces[token] for token in ids[len(ids) - healed :])
    state = DecodingState.start(model, torch.tensor([ids[: len(ids) - healed]]))
    low, high = vocabulary.range(taken) if healed else (0, len(vocabulary))
    data = b""
    while True:
        logits = state.logits[0]
        if healed and not data:
            allowed = torch.as_tensor(vocabulary.ids[low:high])
            token = int(allowed[logits[allowed].argmax()])
        else:
            token = int(logits.argmax())
        data += vocabulary.pieces[token]
        if len(data) >= len(taken) + MOST_BYTES or not vocabulary.pieces[token]:
            return data[len(taken) :].decode(errors="replace")
        state.append(torch.tensor([token]))


def bits_per_byte(small: ByteModel, other: ByteModel) -> dict[str, float]:
    """Of `TEXT` after its first byte, under both models and under their average."""
    both = ByteEnsemble([small, other])
    data = TEXT.encode()
    state, lost = both.start(data[:1]), np.zeros(3)
    for byte in data[1:]:
        rows = [
            model.next_byte_logprobs(one)[byte] if one is not None else -np.inf
            for model, one in zip(both.models, state.states, strict=True)
        ]
        lost -= [*rows, np.logaddexp(rows[0], rows[1]) - np.log(2)]
        state = both.advance(state, byte)
    lost /= np.log(2) * (len(data) - 1)
    return dict(zip(("SmolLM2", "Gemma 3", "average"), map(float, lost), strict=True))


def draw(figure: Any, share: dict[str, float], bits: dict[str, float]) -> None:
    left, right = figure.subplots(1, 2)
    left.bar(WAYS, [share[way] for way in WAYS])
    left.set_ylabel("names completed exactly")
    right.bar(list(bits), list(bits.values()))
    right.axhline((bits["SmolLM2"] + bits["Gemma 3"]) / 2, linestyle=":", label="mean of the two")
    right.set_ylabel("bits per byte")
    right.legend()


PAPER = Paper(
    number=35,
    key="byte-exact",
    title="Exact Byte-Level Probabilities from Tokenized Language Models for FIM-Tasks and Model "
    "Ensembles",
    arxiv="2410.09303",
    role="sampler",
    family="control",
    claim="Next-byte probabilities, exact over all encodings, complete prompts cut inside a word "
    "better than token healing, and let models with different vocabularies be averaged.",
    reproduce=reproduce,
)
