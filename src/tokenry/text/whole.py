"""The text of tokens up to its last whole character: tokens may be cut inside one."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Any

from tokenry.text.vocabulary import is_byte_level, token_bytes

LONGEST = 4  # bytes of a character
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


def whole_text(tokenizer: Any, ids: Sequence[int]) -> str:
    """What the tokens spell without special ones, and without a character that has only begun.

    Bytes that can never become a character are replaced, as the tokenizer does it.
    """
    text = tokenizer.decode(ids, skip_special_tokens=True)
    if not text.endswith(REPLACEMENT):
        return text
    begun = open_bytes(tokenizer, ids)
    # byte-level decoders replace a beginning by one character, others each of its bytes
    extra = bool(begun) if is_byte_level(tokenizer) else len(begun)
    return text[: len(text) - extra]


def open_bytes(tokenizer: Any, ids: Sequence[int]) -> bytes:
    """The bytes of the character that the tokens' text ends in, b"" if it ends with a whole one."""
    pieces, tail = token_bytes(tokenizer), b""
    for token in reversed(ids):
        if len(tail) >= LONGEST:
            break
        tail = (pieces[token] if token < len(pieces) else b"") + tail
    decoder = codecs.getincrementaldecoder("utf-8")(errors="ignore")
    decoder.decode(tail)
    return decoder.getstate()[0]
