"""Pass keys: five digits that stand somewhere in a long text of filler, and a question for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tokenry.core.errors import InputError

FILLER = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
DIGITS = 5


def pass_key(generator: torch.Generator) -> str:
    return "".join(map(str, torch.randint(0, 10, (DIGITS,), generator=generator).tolist()))


def pass_key_prompts(
    tokenizer: Any, key: str, depths: Sequence[float], length: int
) -> tuple[Tensor, Tensor]:
    """Prompts that ask for a key which stands at these depths, and the key.

    Args:
        tokenizer: of a text to ids.
        key: the pass key.
        depths: shares of the filler that come before it, in [0, 1].
        length: tokens of a prompt.

    Returns:
        ids [depths, length], and the key's ids [depths, n], the same for every prompt.

    Raises:
        InputError: a length in which there is no place for filler.
    """

    def ids(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    start = ids("There is a pass key hidden in this text. Find it and remember it.\n")
    needle = ids(f" The pass key is {key}. Remember it. {key} is the pass key.")
    question = ids("\nWhat is the pass key? The pass key is ")
    missing = length - len(start) - len(needle) - len(question)
    if missing < 1:
        raise InputError(f"{length} tokens are too few: give at least {length - missing + 1}")
    filler = ids(" " + FILLER)
    filler *= -(-missing // len(filler))
    rows = []
    for depth in depths:
        before = int(depth * missing)
        rows.append(start + filler[:before] + needle + filler[: missing - before] + question)
    return torch.tensor(rows), torch.tensor(ids(key)).expand(len(depths), -1)
