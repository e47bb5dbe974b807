"""Sentences about restaurants: six attributes, told in one of four patterns of words.

    name 3 | food 7 | price 1 | area 9 | stars 5 | near 2 | =      near 2 in the area 9 part ... end

The first words settle the pattern, and the attributes settle everything else.
"""

from __future__ import annotations

import random

import torch
from torch import Tensor

SLOTS = {"name": 24, "food": 12, "price": 6, "area": 12, "stars": 6, "near": 24}
PATTERNS = (
    "<name> serves <price> <food> food in the <area> part of town , has <stars> and is near <near>",
    "near <near> in the <area> part of town there is <name> , a <price> place for <food> food with "
    "<stars>",
    "for <food> food at <price> prices with <stars> go to <name> near <near> in the <area> part of "
    "town",
    "rated <stars> , the <area> restaurant <name> close to <near> offers <food> food that is "
    "<price>",
)
WORDS = sorted({word for pattern in PATTERNS for word in pattern.split() if word[0] != "<"})
VALUES = [f"{slot} {number}" for slot, count in SLOTS.items() for number in range(count)]
IDS = {word: number for number, word in enumerate(["=", "end", *WORDS, *VALUES])}
FIRST_VALUE = IDS[VALUES[0]]
"""Ids from this one on are attributes."""
PROMPT = len(SLOTS) + 1
SENTENCE = max(len(pattern.split()) for pattern in PATTERNS) + 1


def restaurants(count: int, generator: random.Random) -> dict[str, Tensor]:
    """Attributes and sentences, padded on the right: `input_ids`, `attention_mask` and `labels`,
    [count, PROMPT + SENTENCE] each; labels are -100 outside of the sentences."""
    rows, attention, labels = [], [], []
    for _ in range(count):
        values = {slot: IDS[f"{slot} {generator.randrange(size)}"] for slot, size in SLOTS.items()}
        words = generator.choice(PATTERNS).split()
        sentence = [values[word[1:-1]] if word[0] == "<" else IDS[word] for word in words]
        sentence.append(IDS["end"])
        missing = SENTENCE - len(sentence)
        rows.append([*values.values(), IDS["="], *sentence, *[0] * missing])
        attention.append([1] * (PROMPT + len(sentence)) + [0] * missing)
        labels.append([-100] * PROMPT + sentence + [-100] * missing)
    parts = {"input_ids": rows, "attention_mask": attention, "labels": labels}
    return {name: torch.tensor(part) for name, part in parts.items()}
