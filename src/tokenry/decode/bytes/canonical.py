"""Canonical encodings: which token sequences a tokenizer itself writes, and how they may go on.

A sequence of tokens is *viable* if some text's encoding begins with it, and *complete* if it is the
encoding of its own text. The two differ only where the tokenizer looks ahead: GPT-2's pattern cuts
"a  b" into "a", " ", " b", so that [a, one space] is viable and is also an encoding.

Whether a token may follow is decided for the whole vocabulary at once, from three rules:

- the merges of BPE inside a pre-token (`MergeTable.follows`, exact and vectorised);
- the borders that the pre-tokenizer draws. They depend on the kinds of characters only, so one
  token of each *shape* (the sequence of its characters' kinds) is tried, with the possible ends of
  an unfinished character and with a few texts that could follow;
- added tokens, such as line breaks of Gemma, are cut out first, the longest at each place; byte
  tokens such as <0xF0> spell those characters alone that are not in the vocabulary.

A *context* is the tuple of the last tokens that matter: those since the last border of a pre-token
that nothing which follows can move.

Inside a character, a token is viable if some character of its kind could go on there; that no token
can spell the rest is noticed only then.

Not covered: pre-tokenizers that tell apart characters of one Unicode category outside ASCII. With
`ignore_merges` (Llama 3), the few tokens that merges do not reach are taken for never written.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from tokenry.core.errors import InputError
from tokenry.decode.bytes.merges import MergeTable
from tokenry.decode.bytes.vocabulary import ByteVocabulary
from tokenry.decode.constraints.predicate import extend
from tokenry.text.vocabulary import WORD_MARK, token_bytes

Context = tuple[int, ...]
NEVER, GLUED, APART = 0, 1, 2  # a token may not follow; if no merge crosses; whatever the merges
KEPT_MASKS = 512
PROBE = "ab  c\n\n 'd 12!? x.\ty"
FOLLOWING = ("", "a", "1", "!", " ", "\n", "e", "l", "'")
_known: WeakKeyDictionary[Any, Canonical] = WeakKeyDictionary()


def is_canonical(tokenizer: Any, ids: Sequence[int]) -> bool:
    """Whether `ids` is what the tokenizer itself writes for its text, special tokens apart."""
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
        for token in rules.spelling_starts(rest):
            if allowed[token]:
                after = rules.advance(context, token)
                waiting.append(([*ids, token], after, done + len(vocabulary.pieces[token])))
        low, high = vocabulary.range(rest)
        covers += [[*ids, int(token)] for token in vocabulary.ids[low:high] if allowed[token]]
    return sorted(covers)


def canonical(tokenizer: Any) -> Canonical:
    """The rules of a tokenizer; made once, in some seconds for a big vocabulary."""
    if tokenizer not in _known:
        _known[tokenizer] = Canonical(tokenizer)
    return _known[tokenizer]


class Canonical:
    """The rules of one BPE tokenizer. Raises VocabularyError for tokenizers of other kinds."""

    def __init__(self, tokenizer: Any):
        self.vocabulary = ByteVocabulary(token_bytes(tokenizer))
        pieces = self.vocabulary.pieces
        self.merges = MergeTable(tokenizer, len(pieces))
        self.added = {
            token: added.content.encode()
            for token, added in tokenizer.added_tokens_decoder.items()
            if not added.special and pieces[token]
        }
        self._byte_tokens = np.zeros(len(pieces), dtype=bool)
        if self.merges.byte_fallback:
            for byte in range(256):
                if (token := self.merges.vocabulary.get(f"<0x{byte:02X}>")) is not None:
                    self._byte_tokens[token] = True
        self._fill_tables()
        self._split = _splitter(tokenizer)
        if self._split is not None:
            self._shapes = {kept: _Shapes.of(pieces, kept) for kept in (False, True)}
        self._codes: dict[Any, NDArray[np.int8]] = {}
        self._masks: OrderedDict[Context, NDArray[np.bool_]] = OrderedDict()

    def viable(self, context: Context) -> NDArray[np.bool_]:
        """bool [V], by id: the tokens that may follow. Not to be written to."""
        known = self._masks.get(context)
        if known is None:
            known = self._masks[context] = self._mask(context)
            if len(self._masks) > KEPT_MASKS:
                self._masks.popitem(last=False)
        else:
            self._masks.move_to_end(context)
        return known

    def advance(self, context: Context, token: int) -> Context:
        """The context after a token."""
        if self._split is not None:
            return self._unsettled(self._after_added((*context, token)))
        tokens, seen = (*context, token), 0
        for at in range(len(tokens) - 1, 0, -1):
            seen += len(self.vocabulary.pieces[tokens[at]])
            if seen >= max(self._longest, 4):  # long enough for an added text or a character
                return tokens[at:]
        return tokens

    def complete(self, context: Context) -> bool:
        """Whether a text may end here: a viable sequence is the encoding of its own text."""
        if self._undecided(context):
            return False
        return self._split is None or self._verdict(context, None, ("",)) != NEVER

    def fresh_start(self, data: bytes) -> int:
        """The last place before a space at which every encoding of `data`, and of any text that
        goes on from it, has a border; 0 if there is none."""
        pieces = self.vocabulary
        for place in range(len(data) - 1, 0, -1):
            if data[place : place + 1] != b" " or data[place - 1 : place].isspace():
                continue
            if not any(
                pieces.spans(data[start:], place - start)
                for start in range(max(place - pieces.longest, 0), place)
            ):
                return place
        return 0

    def spelling_starts(self, data: bytes) -> Iterator[int]:
        """The tokens whose bytes are a proper beginning of `data`, shortest first."""
        vocabulary = self.vocabulary
        for length in range(1, len(data)):
            low, high = vocabulary.range(data[:length])
            if low == high:
                return
            for place in range(low, vocabulary.exact(length, low, high)):
                yield int(vocabulary.ids[place])

    def _fill_tables(self) -> None:
        pieces, size = self.vocabulary.pieces, len(self.vocabulary.pieces)
        self._ordinary = self.merges.own & ~self._byte_tokens
        self._ordinary &= np.array([bool(piece) for piece in pieces])
        texts = sorted(self.added.values(), key=len, reverse=True)
        self._crossings: dict[bytes, list[bytes]] = {}  # beginning of an added text -> its ends
        for text in texts:
            for cut in range(1, len(text)):
                self._crossings.setdefault(text[:cut], []).append(text[cut:])
        self._longest = max(map(len, texts), default=0)
        if texts:
            inside = re.compile(b"|".join(map(re.escape, texts)))
            for token, piece in enumerate(pieces):
                if token not in self.added and inside.search(piece):
                    self._ordinary[token] = False
        self._is_added = np.zeros(size, dtype=bool)
        self._is_added[list(self.added)] = True
        self._ordinary &= ~self._is_added
        self._starts = np.array([bool(p) and extend(b"", p) is not None for p in pieces])
        self._begins_anew = not any(re.search(rb"\S ", piece) for piece in pieces)
        if self.merges.byte_fallback:
            single = {piece for piece in self.merges.vocabulary if len(piece) == 1}
            single |= {" "} if WORD_MARK in single else set()
            unknown = np.ones(0x110000, dtype=bool)
            unknown[[ord(character) for character in single]] = False
            unknown[0xD800:0xE000] = False
            self._unknown_before = np.concatenate([[0], np.cumsum(unknown)])
            self._byte_starts = np.zeros(size, dtype=bool)
            for token in np.flatnonzero(self._byte_tokens):
                self._byte_starts[token] = self._starts[token] and self._in_bytes(pieces[token])

    def _in_bytes(self, begun: bytes) -> bool:
        """Whether some character that begins like this is spelled by byte tokens."""
        low, high = _code_points(begun)
        return bool(self._unknown_before[high] > self._unknown_before[low])

    def _undecided(self, context: Context) -> bytes:
        """The bytes of an unfinished character at the end."""
        tail = b"".join(self.vocabulary.pieces[token] for token in context[-4:])[-4:]
        for start in range(max(len(tail) - 3, 0), len(tail)):
            if tail[start] >= 0xC0:
                decoded = extend(b"", tail[start:])
                return decoded[1] if decoded else b""
        return b""

    def _mask(self, context: Context) -> NDArray[np.bool_]:
        undecided = self._undecided(context)
        if undecided:
            return self._continuations(context, undecided)
        behind_added = bool(context) and context[-1] in self.added
        follows = self.merges.follows(context[-1]) if context and not behind_added else True
        if self._split is None:
            allowed = self._ordinary & follows
        else:
            codes = self._codes_after(context)
            allowed = self._ordinary & ((codes == APART) | ((codes == GLUED) & follows))
        allowed = (allowed | self._is_added) & self._starts
        if self.merges.byte_fallback:
            allowed |= self._byte_starts
        for end in self._ends_of_added(context):
            low, high = self.vocabulary.range(end)
            allowed[self.vocabulary.ids[low:high]] = False
        return allowed

    def _continuations(self, context: Context, undecided: bytes) -> NDArray[np.bool_]:
        """Inside a character: the tokens that begin with its other bytes, few enough to try."""
        pieces = self.vocabulary.pieces
        allowed = np.zeros(len(pieces), dtype=bool)
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
                verdict = GLUED if self._split is None else self._verdict(context, token)
                allowed[token] = verdict != NEVER
        return allowed

    def _ends_of_added(self, context: Context) -> Iterator[bytes]:
        """What must not follow: the ends of added texts that have begun in the tokens so far.

        A text that begins inside an added token has been cut out with it; one that begins where
        that token does is longer, and would have been taken instead.
        """
        starts: dict[int, bool] = {}  # bytes from the end -> may an added text begin there
        passed = 0
        for token in reversed(context):
            piece = self.vocabulary.pieces[token]
            for inner in range(1, len(piece) + 1):
                starts[passed + inner] = inner == len(piece) or token not in self.added
            passed += len(piece)
            if passed >= self._longest:
                break
        tail = b"".join(self.vocabulary.pieces[token] for token in context)[-self._longest :]
        for length in range(1, len(tail) + 1):
            if starts.get(length):
                yield from self._crossings.get(tail[-length:], ())

    # Borders of pre-tokens

    def _unsettled(self, tokens: Context) -> Context:
        """The tokens since the last border that nothing that follows can move."""
        assert self._split is not None
        decoded = extend(b"", b"".join(self.vocabulary.pieces[token] for token in tokens))
        if decoded is None or not decoded[0]:
            return tokens
        border = max(self._fixed(decoded[0]), default=0)
        place = 0
        for at, token in enumerate(tokens):
            if place == border:
                return tokens[at:]
            place += len(self.vocabulary.pieces[token])
        return tokens

    def _fixed(self, text: str) -> set[int]:
        """The borders of a text whatever follows."""
        assert self._split is not None
        return set.intersection(*(self._split(text + probe) for probe in FOLLOWING))

    def _codes_after(self, context: Context) -> NDArray[np.int8]:
        """int8 [V]: how each token may follow, found with one token of each shape."""
        assert self._split is not None
        data = b"".join(self.vocabulary.pieces[token] for token in context)
        text = data.decode()
        shapes = self._shapes["'" in text[-3:]]
        if any(self._split(text + probe) - {len(data)} for probe in FOLLOWING):
            of_tokens = (_shape(self.vocabulary.pieces[token], True) for token in context)
            key: Any = (tuple(of_tokens), self._joints(context))
        else:  # one pre-token, whatever follows: where its tokens part does not matter
            key = _shape(data, True)
        if key not in self._codes:
            fresh = None
            if text and not text[-1].isspace() and self._begins_anew:
                # a space begins anew, if the context may end there: "'l" only if an "l" follows
                ends = self._verdict(context, None, (" ",)) != NEVER
                fresh = self._codes_after(()) if ends else np.zeros(len(shapes.numbers), np.int8)
            codes = np.zeros(len(shapes.examples), dtype=np.int8)
            for number, token in enumerate(shapes.examples):
                if fresh is not None and self.vocabulary.pieces[token][:1] == b" ":
                    codes[number] = APART if fresh[token] else NEVER
                elif self._starts[token]:
                    codes[number] = self._verdict(context, token)
            self._codes[key] = codes
        return self._codes[key][shapes.numbers]

    def _after_added(self, context: Context) -> Context:
        for at in range(len(context) - 1, -1, -1):
            if context[at] in self.added:
                return context[at + 1 :]
        return context

    def _joints(self, context: Context) -> tuple[bool, ...]:
        """Of adjacent tokens: whether they stay apart without a border between them."""
        return tuple(bool(self.merges.follows(a)[b]) for a, b in pairwise(context))

    def _verdict(
        self, context: Context, token: int | None, following: Sequence[str] | None = None
    ) -> int:
        """NEVER, GLUED or APART for `token` behind the context; None: only look at the context.

        following: the texts that may come next; None: those that could move a border.
        """
        context = self._after_added(context)
        tokens = list(context) if token is None else [*context, token]
        if not tokens:
            return APART
        joints = [*self._joints(context), *([] if token is None or not context else [True])]
        pieces = [self.vocabulary.pieces[token] for token in tokens]
        decoded = extend(b"", b"".join(pieces))
        if decoded is None:
            return NEVER
        best = NEVER
        for end in _completions(decoded[1]):
            text = decoded[0] + end
            for probe in _probes(text) if following is None else following:
                best = max(best, self._agreement(pieces, joints, text + probe))
                if best == APART:
                    return best
        return best

    def _agreement(self, pieces: Sequence[bytes], joints: Sequence[bool], text: str) -> int:
        """Whether the borders of `text` allow the pieces that it begins with."""
        assert self._split is not None
        cuts = self._split(text)
        place, last = 0, GLUED
        for number, piece in enumerate(pieces):
            if number:
                apart = place in cuts
                if not apart and not joints[number - 1]:
                    return NEVER
                last = APART if apart else GLUED
            if any(place < cut < place + len(piece) for cut in cuts):
                return NEVER
            place += len(piece)
        return APART if len(pieces) == 1 else last


def _splitter(tokenizer: Any) -> Callable[[str], set[int]] | None:
    """The places, in bytes, at which the pre-tokenizer cuts a text; None if it never does."""
    from tokenizers import Tokenizer

    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state["model"] = {"type": "BPE", "vocab": {}, "merges": []}
    state |= {"added_tokens": [], "post_processor": None, "truncation": None, "padding": None}
    if state["pre_tokenizer"] is None:
        return None
    steps = state["pre_tokenizer"].get("pretokenizers", [state["pre_tokenizer"]])
    for step in steps:  # a space before the first word is dealt with where a text begins
        if "add_prefix_space" in step:
            step["add_prefix_space"] = False
        if "prepend_scheme" in step:
            step["prepend_scheme"] = "never"
    backend = Tokenizer.from_str(json.dumps(state))
    pre_tokenizer, normalizer = backend.pre_tokenizer, backend.normalizer

    @lru_cache(1 << 14)
    def split(text: str) -> set[int]:
        plain = text
        if normalizer is not None:
            normal = normalizer.normalize_str(text)
            text = normal if len(normal) == len(text) else text
        starts = [start for _, (start, _) in pre_tokenizer.pre_tokenize_str(text)]
        return {len(plain[:start].encode()) for start in starts if start}

    return split if split(PROBE) else None


class _Shapes(NamedTuple):
    """numbers: [V], the shape of every token. examples: one token of each shape."""

    numbers: NDArray[np.int64]
    examples: list[int]

    @classmethod
    def of(cls, pieces: Sequence[bytes], contractions: bool) -> _Shapes:
        known: dict[str, int] = {}
        numbers, examples = np.zeros(len(pieces), dtype=np.int64), []
        for token, piece in enumerate(pieces):
            shape = _shape(piece, contractions)
            if shape not in known:
                known[shape] = len(known)
                examples.append(token)
            numbers[token] = known[shape]
        return cls(numbers, examples)


@lru_cache(1 << 16)
def _kind(character: str) -> str:
    """What a pre-tokenizer's pattern sees of a character."""
    if character in "'/" or character.isspace():
        return character
    category = unicodedata.category(character)
    if character.isascii() and not character.isalnum():
        return "!"
    return {"Lu": "A", "Lt": "A", "Ll": "a", "Nd": "1"}.get(category, f"<{category}>")


