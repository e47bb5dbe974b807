"""Word constraints: every word of the text satisfies a filter, however tokens cut it.

A token may end a word, hold several, begin one, or be a piece from its middle. Reading a text
leaves a state: where its last, unfinished word stands, and the bytes of a last, unfinished
character. From there a token is allowed if and only if

    every word that it completes is accepted, and
    the unfinished word (and character) that it leaves can still be completed.

The text may end where its last word is accepted. Special tokens and malformed UTF-8 are refused.

Whether a word can be completed is known from the filter alone if the filter is exact; otherwise the
words are those of a lexicon (the CMU pronouncing dictionary unless another is given) that pass the
filter. So no dead end is entered as long as every letter is a token of its own or made from bytes,
as it is with byte-level and byte-fallback tokenizers.

Words are words, and texts are made of them: with a lexicon, as it writes them (folding accents away
is for the filter's eyes, no licence to write "mátt"), and with no more signs between them than
sentences have (`sentence_spans`).

Masks are computed for the whole vocabulary at once: tokens are grouped by the symbols before their
first separator, and a trie of these is walked from the state. A mask is kept for each state.

Source: Most Language Models can be Poets too: An AI Writing Assistant and Constrained Text
Generation Studio (arXiv 2306.15926). The paper masks by token strings; the word level is ours.
"""

from __future__ import annotations

import codecs
import unicodedata
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tokenry.core.checks import in_range
from tokenry.core.errors import ConstraintError
from tokenry.decode.constraints import sentence_spans
from tokenry.decode.constraints.base import Constraint, Example, constraint, eos_of, refuse
from tokenry.decode.constraints.spelling import (
    APOSTROPHE,
    SEPARATOR,
    Spelling,
    code_points_after,
    is_mark,
    spelled,
    split_tail,
)
from tokenry.decode.constraints.word_machine import (
    DEAD,
    FIRST_FREE,
    LOST,
    LOST_PENDING,
    START,
    LexiconMachine,
    OpenMachine,
    WordMachine,
)
from tokenry.decode.constraints.word_vocabulary import vocabulary_of
from tokenry.decode.steering.phonetics import dictionary
from tokenry.decode.steering.word_filters import WordFilter

PROMPT_WINDOW = 64  # tokens of a prompt that are searched for the beginning of its last word


