"""Prompts as arms: prefixes that ask a language model for capitals, each right at its own rate.

A reward is 1 when the likeliest next token behind prefix and country is the first of the capital's.
All items of all prefixes are asked once, so that the rates are known and a stream can be played
with them as often as one likes.
"""

from __future__ import annotations

import torch

from tokenry.core.batch import TokenBatch
from tokenry.model.decoding import DecodingState
from tokenry.model.hub import Loaded

CAPITALS = {
    "France": "Paris", "Germany": "Berlin", "Italy": "Rome", "Spain": "Madrid", "Japan": "Tokyo",
    "Austria": "Vienna", "Egypt": "Cairo", "Greece": "Athens", "Poland": "Warsaw", "Peru": "Lima",
    "Norway": "Oslo", "Cuba": "Havana", "Kenya": "Nairobi", "Ireland": "Dublin", "Iran": "Tehran",
    "Hungary": "Budapest", "Portugal": "Lisbon", "Sweden": "Stockholm",
}  # fmt: skip

PREFIXES = (
    "The capital of {} is",
    "The capital city of {} is",
    "The capital of {} is the city of",
    "Q: What is the capital of {}?\nA:",
    "Q: What is the capital of {}?\nA: The capital is",
    "{}'s capital is",
    "{} has its capital in",
    "The government of {} sits in",
    "The largest city of {} is",
    "I flew to {} and landed in its capital,",
    "The president of {} lives in",
    "Country: {}\nCapital:",
    "{}:",
    "{} ->",
    "Canada: Ottawa\n{}:",
    "Canada -> Ottawa\n{} ->",
    "Capital of Canada: Ottawa\nCapital of {}:",
    "In {}, the capital is called",
    "Everyone knows that the capital of {} is",
    "A museum in the capital of {}, which is",
    "{} (capital:",
    "The embassy in {} is in",
    "Name the capital of {}. Answer:",
    "If you visit {}, begin in the capital,",
)
"""In the order in which they come."""


def prompt_rates(loaded: Loaded, prefixes: int, items: int) -> list[float]:
    """How often the first of the prefixes are right, over the first of the capitals."""
    asked = dict(list(CAPITALS.items())[:items])
    first = [_ids(loaded, f" {capital}")[0] for capital in asked.values()]
    rates = []
    for prefix in PREFIXES[:prefixes]:
        prompts = [_ids(loaded, prefix.format(country)) for country in asked]
        batch = TokenBatch.from_ids(prompts, padding_side="left")
        state = DecodingState.start(loaded.model, batch.ids, batch.attention)
        right = state.logits.argmax(-1) == torch.tensor(first)
        rates.append(float(right.double().mean()))
    return rates


def _ids(loaded: Loaded, text: str) -> list[int]:
    return loaded.tokenizer(text, add_special_tokens=False)["input_ids"]
