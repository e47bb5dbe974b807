"""The model's window: texts end where it has no further positions, and it is said."""

from __future__ import annotations

import warnings
from typing import Any

from tokenry.core.errors import InputError
from tokenry.model import compat


def new_tokens_within(model: Any, length: int, max_new_tokens: int) -> int:
    """How many of `max_new_tokens` fit into the window behind `length` tokens.

    Raises:
        InputError: none does.
    """
    window = compat.window(model)
    if window is None:
        return max_new_tokens
    if length >= window:
        raise InputError(
            f"a prompt of {length} tokens fills the model's window of {window}: shorten it"
        )
    return min(max_new_tokens, window - length)


def warn_of_window(model: Any) -> None:
    """Say that a text was ended by the window."""
    warnings.warn(
        f"a text ended because it fills the model's window of {compat.window(model)} tokens, "
        "before max_new_tokens: shorten the prompt",
        stacklevel=3,
    )
