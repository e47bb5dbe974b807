"""Canonical encodings: which token sequences a tokenizer itself writes, and how they may go on.

A sequence of tokens is *viable* if some text's encoding begins with it, and *complete* if it is the
encoding of its own text. The two differ only where the tokenizer looks ahead: GPT-2's pattern cuts
"a  b" into "a", " ", " b", so that [a, one space] is viable and is also an encoding.

Whether a token may follow is decided for the whole vocabulary at once, from three rules:

- the merges of BPE inside a pre-token (`merges`, exact and vectorised);
- the borders that the pre-tokenizer draws (`borders`, asked with one token of each shape);
- added tokens, such as line breaks of Gemma, which are cut out first (`added_texts`); and byte
  tokens such as <0xF0>, which spell those characters alone that are not in the vocabulary.

A *context* is the tuple of the last tokens that matter: those since the last border of a pre-token
that nothing which follows can move.

Inside a character, a token is viable if some character of its kind could go on there; that no token
can spell the rest is noticed only then.

Not covered: pre-tokenizers that tell apart characters of one Unicode category outside ASCII. With
`ignore_merges` (Llama 3), the few tokens that merges do not reach are taken for never written.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from tokenry.core.errors import InputError
from tokenry.decode.bytes.added_texts import AddedTexts, Context
from tokenry.decode.bytes.borders import APART, GLUED, NEVER, Borders, splitter
from tokenry.decode.bytes.characters import CODE_POINTS, SURROGATES, code_points
from tokenry.decode.bytes.merges import MergeTable
from tokenry.decode.bytes.vocabulary import ByteVocabulary
from tokenry.decode.constraints.predicate import extend
from tokenry.text.vocabulary import WORD_MARK, token_bytes

KEPT_MASKS = 512
LONGEST_CHARACTER = 4  # bytes of UTF-8
_rules: WeakKeyDictionary[Any, Canonical] = WeakKeyDictionary()


def is_canonical(tokenizer: Any, ids: Sequence[int]) -> bool:
    """Whether `ids` is what the tokenizer itself writes for its text, special tokens apart.

    Args:
        tokenizer: a fast tokenizer of transformers with a BPE model.
        ids: [T] token ids.

    Returns:
        True if encoding the text of `ids` gives `ids`.

    Raises:
        InputError: an id is not in the vocabulary.
        VocabularyError: the tokenizer is not BPE.
    """
    rules = canonical(tokenizer)
    context: Context | None = ()
    for token in ids:
        if not 0 <= token < len(rules.vocabulary.pieces):
            raise InputError(f"token {token} is not in the vocabulary")
        if not rules.vocabulary.pieces[token]:  # a special token: the text begins anew behind it
            if not rules.complete(context):
                return False
            context = ()
        elif not rules.viable(context)[token]:
            return False
        else:
            context = rules.advance(context, token)
    return rules.complete(context)


def cover_encodings(tokenizer: Any, data: bytes | str) -> list[list[int]]:
    """All viable sequences that spell `data`, of which only the last token may stick out.

    P(data) is the sum of their probabilities.

    Args:
        tokenizer: a fast tokenizer of transformers with a BPE model.
        data: the bytes, or the text, that they begin with.

    Returns:
        The sequences of ids, sorted; one empty sequence for empty data, none where the tokenizer
        writes no text that begins like this.

    Raises:
        VocabularyError: the tokenizer is not BPE.
    """
    rules = canonical(tokenizer)
    data = data.encode() if isinstance(data, str) else data
    vocabulary, covers = rules.vocabulary, []
    if not data:
        return [[]]
    waiting: list[tuple[list[int], Context, int]] = [([], (), 0)]
    while waiting:
        ids, context, done = waiting.pop()
        rest, allowed = data[done:], rules.viable(context)
        # tokens inside `data` go on, those that reach its end are covers
        for token in rules.spelling_starts(rest):
            if allowed[token]:
                after = rules.advance(context, token)
                waiting.append(([*ids, token], after, done + len(vocabulary.pieces[token])))
        low, high = vocabulary.range(rest)
        covers += [[*ids, int(token)] for token in vocabulary.ids[low:high] if allowed[token]]
    return sorted(covers)


def canonical(tokenizer: Any) -> Canonical:
    """The rules of a tokenizer; made once, in some seconds for a big vocabulary.

    Raises:
        VocabularyError: the tokenizer is not BPE.
    """
    if tokenizer not in _rules:
        _rules[tokenizer] = Canonical(tokenizer)
    return _rules[tokenizer]


class Canonical:
    """The rules of one BPE tokenizer.

    Raises:
        VocabularyError: the tokenizer is of another kind.

    Attributes:
        vocabulary: what every token spells.
        merges: the BPE table.
        added: tokens cut out beforehand.
        borders: of pre-tokens; None for a tokenizer that draws none.
    """

    def __init__(self, tokenizer: Any):
        self.vocabulary = ByteVocabulary(token_bytes(tokenizer))
        pieces = self.vocabulary.pieces
        self.merges = MergeTable(tokenizer, len(pieces))
        self.added = AddedTexts(
            pieces,
            {
                token: added.content.encode()
                for token, added in tokenizer.added_tokens_decoder.items()
                if not added.special and pieces[token]
            },
        )
        self._starts = np.array([bool(p) and extend(b"", p) is not None for p in pieces])
        self._byte_tokens = np.zeros(len(pieces), dtype=bool)
        if self.merges.byte_fallback:
            self._read_byte_tokens()
        # what merges write, byte tokens and added texts apart
        self._ordinary = self.merges.own & ~self._byte_tokens
        self._ordinary &= np.array([bool(piece) for piece in pieces])
        self._ordinary &= ~self.added.containing() & ~self.added.mask
        split = splitter(tokenizer)
        self.borders = (
            None if split is None else Borders(split, pieces, self._starts, self.merges, self.added)
        )
        self._masks: OrderedDict[Context, NDArray[np.bool_]] = OrderedDict()

    def viable(self, context: Context) -> NDArray[np.bool_]:
        """bool [V], by id: the tokens that may follow. Not to be written to."""
        mask = self._masks.get(context)
        if mask is None:
            mask = self._masks[context] = self._mask(context)
            if len(self._masks) > KEPT_MASKS:
                self._masks.popitem(last=False)
        else:
            self._masks.move_to_end(context)
        return mask

    def advance(self, context: Context, token: int) -> Context:
        """The context after a token."""
        tokens, seen = (*context, token), 0
        if self.borders is not None:
            return self.borders.unsettled(tokens)
        # without borders: as many bytes as an added text or a character may take
        for start in range(len(tokens) - 1, 0, -1):
            seen += len(self.vocabulary.pieces[tokens[start]])
            if seen >= max(self.added.longest, LONGEST_CHARACTER):
                return tokens[start:]
        return tokens

    def complete(self, context: Context) -> bool:
        """Whether a text may end here: a viable sequence is the encoding of its own text."""
        if self._undecided(context):
            return False
        return self.borders is None or self.borders.verdict(context, None, ("",)) != NEVER

    def fresh_start(self, data: bytes) -> int:
        """The last position before a space at which every encoding of `data`, and of any text that
        goes on from it, has a border; 0 if there is none."""
        pieces = self.vocabulary
        for position in range(len(data) - 1, 0, -1):
            if data[position : position + 1] != b" " or data[position - 1 : position].isspace():
                continue
            if not any(
                pieces.spans(data[start:], position - start)
                for start in range(max(position - pieces.longest, 0), position)
            ):
                return position
        return 0

    def spelling_starts(self, data: bytes) -> Iterator[int]:
        """The tokens whose bytes are a proper beginning of `data`, shortest first."""
        vocabulary = self.vocabulary
        for length in range(1, len(data)):
            low, high = vocabulary.range(data[:length])
            if low == high:
                return
            for number in range(low, vocabulary.exact(length, low, high)):
                yield int(vocabulary.ids[number])

    # Masks

    def _mask(self, context: Context) -> NDArray[np.bool_]:
        undecided = self._undecided(context)
        if undecided:
            return self._continuations(context, undecided)
        # merges: tokens that nothing joins with the last one, which an added text has cut off
        behind_added = bool(context) and context[-1] in self.added
        follows = self.merges.follows(context[-1]) if context and not behind_added else True
        # borders: apart whatever the merges, glued where no merge crosses
        if self.borders is None:
            allowed = self._ordinary & follows
        else:
            codes = self.borders.codes_after(context)
            allowed = self._ordinary & ((codes == APART) | ((codes == GLUED) & follows))
        # added texts may stand anywhere, and so may the first byte of an unknown character
        allowed = (allowed | self.added.mask) & self._starts
        if self.merges.byte_fallback:
            allowed |= self._byte_starts
        # but an added text may not be spelled by others
        for end in self.added.forbidden_ends(context):
            low, high = self.vocabulary.range(end)
            allowed[self.vocabulary.ids[low:high]] = False
        return allowed

    def _continuations(self, context: Context, undecided: bytes) -> NDArray[np.bool_]:
        """Inside a character: the tokens that begin with its other bytes, few enough to try."""
        pieces = self.vocabulary.pieces
        allowed = np.zeros(len(pieces), dtype=bool)
        # of UTF-8's later bytes, 80 to BF
        low, _ = self.vocabulary.range(b"\x80")
        high, _ = self.vocabulary.range(b"\xc0")
        follows = self.merges.follows(context[-1])
        for token in map(int, self.vocabulary.ids[low:high]):
            if extend(undecided, pieces[token]) is None:
                continue
            if self.merges.byte_fallback:
                spelled = self._byte_tokens[token]
                allowed[token] = spelled and self._in_bytes(undecided + pieces[token])
            elif self._ordinary[token] and follows[token]:  # no border inside a character
                borders = self.borders
                verdict = GLUED if borders is None else borders.verdict(context, token)
                allowed[token] = verdict != NEVER
        return allowed

    def _undecided(self, context: Context) -> bytes:
        """The bytes of an unfinished character at the end."""
        last = context[-LONGEST_CHARACTER:]
        tail = b"".join(self.vocabulary.pieces[token] for token in last)[-LONGEST_CHARACTER:]
        for start in range(max(len(tail) - LONGEST_CHARACTER + 1, 0), len(tail)):
            if tail[start] >= 0xC0:  # the first byte of a character
                decoded = extend(b"", tail[start:])
                return decoded[1] if decoded else b""
        return b""

    # Byte tokens

    def _read_byte_tokens(self) -> None:
        """Which tokens are single bytes, what they spell, and which of them begin a character."""
        pieces, vocabulary = self.vocabulary.pieces, self.merges.vocabulary
        for byte in range(256):
            if (token := vocabulary.get(f"<0x{byte:02X}>")) is not None:
                self._byte_tokens[token] = True
        # characters without a token of their own, counted up to every code point
        single = {piece for piece in vocabulary if len(piece) == 1}
        single |= {" "} if WORD_MARK in single else set()
        unknown = np.ones(CODE_POINTS, dtype=bool)
        unknown[[ord(character) for character in single]] = False
        unknown[SURROGATES.start : SURROGATES.stop] = False
        self._unknown_before = np.concatenate([[0], np.cumsum(unknown)])
        self._byte_starts = np.zeros(len(pieces), dtype=bool)
        for token in np.flatnonzero(self._byte_tokens):
            self._byte_starts[token] = self._starts[token] and self._in_bytes(pieces[token])

    def _in_bytes(self, begun: bytes) -> bool:
        """Whether some character that begins like this is spelled by byte tokens."""
        low, high = code_points(begun)
        return bool(self._unknown_before[high] > self._unknown_before[low])