def _shape(piece: bytes, contractions: bool) -> str:
    """The kinds of a token's characters, long runs cut short.

    contractions: keep the letters that could belong to one ('s, 'll) with what stands before.
    """
    decoded = extend(b"", piece)
    if decoded is None:
        return "invalid"
    text, undecided = decoded
    kinds, run = [], 0
    for place, character in enumerate(text):
        kind = _kind(character)
        near = (contractions and place < 2) or "'" in text[max(place - 2, 0) : place]
        if near and character in "sdmtlvreSDMTLVRE":
            kind = f"<{character}>"
        run = run + 1 if kinds and kinds[-1] == kind else 0
        if run < (4 if kind == "1" else 2):
            kinds.append(kind)
    if undecided:
        kinds.append("+".join(sorted(map(_kind, _completions(undecided)))))
    return "".join(kinds)


@lru_cache(1 << 12)
def _completions(undecided: bytes) -> tuple[str, ...]:
    """One character of each kind that begins with these bytes; "" when there are none."""
    if not undecided:
        return ("",)
    found: dict[str, str] = {}
    for code in range(*_code_points(undecided)):
        if not 0xD800 <= code < 0xE000:
            found.setdefault(_kind(chr(code)), chr(code))
    return tuple(found.values())


def _code_points(begun: bytes) -> tuple[int, int]:
    """The range of the code points whose UTF-8 begins like this (or is this)."""
    lead = begun[0]
    if lead < 0x80:
        return lead, lead + 1
    length = 2 if lead < 0xE0 else 3 if lead < 0xF0 else 4
    value = lead & (0x7F >> length)
    for byte in begun[1:]:
        value = value << 6 | byte & 0x3F
    shift = 6 * (length - len(begun))
    smallest = {2: 0x80, 3: 0x800, 4: 0x10000}[length]
    return max(value << shift, smallest), min((value + 1) << shift, 0x110000)


def _probes(text: str) -> tuple[str, ...]:
    """Texts that could move the last border when they follow."""
    return FOLLOWING if text[-1:].isspace() or "'" in text[-2:] else ("",)
