"""Melody: lyrics that can be sung, one line for each phrase, its syllables laid on the notes.

Phrase i has n_i notes; line i is a sequence of words w_1, w_2, ... of the lexicon. With c(w) the
set of syllable counts with which a word can be spoken ("fire": one or two), the line fits if

    some s_1 in c(w_1), s_2 in c(w_2), ... have   n_i - melisma  <=  Σ s  <=  n_i + split

and there is a syllable where there is a note. melisma: notes that may be left over, as a syllable
can be held over several; split: syllables that may be too many, as a note can be divided. The text
has exactly one line for each phrase.

Words, not tokens, are counted: there is a word machine (`word_machine`) for each syllable count k,
over the words that can be spoken with k syllables. An unfinished word is where it stands in each of
them, so that the machines alive say with which counts it can still end. A state goes on only if
some of these, added to what the line holds and filled up with further words, reaches the phrase: a
lexicon with words of one syllable fills up everything, so that there is no dead end.

Digits are refused, as they are spoken and have no spelling. Other signs separate words.

Source: SongMASS: Automatic Song Writing with Pre-training and Alignment Constraint (arXiv
2012.05168) aligns lyrics and melody softly, in its attention, and afterwards by dynamic programming
(`text.monotone_alignment`). The hard constraint, for any language model, is ours.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tokenry.core.checks import in_range, one_of
from tokenry.core.errors import ConstraintError
from tokenry.decode.constraints.base import Constraint, Example, constraint, eos_of, refuse
from tokenry.decode.constraints.spelling import (
    SEPARATOR,
    Spelling,
    spelled,
    spellings_after,
    split_tail,
)
from tokenry.decode.constraints.word_machine import DEAD, START, LexiconMachine
from tokenry.decode.constraints.word_vocabulary import SymbolTrie, vocabulary_of
from tokenry.decode.constraints.words import default_words, single_words
from tokenry.decode.steering.phonetics import Unknown, syllable_counts

BREAK, NOWHERE = "\n", "\0"  # the symbols of a line's end and of a character that is refused
DIGITS = "0123456789"
WRITTEN = Spelling(fold_accents=False)  # words are written as the lexicon writes them
LONGEST = 60  # notes in a phrase: the counts that a line can have are the bits of one integer
CACHE_SIZE = 256  # masks kept, least recently used ones leaving first


@constraint("melody", paper=3, examples=lambda: _examples())
class Melody(Constraint):
    """Texts of one line for each of `phrases`, numbers of notes, that can be sung on them.

    Args:
        tokenizer: of transformers, or the bytes of every token.
        melisma: how many notes of each phrase may be left to held syllables.
        split: how many syllables may be too many.
        lexicon: the words that may be used (default: the CMU pronouncing dictionary, in English).
        unknown: whether the syllables of a word that this dictionary does not have are guessed from
            its letters ("guess"), or the word is left out ("reject").
        eos: the ids that may end a text (default: the tokenizer's).
    """

    def __init__(
        self,
        phrases: Sequence[int],
        tokenizer: Any,
        *,
        melisma: int = 0,
        split: int = 0,
        lexicon: Iterable[str] | None = None,
        unknown: Unknown = "guess",
        eos: Sequence[int] | None = None,
    ):
        self.phrases, self.melisma, self.split = tuple(phrases), melisma, split
        if not self.phrases:
            raise ConstraintError("a melody has at least one phrase: give the notes of each")
        for name, notes in (("melisma", melisma), ("split", split)):
            in_range(name, notes, "[0, inf)", integer=True)
        for number, notes in enumerate(self.phrases):
            in_range(f"phrase {number}", notes, "[0, inf)", integer=True)
        one_of("unknown", unknown, ("guess", "reject"))
        if max(self.phrases) + split > LONGEST:
            raise ConstraintError(
                f"phrase {self.phrases.index(max(self.phrases))} has {max(self.phrases)} notes: "
                f"more than {LONGEST} syllables in a line are not counted; divide the phrase"
            )
        self.spelling = WRITTEN
        self.eos = eos_of(tokenizer, eos)
        self.vocabulary = vocabulary_of(tokenizer, self.spelling)
        self.vocab_size = len(self.vocabulary.pieces)
        longest = max(self.phrases) + split
        self.limit = (1 << longest + 1) - 1  # the bits of counts that a line can have
        words = None if lexicon is None else single_words(lexicon, self.spelling)
        by_count = spoken_words(words, unknown, max(longest, 1))
        self.counts = tuple(by_count)
        self.machines = tuple(by_count.values())
        # Line by line: the counts with which it may end, and those from which further words lead
        # to one of them.
        self.fits, self.viable = [], []
        for number, notes in enumerate(self.phrases):
            fewest = max(notes - melisma, min(notes, 1))
            fits = bits(range(fewest, notes + split + 1))
            viable = fits
            for count in range(longest, -1, -1):
                if any(viable >> count + more & 1 for more in self.counts):
                    viable |= 1 << count
            if not viable & 1:
                raise ConstraintError(
                    f"no line fits phrase {number}, of {notes} notes: the lexicon's words have "
                    f"{sorted(self.counts)} syllables; add shorter ones, or allow more melisma"
                )
            self.fits.append(fits)
            self.viable.append(viable)
        self._masks: OrderedDict[tuple[Any, ...], Tensor] = OrderedDict()

    def initial(self) -> MelodyState:
        return MelodyState(self, 0, 1, (START,) * len(self.machines))

    def _read(self, state: MelodyState, symbols: str) -> MelodyState | None:
        """The state after some symbols; None if a word or a line has failed."""
        line, sums, positions = state.line, state.sums, state.positions
        for symbol in symbols:
            if symbol == NOWHERE:
                return None
            moved, ended = self._move(positions, SEPARATOR if symbol == BREAK else symbol)
            if not ended and not any(moved):
                return None
            if ended:
                sums, moved = self._added(sums, ended), (START,) * len(positions)
            positions = moved
            if symbol == BREAK:
                if not sums & self.fits[line] or line + 1 == len(self.phrases):
                    return None
                line, sums = line + 1, 1
        if not self._added(sums, self._unfinished(positions)) & self.viable[line]:
            return None
        return MelodyState(self, line, sums, positions)

    def _move(self, positions: tuple[int, ...], symbol: str) -> tuple[tuple[int, ...], int]:
        """Every machine's next state, and the counts of the word that the symbol ended, if any."""
        moved = tuple(
            machine.step(position, symbol)
            for machine, position in zip(self.machines, positions, strict=True)
        )
        if START in positions:
            return moved, 0
        return moved, bits(
            count for count, to in zip(self.counts, moved, strict=True) if to == START
        )

    def _unfinished(self, positions: tuple[int, ...]) -> int:
        """The counts that the unfinished word may have; 0 syllables if there is none."""
        if START in positions:
            return 1
        return bits(count for count, at in zip(self.counts, positions, strict=True) if at != DEAD)

    def _added(self, sums: int, counts: int) -> int:
        """All sums of one number of each; numbers are bits."""
        return _sums(sums, counts, self.limit)

    def _possible(self, tail: bytes) -> frozenset[str]:
        """Symbols of the characters that may begin with `tail`, as far as they can matter."""
        if tail not in self._spellings:
            letters = {letter for machine in self.machines for letter in machine.column}
            spellings = spellings_after(tail, self.spelling)
            self._spellings[tail] = frozenset(s for s in spellings if len(s) != 1 or s in letters)
        return self._spellings[tail]

    @cached_property
    def _spellings(self) -> dict[bytes, frozenset[str]]:
        return {}

    def _mask(self, state: MelodyState) -> Tensor:
        key = (state.line, state.sums, state.positions, state.tail)
        if key in self._masks:
            self._masks.move_to_end(key)
            return self._masks[key]
        if state.tail:
            allowed, single = np.zeros(self.vocab_size, bool), self.vocabulary.inside
        else:
            allowed, single = self._between(state), self.vocabulary.tailed
        for token in single:
            allowed[token] = state._moved(token) is not None
        allowed[list(self.eos)] = state.complete
        mask = self._masks[key] = torch.from_numpy(allowed)
        if len(self._masks) > CACHE_SIZE:
            self._masks.popitem(last=False)
        return mask

    def _between(self, state: MelodyState) -> np.ndarray:
        """The allowed tokens [V] where no character is unfinished, but for those with a tail."""
        vocabulary, viable = self.vocabulary, self.viable[state.line]
        going = self._walk(vocabulary.heads, self._columns[0], state.positions)
        ended = np.zeros_like(going[0])
        for count, machine, positions in zip(self.counts, self.machines, going, strict=True):
            closed = machine.table[positions, machine.columns(SEPARATOR)[0]] != DEAD
            ended |= closed.astype(np.int64) << count
        alive = self._alive(going)
        if START in state.positions:
            alive[0] = ended[0] = 1  # no word was begun
        sums = np.int64(state.sums)
        growing = _sums(sums, alive, self.limit)[vocabulary.growing_head]
        closing = _sums(sums, ended, self.limit)[vocabulary.closing_head]
        closing = _sums(closing, self._rests, self.limit)
        allowed = np.zeros(self.vocab_size, bool)
        allowed[vocabulary.growing] = growing & viable != 0
        allowed[vocabulary.closing] = closing & viable != 0
        for symbols, tokens in self._odd.items():
            allowed[tokens] = self._read(state, symbols) is not None
        return allowed

    def _walk(self, trie: SymbolTrie, columns: Any, positions: tuple[int, ...]) -> list[np.ndarray]:
        walks = zip(self.machines, columns, positions, strict=True)
        return [trie.walk(machine, column, position) for machine, column, position in walks]

    def _alive(self, going: list[np.ndarray]) -> np.ndarray:
        """The counts, as bits, of the machines that are alive at each prefix."""
        alive = np.zeros(len(going[0]), np.int64)
        for count, positions in zip(self.counts, going, strict=True):
            alive |= (positions != DEAD).astype(np.int64) << count
        return alive

    @cached_property
    def _columns(self) -> tuple[list[np.ndarray], list[np.ndarray]]:
        heads, rests = self.vocabulary.heads.symbols, self.vocabulary.rests.symbols
        of = [machine.columns for machine in self.machines]
        return [columns(heads) for columns in of], [columns(rests) for columns in of]

    @cached_property
    def _odd(self) -> dict[str, list[int]]:
        """Tokens that are read symbol by symbol, by their symbols: those with line breaks, digits,
        apostrophes or marks, which the tries do not tell apart from other signs."""
        by_symbols: dict[str, list[int]] = {}
        vocabulary = self.vocabulary
        for token in [*vocabulary.growing.tolist(), *vocabulary.closing.tolist()]:
            text = vocabulary.pieces[token].decode(errors="ignore")
            if text.isalpha() and text.isascii():
                continue
            symbols = re.sub(f"{SEPARATOR}+", SEPARATOR, symbols_of(text))
            if not symbols.replace(SEPARATOR, "").isalpha() and symbols.strip(SEPARATOR):
                by_symbols.setdefault(symbols, []).append(token)
        return by_symbols

    @cached_property
    def _rests(self) -> np.ndarray:
        """Of the tokens with a separator: the counts that what follows the first one may have."""
        trie, start = self.vocabulary.rests, self.initial()
        alive = self._alive(self._walk(trie, self._columns[1], start.positions))
        alive[0] = 1
        for rest, index in trie.index_of.items():
            if rest and not rest.isalpha():
                alive[index] = self._counts_of(rest)
        return alive[self.vocabulary.closing_rest]

    def _counts_of(self, symbols: str) -> int:
        """The counts that symbols behind a separator may have; none if one of their words fails."""
        sums, positions = 1, self.initial().positions
        for symbol in symbols:
            moved, ended = self._move(positions, symbol)
            if not ended and not any(moved):
                return 0
            if ended:
                sums, moved = self._added(sums, ended), (START,) * len(positions)
            positions = moved
        return self._added(sums, self._unfinished(positions))


@dataclass(frozen=True)
class MelodyState:
    """Where a text stands: its line, the counts (as bits) that the line's finished words may have,
    the unfinished word in each machine, and the bytes of an unfinished character."""

    constraint: Melody
    line: int
    sums: int
    positions: tuple[int, ...]
    tail: bytes = b""
    finished: bool = False
    mask_cost: float = 64.0

    @property
    def complete(self) -> bool:
        constraint = self.constraint
        if self.finished or self.tail or self.line + 1 < len(constraint.phrases):
            return False
        moved, ended = constraint._move(self.positions, SEPARATOR)
        if not any(moved):
            return False
        return bool(constraint._added(self.sums, ended or 1) & constraint.fits[self.line])

    def allows(self, token: int) -> bool:
        constraint = self.constraint
        if token in constraint.eos:
            return self.complete
        inside = not self.finished and 0 <= token < constraint.vocab_size
        return inside and self._moved(token) is not None

    def mask(self) -> Tensor:
        """bool `[V]`: `allows` of every token. Shared between states: not to be written to."""
        if self.finished:
            return torch.zeros(self.constraint.vocab_size, dtype=torch.bool)
        return self.constraint._mask(self)

    def advance(self, token: int) -> MelodyState:
        if not self.allows(token):
            notes = self.constraint.phrases[self.line]
            raise refuse(token, f"in line {self.line + 1}, on a phrase of {notes} notes")
        if token in self.constraint.eos:
            return replace(self, finished=True)
        moved = self._moved(token)
        assert moved is not None  # as `allows` has found
        return moved

    def _moved(self, token: int) -> MelodyState | None:
        piece = self.constraint.vocabulary.pieces[token]
        split = split_tail(self.tail + piece) if piece else None
        if split is None:
            return None
        moved = self.constraint._read(self, symbols_of(split[0]))
        if moved is None or not split[1]:
            return moved
        ways = self.constraint._possible(split[1])
        alive = any(self.constraint._read(moved, way) is not None for way in ways)
        return replace(moved, tail=split[1]) if alive else None


def line_syllables(text: str, unknown: Unknown = "guess") -> list[list[int]]:
    """For each line of a text, the numbers of syllables with which it can be spoken, in order."""
    by_line = []
    for line in text.split(BREAK):
        sums = {0}
        for word in Spelling().words(line):
            sums = {total + more for total in sums for more in syllable_counts(word, unknown)}
        by_line.append(sorted(sums))
    return by_line


def symbols_of(text: str) -> str:
    """The symbols of a text, with line breaks and refused characters of their own."""
    if text.isalpha() and text.isascii():
        return text.lower()
    return "".join(
        BREAK if c == BREAK else NOWHERE if c in DIGITS else spelled(c, WRITTEN) for c in text
    )


def bits(numbers: Iterable[int]) -> int:
    """The set of some numbers as an integer."""
    mask = 0
    for number in numbers:
        mask |= 1 << number
    return mask


def _sums(sums: Any, counts: Any, limit: int) -> Any:
    """The numbers a + b with a in `sums` and b in `counts`, up to the limit; sets are the bits of
    integers, or of arrays of them."""
    total, shift = sums * (counts & 1), 1
    while 1 << shift <= limit:
        total = total | (sums << shift & limit) * (counts >> shift & 1)
        shift += 1
    return total & limit


@lru_cache(maxsize=8)
def spoken_words(
    words: frozenset[str] | None, unknown: Unknown, longest: int
) -> dict[int, LexiconMachine]:
    """A machine for each syllable count, up to the longest, of the words that can have it."""
    known = default_words(WRITTEN) if words is None else words
    by_count: dict[int, list[str]] = {}
    for word in known:
        for count in syllable_counts(Spelling().symbols(word), unknown):
            if 0 < count <= longest:
                by_count.setdefault(count, []).append(word)
    if not by_count:
        raise ConstraintError(
            f"none of the {len(known)} words of the lexicon is known to have 1 to {longest} "
            'syllables: give other words, or unknown="guess"'
        )
    return {count: LexiconMachine(by_count[count]) for count in sorted(by_count)}


def _examples() -> list[Example]:
    lexicon = ["the", "cat", "gather", "a"]
    return [
        Example(
            lambda t: Melody([2, 3], t, lexicon=lexicon),
            ["The... cat,\ngather the"],
            ["the cat\na", "gather a\ngather a"],
        )
    ]
