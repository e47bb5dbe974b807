"""Songs: made-up lyrics with melodies, and which notes each word is sung on.

A song is some sentences of words. Every word is of one of four classes, which says on how many
notes it is sung and how these move; the melody goes on from the note before it:

    class 0: +0          class 1: +1 +1          class 2: -1 +2          class 3: -1 -1 +3

in steps of a scale that begins anew at its end. The last note of a word is long, or very long for
every other word; the others are short. A note now and then goes astray. What follows a word depends
on its class, so that lyrics and melodies have a structure of their own.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from tokenry.core.errors import InputError

PAD, MASK, START, EOS, SEP = range(5)
FIRST = 5  # the first word; in melodies the first pitch, behind which the durations come
SOURCE, TARGET = -1, -2  # word and sentence of a token that has none, on either side
SENTENCE = 100  # words of a song are numbered in hundreds, one hundred a sentence
MOVES = [(0,), (1, 1), (-1, 2), (-1, -1, 3)]
DURATIONS = 3


@dataclass(frozen=True)
class Song:
    """words: ids, sentence by sentence. notes: of each sentence, (pitch, duration, word), the last
    one being the place of the word in the sentence."""

    words: tuple[tuple[int, ...], ...]
    notes: tuple[tuple[tuple[int, int, int], ...], ...]

    @property
    def lyrics(self) -> Tensor:
        """The words and their sentences, [2, n]."""
        rows = [(word, n) for n, words in enumerate(self.words) for word in words]
        return torch.tensor(rows).T

    @property
    def melody(self) -> Tensor:
        """Pitches and durations in turn, and their sentences, [2, n]."""
        sung = [(note, n) for n, notes in enumerate(self.notes) for note in notes]
        return torch.tensor([(token, n) for note, n in sung for token in note[:2]]).T

    def columns(self) -> tuple[list[tuple[int, int, int]], list[tuple[int, int, int]]]:
        """The lyrics and the melody as (token, word, sentence): sentences end with SEP, which
        belongs to the sentence and to no word, the song with EOS."""
        source, target = [], []
        for n, (words, notes) in enumerate(zip(self.words, self.notes, strict=True)):
            source += [(word, SENTENCE * n + i, n) for i, word in enumerate(words)]
            target += [(t, SENTENCE * n + i, n) for *note, i in notes for t in note]
            source.append((SEP, SOURCE, n))
            target.append((SEP, TARGET, n))
        return [*source, (EOS, SOURCE, SOURCE)], [*target, (EOS, TARGET, TARGET)]


@dataclass(frozen=True)
class SongBatch:
    """Songs as tensors: lyrics `source` [B, S] and melodies `target` [B, T], padded on the right;
    the word and the sentence of every token."""

    source: Tensor
    source_words: Tensor
    source_sentences: Tensor
    target: Tensor
    target_words: Tensor
    target_sentences: Tensor

    @classmethod
    def of(cls, songs: Sequence[Song]) -> SongBatch:
        sides = zip(*(song.columns() for song in songs), strict=True)
        columns = [
            pad_sequence([torch.tensor(row)[:, n] for row in side], True, value)
            for side, none in zip(sides, (SOURCE, TARGET), strict=True)
            for n, value in enumerate((PAD, none, none))
        ]
        return cls(*columns)

    @property
    def words(self) -> tuple[Tensor, Tensor]:
        """Of the target's and the source's tokens."""
        return self.target_words, self.source_words

    @property
    def sentences(self) -> tuple[Tensor, Tensor]:
        return self.target_sentences, self.source_sentences

    def take(self, rows: Tensor) -> SongBatch:
        return SongBatch(*(value[rows] for value in vars(self).values()))


@dataclass(frozen=True)
class Songs:
    """words: how many there are. pitches: of the scale. sentences: of a song, each of `shortest` to
    `longest` words. astray: share of notes whose pitch is any."""

    words: int = 40
    pitches: int = 12
    sentences: int = 3
    shortest: int = 3
    longest: int = 4
    astray: float = 0.05

    def __post_init__(self) -> None:
        if not 1 <= self.shortest <= self.longest or self.words < len(MOVES):
            raise InputError(
                f"sentences of {self.shortest} to {self.longest} words out of {self.words} are "
                f"not possible: at least one word, and {len(MOVES)} to choose from"
            )

    @property
    def lyric_size(self) -> int:
        return FIRST + self.words

    @property
    def melody_size(self) -> int:
        return FIRST + self.pitches + DURATIONS

    @property
    def pitch_ids(self) -> range:
        return range(FIRST, FIRST + self.pitches)

    @property
    def duration_ids(self) -> range:
        return range(FIRST + self.pitches, self.melody_size)

    @property
    def word_ids(self) -> range:
        return range(FIRST, self.lyric_size)

    def draw(self, chance: random.Random) -> Song:
        """A song."""
        words, notes = [], []
        pitch, before = chance.randrange(self.pitches), chance.randrange(len(MOVES))
        for _ in range(self.sentences):
            sentence, sung = [], []
            for place in range(chance.randint(self.shortest, self.longest)):
                # A word is of the class behind that of the last one, or of any.
                kind = (before + 1) % len(MOVES) if chance.random() < 0.6 else chance.randrange(4)
                number = chance.randrange(self.words // len(MOVES)) * len(MOVES) + kind
                sentence.append(FIRST + number)
                for rank, move in enumerate(MOVES[kind]):
                    pitch = (pitch + move) % self.pitches
                    if chance.random() < self.astray:
                        pitch = chance.randrange(self.pitches)
                    last = rank == len(MOVES[kind]) - 1
                    duration = 1 + number // len(MOVES) % 2 if last else 0
                    sung.append((FIRST + pitch, self.duration_ids[duration], place))
                before = kind
            words.append(tuple(sentence))
            notes.append(tuple(sung))
        return Song(tuple(words), tuple(notes))
