"""complete: text from a byte model or an ensemble of them, byte by byte.

Temperature and top-p act on the distribution of bytes (and the end of the text), not of tokens. The
prompt may end anywhere: inside a word, a number, or a character.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from tokenry.core.checks import in_range
from tokenry.core.errors import ConstraintError, InputError
from tokenry.decode.bytes.ensemble import ByteEnsemble
from tokenry.decode.bytes.model import END, NOTHING, ByteModel, Floats
from tokenry.decode.bytes.prefix_scorer import Passes
from tokenry.decode.constraints.predicate import extend


@dataclass(frozen=True)
class ByteCompletion:
    """What was written after the prompt.

    Attributes:
        data: the bytes.
        text: as a string, with U+FFFD for what is not UTF-8 and without a character that has only
            begun (the first bytes complete one that the prompt has begun).
        logprob: of `data`, and of the end if it was reached, before temperature and top-p.
        ended: by the end of the text or a stop text, not by the limit.
        passes: what was asked of the models, the prompt included.
    """

    data: bytes
    text: str
    logprob: float
    ended: bool
    passes: Passes


def complete(
    model: ByteModel | ByteEnsemble,
    prompt: bytes | str,
    max_bytes: int = 128,
    *,
    temperature: float = 1.0,
    top_p: float = 1.0,
    seed: int = 0,
    stop: Sequence[bytes | str] = (),
    utf8: bool = True,
    context: Sequence[Any] = (),
    on_text: Callable[[str], None] | None = None,
) -> ByteCompletion:
    """Continue `prompt` by at most `max_bytes` bytes.

    Args:
        temperature: 0 takes the most probable byte.
        stop: texts that end the completion; they are not part of it.
        utf8: forbid bytes that can never become UTF-8.
        context: token ids before the prompt (for an ensemble, one list for each model).
        on_text: called with every new whole character.

    Raises:
        ConstraintError: nothing can follow, with the text at which that happened.
    """
    in_range("max_bytes", max_bytes, "[1, inf)", integer=True)
    in_range("temperature", temperature, "[0, inf)")
    in_range("top_p", top_p, "(0, 1]")
    before = model.passes
    stops = [text.encode() if isinstance(text, str) else text for text in stop]
    if not all(stops):
        raise InputError("a stop text is empty: it would end every completion at once")
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    random = np.random.default_rng(seed)
    state: Any = model.start(prompt, context)
    started = state.data
    undecided = (extend(b"", started) or ("", b""))[1]
    decoder.decode(undecided)
    data, logprob, ended, text = b"", 0.0, False, ""
    withheld = max((len(one) for one in stops), default=1) - 1  # bytes that may begin a stop text
    emitted = 0
    while len(data) < max_bytes and not ended:
        logprobs = model.next_byte_logprobs(state)
        allowed = logprobs + _utf8_mask(undecided) if utf8 else logprobs
        if not (allowed > NOTHING).any():
            raise ConstraintError(f"no byte can follow {(started + data)[-40:]!r}")
        byte = _chosen(allowed, temperature, top_p, random)
        logprob += float(logprobs[byte])
        if byte == END:
            ended = True
            break
        state, data = model.advance(state, byte), data + bytes([byte])
        whole = extend(undecided, bytes([byte]))
        undecided = whole[1] if whole else b""
        for one in stops:
            if data.endswith(one):
                data, ended = data[: -len(one)], True
                break
        safe = max(emitted, len(data) if ended else len(data) - withheld)
        new = decoder.decode(data[emitted:safe])
        text, emitted = text + new, safe
        if new and on_text is not None:
            on_text(new)
    new = decoder.decode(data[emitted:])  # a character that has only begun is in `data` alone
    if new and on_text is not None:
        on_text(new)
    return ByteCompletion(data, text + new, logprob, ended, model.passes - before)


def suffix_context(
    tokenizer: Any,
    suffix: str,
    prefix_token: str = "<fim_prefix>",
    suffix_token: str = "<fim_suffix>",
    middle_token: str = "<fim_middle>",
) -> list[int]:
    """The ids before a prompt whose end is to be joined to `suffix`: fill in the middle.

    For models trained with the suffix first: prefix mark, suffix mark, suffix, middle mark, and
    then the prompt and what is completed, as one text. Pass it as `context`.

    Raises:
        InputError: the tokenizer has no such marks.
    """
    vocabulary = tokenizer.get_vocab()
    marks = [prefix_token, suffix_token, middle_token]
    if missing := [mark for mark in marks if mark not in vocabulary]:
        raise InputError(
            f"the tokenizer has no {', '.join(missing)}: name the marks that the model was "
            "trained with, or complete without a suffix"
        )
    first, second, third = (vocabulary[mark] for mark in marks)
    ids = tokenizer(suffix, add_special_tokens=False)["input_ids"]
    return [first, second, *ids, third]


def _chosen(logprobs: Floats, temperature: float, top_p: float, random: np.random.Generator) -> int:
    if temperature == 0.0:
        return int(logprobs.argmax())
    scaled = logprobs / temperature
    probs = np.exp(scaled - scaled.max())
    probs /= probs.sum()
    order = np.argsort(-probs, kind="stable")
    mass = np.cumsum(probs[order])
    kept = order[: int(np.searchsorted(mass, top_p * (1.0 - 1e-12))) + 1]
    return int(random.choice(kept, p=probs[kept] / probs[kept].sum()))


@lru_cache(1 << 10)
def _utf8_mask(undecided: bytes) -> Floats:
    """float64 [257]: 0 where a byte can follow in UTF-8, else -inf; a text ends at whole
    characters."""
    return np.array(
        [0.0 if extend(undecided, bytes([byte])) is not None else NOTHING for byte in range(END)]
        + [NOTHING if undecided else 0.0]
    )