@constraint("words", paper=62, examples=lambda: _examples())
class WordConstraint(Constraint):
    """Texts all of whose words pass `filter`.

    Args:
        tokenizer: a tokenizer, or the list of its tokens' bytes (b"" for special tokens).
        lexicon: the words that may be used (None: any string of letters if the filter is exact,
            else the CMU pronouncing dictionary). Entries that are not one word, such as
            "able-bodied", are left out; the words that pass are in `words`, accents and all.
        spelling: what the filter sees of a word; its letters are normalised to it, or refused where
            they can never occur.
        wordless: also allow texts without words: sentences of signs and digits alone, runs of them
            of any length, and letters in disguise (ᵃ, ａ).
        eos: the ids that may end a text (default: the tokenizer's).
        always_allow: ids that are allowed everywhere; what they do to a word is not judged.
        cache_size: how many masks (one byte per vocabulary entry each) are kept, least recently
            used ones leaving first.
    """

    def __init__(
        self,
        filter: WordFilter,
        tokenizer: Any,
        *,
        lexicon: Iterable[str] | None = None,
        eos: Sequence[int] | None = None,
        always_allow: Iterable[int] = (),
        spelling: Spelling | None = None,
        wordless: bool = False,
        cache_size: int = 256,
    ):
        in_range("cache_size", cache_size, "[1, inf)", integer=True)
        self.spelling = spelling or Spelling()
        filter = self.filter = filter.spelled(self.spelling.letters)
        self.wordless = wordless
        self.eos = eos_of(tokenizer, eos)
        self.always_allow = frozenset(always_allow)
        self.words: list[str] | None = None
        self.written = self.spelling  # how the machine reads a text
        if lexicon is not None or not filter.exact:
            self.written = replace(self.spelling, fold_accents=False)
            candidates = (
                default_words(self.written)
                if lexicon is None
                else single_words(lexicon, self.written)
            )
            symbols = self.spelling.symbols
            self.words = sorted(word for word in candidates if filter(symbols(word)))
            if not self.words:
                raise ConstraintError(
                    f"none of the {len(candidates)} words of the lexicon passes {filter}: "
                    "loosen the filter or give another lexicon"
                )
        self.vocabulary = vocabulary_of(tokenizer, self.written)
        self.vocab_size = len(self.vocabulary.pieces)
        self.machine: WordMachine = (
            LexiconMachine(self.words) if self.words else OpenMachine(filter)
        )
        self.cache_size = cache_size
        self._masks: OrderedDict[tuple[int, bool, bytes, int], Tensor] = OrderedDict()
        self._spellings: dict[bytes, list[tuple[str, str]]] = {}
        self._alive: dict[tuple[int, bool, bytes, int], bool] = {}

    def initial(self) -> WordState:
        return WordState(self, START)

    def begin(self, prompt: Sequence[int]) -> WordState:
        """The state after a prompt, whose words are not judged.

        Its last word may end as it is; if the text goes on with letters, these and the prompt's
        make one word, which is judged.
        """
        recent = [self.vocabulary.piece(token) for token in prompt[-PROMPT_WINDOW:]]
        begin = max((rank + 1 for rank, piece in enumerate(recent) if not piece), default=0)
        data = b"".join(recent[begin:])
        state = self._forgive(WordState(self, START), data)
        return replace(state, span=sentence_spans.after_prompt(data.decode(errors="replace")))

    def forgive(self, state: WordState, token: int) -> WordState:
        """The state after a token that the constraint does not judge."""
        piece = self.vocabulary.piece(token)
        return self._forgive(state, piece) if piece else self.initial()

    def accepts(self, text: str) -> bool:
        """Whether every word of a text is good (and, with a lexicon, in it), and there are words
        wherever there have to be."""
        words = self.written.words(text)
        known = self._word_set
        if not self.wordless and not sentence_spans.may_end(
            sentence_spans.read(sentence_spans.FRESH, sentence_spans.classes(text))
        ):
            return False
        return all(self.filter(word) if known is None else word in known for word in words)

    @cached_property
    def _word_set(self) -> frozenset[str] | None:
        return None if self.words is None else frozenset(self.words)

    def _step(self, state: int, given: bool, symbol: str) -> tuple[int, bool]:
        """One symbol; `given` marks an unfinished word that a prompt left, free to end as it is."""
        if not given:
            return self.machine.step(state, symbol), False
        if symbol == SEPARATOR or (self.machine.pending(state) and not symbol.isalpha()):
            return START, False
        moved = self.machine.step(state, symbol)
        return (moved or LOST_PENDING, True) if symbol == APOSTROPHE else (moved, False)

    def _read(self, state: int, given: bool, symbols: str) -> tuple[int, bool]:
        for symbol in symbols:
            state, given = self._step(state, given, symbol)
            if state == DEAD:
                break
        return state, given

    def _forgive(self, start: WordState, data: bytes) -> WordState:
        """Read bytes without judging."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        text, tail = decoder.decode(start.tail + data), decoder.getstate()[0]
        state = start.state
        for symbol in self.written.symbols(text):
            state = self._step(state, state >= FIRST_FREE, symbol)[0] or LOST
        given = state >= FIRST_FREE
        # A character that no completion fits is as good as ended.
        if tail and not self._tail_alive(state, given, tail, sentence_spans.FRESH):
            return WordState(self, START)
        return WordState(self, state, given, tail)

    def _tail_alive(self, state: int, given: bool, tail: bytes, span: int) -> bool:
        """Whether some character that begins with the bytes `tail` may come next."""
        key = (state, given, tail, span)
        if key not in self._alive:
            self._alive[key] = any(
                self._read(state, given, symbols)[0] != DEAD
                and (self.wordless or sentence_spans.step(span, kind) != sentence_spans.DEAD)
                for symbols, kind in self._possible(tail)
            )
        return self._alive[key]

    def _possible(self, tail: bytes) -> list[tuple[str, str]]:
        """Symbols and class of the characters that begin with the bytes `tail`."""
        if tail not in self._spellings:
            possible = readings_after(tail, self.written)
            alphabet = self.machine.alphabet()
            if alphabet is not None:
                possible = {
                    (symbols, kind)
                    for symbols, kind in possible
                    if symbols in alphabet or len(symbols) != 1 or any(map(is_mark, symbols))
                }
            self._spellings[tail] = sorted(possible)
        return self._spellings[tail]

    def _mask(self, state: WordState) -> Tensor:
        key = (state.state, state.given, state.tail, state.span)
        if key in self._masks:
            self._masks.move_to_end(key)
            return self._masks[key]
        allowed = self._unfinished(state) if state.tail else self._between(state)
        allowed[list(self.eos)] = state.complete
        allowed[list(self.always_allow)] = True
        mask = torch.from_numpy(allowed)
        self._masks[key] = mask
        if len(self._masks) > self.cache_size:
            self._masks.popitem(last=False)
        return mask

    def _between(self, state: WordState) -> np.ndarray:
        """The allowed tokens [V] where no character is unfinished."""
        vocabulary = self.vocabulary
        heads = vocabulary.heads.walk(self.machine, self._columns[0], state.state)
        ends = np.full(len(heads), self._columns[2])
        closed = self.machine.move(heads, ends) != DEAD
        allowed = np.zeros(self.vocab_size, bool)
        allowed[vocabulary.growing] = heads[vocabulary.growing_head] != DEAD
        allowed[vocabulary.closing] = closed[vocabulary.closing_head] & self._rests_alive
        if state.given:
            # The prompt's word may end as it is: what begins with a separator is not judged by it.
            at_once = vocabulary.closing_head == 0
            allowed[vocabulary.closing[at_once]] = self._rests_alive[at_once]
            for token in vocabulary.quoted:
                allowed[token] = state.judge(token)
        if not self.wordless:
            allowed &= vocabulary.within_spans(state.span)
        for token in vocabulary.tailed:
            allowed[token] = allowed[token] and state.judge(token)
        return allowed

    def _unfinished(self, state: WordState) -> np.ndarray:
        """The allowed tokens [V] inside a character: they must begin with its next byte."""
        allowed = np.zeros(self.vocab_size, bool)
        for token in self.vocabulary.inside:
            allowed[token] = state.judge(token)
        return allowed

    @cached_property
    def _columns(self) -> tuple[np.ndarray, np.ndarray, int]:
        vocabulary, columns = self.vocabulary, self.machine.columns
        separator = int(columns(SEPARATOR)[0])
        return columns(vocabulary.heads.symbols), columns(vocabulary.rests.symbols), separator

    @cached_property
    def _rests_alive(self) -> np.ndarray:
        """Of the tokens with a separator: whether what follows the first one is good so far."""
        rests = self.vocabulary.rests.walk(self.machine, self._columns[1], START)
        return rests[self.vocabulary.closing_rest] != DEAD


@dataclass(frozen=True)
class WordState:
    """Where a text stands, in its last word and in its last character.

    Args:
        state: the word machine's.
        tail: the bytes of an unfinished character.
        given: the unfinished word came from a prompt and may end as it is.
        span: what the present sentence holds so far, a state of `sentence_spans`.
    """

    constraint: WordConstraint
    state: int
    given: bool = False
    tail: bytes = b""
    finished: bool = False
    span: int = sentence_spans.FRESH

    @property
    def mask_cost(self) -> float:
        return 32.0

    @property
    def complete(self) -> bool:
        if self.finished or self.tail:
            return False
        if not self.constraint.wordless and not sentence_spans.may_end(self.span):
            return False
        machine = self.constraint.machine
        return self.given or machine.step(self.state, SEPARATOR) != DEAD

    def allows(self, token: int) -> bool:
        """Whether the text may go on with `token`; False for ids outside the vocabulary."""
        if self.finished or not 0 <= token < self.constraint.vocab_size:
            return False
        if token in self.constraint.always_allow:
            return True
        return self.complete if token in self.constraint.eos else self.judge(token)

    def judge(self, token: int) -> bool:
        """`allows` for tokens that are neither an end nor always allowed."""
        return self._moved(token) is not None

    def mask(self) -> Tensor:
        """bool `[V]`: `allows` of every token. Shared between states: not to be written to."""
        if self.finished:
            return torch.zeros(self.constraint.vocab_size, dtype=torch.bool)
        return self.constraint._mask(self)

    def advance(self, token: int) -> WordState:
        """The state after `token`.

        Raises:
            ConstraintError: it is not allowed.
        """
        if not self.allows(token):
            raise refuse(token, f"by {self.constraint.filter}")
        if token in self.constraint.eos:
            return WordState(self.constraint, self.state, finished=True)
        return self._moved(token) or self.constraint.forgive(self, token)

    def _moved(self, token: int) -> WordState | None:
        piece = self.constraint.vocabulary.pieces[token]
        split = split_tail(self.tail + piece) if piece else None
        if split is None:
            return None
        text, tail = split
        constraint, span = self.constraint, self.span
        state, given = constraint._read(self.state, self.given, constraint.written.symbols(text))
        if not constraint.wordless:
            span = sentence_spans.read(span, sentence_spans.classes(text))
        if state == DEAD or span == sentence_spans.DEAD:
            return None
        if tail and not constraint._tail_alive(state, given, tail, span):
            return None
        return WordState(constraint, state, given, tail, span=span)


@lru_cache(maxsize=1 << 10)
def readings_after(tail: bytes, spelling: Spelling) -> frozenset[tuple[str, str]]:
    """Symbols and class of every character whose UTF-8 begins with the bytes `tail`."""
    letters = {
        (spelled(chr(point), spelling), sentence_spans.class_of(chr(point)))
        for point in code_points_after(tail)
        if unicodedata.category(chr(point))[0] in "LM"
    }
    signs = {(SEPARATOR, kind) for kind in sentence_spans.classes_after(tail)}
    return frozenset(letters | signs)


def single_words(lexicon: Iterable[str], spelling: Spelling) -> frozenset[str]:
    """The entries of a lexicon that are one word, spelled."""
    several = (spelling.words(unicodedata.normalize("NFC", entry)) for entry in lexicon)
    return frozenset(words[0] for words in several if len(words) == 1)


@lru_cache(maxsize=4)
def default_words(spelling: Spelling) -> frozenset[str]:
    """The words of the CMU pronouncing dictionary, spelled."""
    return single_words(dictionary(), spelling)


def _examples() -> list[Example]:
    from tokenry.decode.steering.word_filters import WithoutLetters

    return [
        Example(lambda t: WordConstraint(WithoutLetters("e"), t), ["a cat on a mat"], ["the cat"])
    ]
