"""Lookup: a prompt lists evidence, asks for one key's value, and adds a filler word.

    k0 v3 k1 v5 k2 v0 ? k1 f4 =      answer   v5 .

The filler may name the right value more often than chance: a shortcut that the evidence does not
speak about.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from tokenry.text.word_level import word_tokenizer

KEYS, VALUES = 3, 6
WORDS = (
    *("[MASK]", "?", "=", "."),
    *(f"k{key}" for key in range(KEYS)),
    *(f"{kind}{value}" for kind in "vf" for value in range(VALUES)),
)
FIRST_VALUE = WORDS.index("v0")


class Question(NamedTuple):
    """The evidence, the prompt that begins with it, and the number of the right value."""

    evidence: str
    prompt: str
    value: int


def tokenizer() -> Any:
    """Every word is one token; "?" and "=" are special."""
    special = {"mask_token": "[MASK]", "additional_special_tokens": ["?", "="]}
    return word_tokenizer(WORDS, unknown="?", **special)


def questions(count: int, correlation: float, generator: torch.Generator) -> list[Question]:
    """Seeded questions; the filler names the value with that probability, else a random one."""

    def below(bound: int) -> int:
        return int(torch.randint(bound, (1,), generator=generator))

    drawn = []
    for _ in range(count):
        values = torch.randint(VALUES, (KEYS,), generator=generator).tolist()
        asked, filler = below(KEYS), below(VALUES)
        if float(torch.rand(1, generator=generator)) < correlation:
            filler = values[asked]
        evidence = " ".join(f"k{key} v{value}" for key, value in enumerate(values))
        prompt = f"{evidence} ? k{asked} f{filler} ="
        drawn.append(Question(evidence, prompt, values[asked]))
    return drawn


def pairs(count: int, correlation: float, generator: torch.Generator) -> list[dict[str, Any]]:
    """Preference rows with their ids: the right value over a wrong one."""
    encode, rows = tokenizer(), []
    for evidence, prompt, value in questions(count, correlation, generator):
        other = (value + int(torch.randint(1, VALUES, (1,), generator=generator))) % VALUES
        row = {"evidence": evidence, "prompt": prompt}
        row |= {"chosen": f"v{value} .", "rejected": f"v{other} ."}
        rows.append(row | {f"{name}_ids": encode(text)["input_ids"] for name, text in row.items()})
    return rows
