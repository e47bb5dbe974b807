"""What each vocabulary entry stands for, as bytes.

Two families of tokenizers are understood: byte-level BPE (GPT-2, Llama 3, Qwen, SmolLM), whose
entries spell each byte as one printable character, and SentencePiece-like ones (Llama 2, Gemma),
which write a space as "▁" and single bytes as "<0x0A>". Bytes, not strings, are the common ground:
a multi-byte character may be split over several tokens, none of which decodes alone.
"""

import json
import re
from functools import lru_cache
from typing import Any
from weakref import WeakKeyDictionary

from tokenry.core.errors import VocabularyError

BYTE_FALLBACK = re.compile(r"<0x([0-9A-Fa-f]{2})>")
WORD_MARK = "▁"
_known: WeakKeyDictionary[Any, list[bytes]] = WeakKeyDictionary()  # a big vocabulary takes seconds


@lru_cache(maxsize=1)
def byte_alphabet() -> dict[str, int]:
    """The character that byte-level BPE writes for each byte, inverted: character -> byte.

    Printable Latin-1 characters stand for themselves; the other bytes take the characters from
    U+0100 upwards, in order.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = (byte for byte in range(256) if byte not in printable)
    alphabet = {chr(byte): byte for byte in printable}
    alphabet.update({chr(0x100 + rank): byte for rank, byte in enumerate(others)})
    return alphabet


def token_bytes(tokenizer: Any) -> list[bytes]:
    """The bytes of every id, `len(tokenizer)` entries; special tokens and gaps are b"".

    The concatenation of the entries of a tokenization is the text's UTF-8, up to the leading space
    that SentencePiece tokenizers may add. Raises VocabularyError for a tokenizer of neither family.
    """
    size = len(tokenizer)
    known = _known.get(tokenizer)
    if known is not None and len(known) == size:
        return known
    pieces: list[str | None] = list(tokenizer.convert_ids_to_tokens(list(range(size))))
    special = set(tokenizer.all_special_ids)
    added = {}
    for token_id, token in tokenizer.added_tokens_decoder.items():
        if token.special:
            special.add(token_id)
        else:
            added[token_id] = token.content.encode()
    to_bytes = _spelling(tokenizer)
    _known[tokenizer] = [
        b"" if piece is None or token_id in special else added.get(token_id) or to_bytes(piece)
        for token_id, piece in enumerate(pieces)
    ]
    return _known[tokenizer]


def _spelling(tokenizer: Any) -> Any:
    if is_byte_level(tokenizer):
        alphabet = byte_alphabet()

        def spelled(piece: str) -> bytes:
            try:
                return bytes(alphabet[character] for character in piece)
            except KeyError:
                return piece.encode()

        return spelled
    if any(mark in tokenizer.get_vocab() for mark in (WORD_MARK, "<0x0A>")):

        def marked(piece: str) -> bytes:
            match = BYTE_FALLBACK.fullmatch(piece)
            return bytes([int(match[1], 16)]) if match else piece.replace(WORD_MARK, " ").encode()

        return marked
    raise VocabularyError(
        f"{type(tokenizer).__name__} is neither byte-level BPE nor SentencePiece-like: "
        "the bytes of its tokens are unknown"
    )


def is_byte_level(tokenizer: Any) -> bool:
    """Whether a fast tokenizer's decoder is the byte-level one."""
    state = getattr(tokenizer.backend_tokenizer.decoder, "__getstate__", lambda: b"{}")()
    decoder = json.loads(state or b"{}")
    parts = decoder.get("decoders", [decoder])
    return any(part.get("type") == "ByteLevel" for part in parts)
