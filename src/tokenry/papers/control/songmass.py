"""SongMASS: pre-training on unpaired songs, and attention that knows which word is sung on which
note.

Made-up songs: 200 with lyrics and melody, 2,000 whose lyrics and melodies do not belong together.
A small encoder-decoder for each of the two learns to write the melody for lyrics (a) from the pairs
alone, (b) after song-level masked pre-training on the unpaired ones, (c) after it, with the
alignment loss and the sentence mask on its cross-attention. On new songs: the negative
log-likelihood of a melody token, and how well the dynamic programme, run on the last layer's
attention, tells which notes belong to which word.
"""

import math
import random
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from tokenry.learn.recipes.sequence_to_sequence.attention_alignment import (
    alignment_attention_loss,
    sentence_attention_mask,
)
from tokenry.learn.recipes.sequence_to_sequence.model import (
    Reading,
    fit,
    joined,
    read,
    small_decoder,
    small_encoder,
)
from tokenry.learn.recipes.sequence_to_sequence.song_mass import MassExample, song_mass_example
from tokenry.papers.base import Measurement, Outcome, Paper
from tokenry.tasks.worlds.songs import EOS, MASK, PAD, SEP, START, Song, Songs
from tokenry.text.monotone_alignment import Block, aligned_pairs, monotone_block_alignment

PAIRED, UNPAIRED, TESTED = 200, 2000, 100
PRETRAINED, FINE_TUNED, BATCH, RATE = 250, 250, 16, 2e-3
LENGTH = 96  # longest sequence; positions of the encoders and decoders
SOURCE, TARGET = -1, -2  # word and sentence of what is none, on either side


def reproduce(seed: int) -> Outcome:
    """Held if pre-training lowers the likelihood's cost and the constraints better the alignment,
    by two standard errors over the songs each."""
    world, chance = Songs(), random.Random(seed)
    pairs = [world.draw(chance) for _ in range(PAIRED)]
    lyrics = [world.draw(chance) for _ in range(UNPAIRED)]
    melodies = [world.draw(chance) for _ in range(UNPAIRED)]
    tested = [world.draw(chance) for _ in range(TESTED)]
    plain = Models.fresh(world, seed)
    trained = deepcopy(plain)
    pretrain(trained, world, lyrics, melodies, seed)
    results = {
        "pairs alone": fine_tuned(plain, pairs, tested, seed, constrained=False),
        "with pre-training": fine_tuned(deepcopy(trained), pairs, tested, seed, constrained=False),
        "with pre-training and constraints": fine_tuned(
            trained, pairs, tested, seed, constrained=True
        ),
    }
    alone, masked, constrained = results.values()
    cheaper = gain(alone.cost, masked.cost)
    aligned = gain(constrained.f1, alone.f1)
    measured = []
    for name, result in results.items():
        measured += [
            Measurement(
                f"negative log-likelihood, {name}", float(result.cost.mean()), "nats a token", seed
            ),
            Measurement(f"alignment F1, {name}", float(result.f1.mean()), "", seed),
        ]
    return Outcome(
        held=cheaper > 2 and aligned > 2,
        needs="pre-training lowers the negative log-likelihood of new melodies, and pre-training "
        "with both attention constraints raises the F1 of the alignment, over pairs alone, by two "
        "standard errors over the songs each",
        measurements=measured,
        reason=f"the differences are {cheaper:.1f} and {aligned:.1f} standard errors over "
        f"{TESTED} songs",
        figure=lambda figure: draw(figure, results),
    )


@dataclass
class Models:
    """An encoder and a decoder for lyrics and for melodies: any encoder can feed any decoder."""

    lyric_encoder: Any
    lyric_decoder: Any
    melody_encoder: Any
    melody_decoder: Any

    @classmethod
    def fresh(cls, world: Songs, seed: int) -> "Models":
        return cls(
            small_encoder(world.lyric_size, LENGTH, seed),
            small_decoder(world.lyric_size, LENGTH, seed),
            small_encoder(world.melody_size, LENGTH, seed + 2),
            small_decoder(world.melody_size, LENGTH, seed + 2),
        )


def pretrain(
    models: Models, world: Songs, lyrics: list[Song], melodies: list[Song], seed: int
) -> None:
    """Song-level MASS on lyrics and on melodies, a batch of either at every step."""
    writer = joined(models.lyric_encoder, models.lyric_decoder)
    singer = joined(models.melody_encoder, models.melody_decoder)
    words, notes = [flat_lyrics(song) for song in lyrics], [flat_melody(song) for song in melodies]
    note_kinds = [world.pitch_ids, world.duration_ids]

    def loss(generator: torch.Generator) -> Tensor:
        total = torch.zeros(())
        for model, songs, kinds in ((writer, words, [world.word_ids]), (singer, notes, note_kinds)):
            drawn = torch.randint(UNPAIRED, (BATCH,), generator=generator).tolist()
            examples = [
                song_mass_example(*songs[i], mask=MASK, start=EOS, kinds=kinds, generator=generator)
                for i in drawn
            ]
            total = total + mass_loss(model, examples)
        return total

    fit(loss, [writer, singer], steps=PRETRAINED, learning_rate=RATE, seed=seed)


def mass_loss(model: Any, examples: list[MassExample]) -> Tensor:
    """The mean cost of the masked tokens. Positions leave room for the marks between sentences."""

    def stacked(of: Callable[[MassExample], Tensor], value: int) -> Tensor:
        return pad_sequence([of(e) for e in examples], batch_first=True, padding_value=value)

    source, target = stacked(lambda e: e.source, PAD), stacked(lambda e: e.target, PAD)
    reading = read(
        model,
        source,
        stacked(lambda e: e.decoder_input, PAD),
        source_mask=source != PAD,
        encoder_inputs={
            "position_ids": stacked(lambda e: torch.arange(len(e.source)) + e.source_sentences, 0)
        },
        decoder_inputs={
            "decoder_position_ids": stacked(lambda e: e.positions + e.target_sentences, 0)
        },
    )
    return F.cross_entropy(reading.logits.flatten(0, 1), target.flatten(), ignore_index=PAD)


@dataclass(frozen=True)
class Pairs:
    """Songs as tensors: source [B, S] and target [B, T], with word and sentence of each token."""

    source: Tensor
    target: Tensor
    source_words: Tensor
    target_words: Tensor
    source_sentences: Tensor
    target_sentences: Tensor

    @classmethod
    def of(cls, songs: list[Song]) -> "Pairs":
        """Sentences end with SEP, which is of the sentence and no word; songs with EOS."""
        rows = [paired(song) for song in songs]
        columns = zip(zip(*rows, strict=True), (PAD, PAD, *[SOURCE, TARGET] * 2), strict=True)
        return cls(
            *(
                pad_sequence([torch.tensor(x) for x in column], batch_first=True, padding_value=v)
                for column, v in columns
            )
        )

    def take(self, rows: Tensor) -> "Pairs":
        return Pairs(*(value[rows] for value in vars(self).values()))


def paired(song: Song) -> tuple[list[int], ...]:
    """source, target, their words and their sentences, of one song."""
    source, target = [], []
    for sentence, (words, notes) in enumerate(zip(song.words, song.notes, strict=True)):
        # Words are numbered through the song; a sentence has fewer than a hundred.
        source += [(word, 100 * sentence + i, sentence) for i, word in enumerate(words)]
        for pitch, duration, place in notes:
            target += [(t, 100 * sentence + place, sentence) for t in (pitch, duration)]
        source.append((SEP, SOURCE, sentence))
        target.append((SEP, TARGET, sentence))
    source.append((EOS, SOURCE, SOURCE))
    target.append((EOS, TARGET, TARGET))
    columns = [*zip(*source, strict=True)], [*zip(*target, strict=True)]
    return tuple(list(side[column]) for column in range(3) for side in columns)


def flat_lyrics(song: Song) -> tuple[Tensor, Tensor]:
    """Words of a song and their sentences."""
    flat = [(word, sentence) for sentence, words in enumerate(song.words) for word in words]
    return torch.tensor([word for word, _ in flat]), torch.tensor([number for _, number in flat])


def flat_melody(song: Song) -> tuple[Tensor, Tensor]:
    """Pitches and durations of a song, in turn, and their sentences."""
    flat = [
        (token, sentence)
        for sentence, notes in enumerate(song.notes)
        for note in notes
        for token in note[:2]
    ]
    return torch.tensor([token for token, _ in flat]), torch.tensor([number for _, number in flat])


@dataclass(frozen=True)
class Result:
    """cost: nats a melody token, of each song. f1: of each song's alignment. shown: the attention
    of one sentence, [notes, words], and its blocks."""

    cost: Tensor
    f1: Tensor
    shown: tuple[Tensor, list[Block]]


def fine_tuned(
    models: Models, pairs: list[Song], tested: list[Song], seed: int, *, constrained: bool
) -> Result:
    """Teach a model to write melodies, and judge it."""
    model = joined(models.lyric_encoder, models.melody_decoder)
    training, new = Pairs.of(pairs), Pairs.of(tested)

    def loss(generator: torch.Generator) -> Tensor:
        batch = training.take(torch.randint(PAIRED, (BATCH,), generator=generator))
        reading = sung(model, batch, constrained)
        total = costs(reading, batch).sum()
        if constrained:
            total = total + alignment_attention_loss(
                reading.attentions,
                batch.target_words,
                batch.source_words,
                batch.target_sentences,
                batch.source_sentences,
            )
        return total / (batch.target != PAD).sum()

    fit(loss, [model], steps=FINE_TUNED, learning_rate=RATE, seed=seed)
    with torch.no_grad():
        reading = sung(model, new, constrained)
    cost = costs(reading, new).sum(-1) / (new.target != PAD).sum(-1)
    judged = [judge(song, reading.attentions[-1][row], new, row) for row, song in enumerate(tested)]
    return Result(cost, torch.tensor([f1 for f1, _ in judged]), judged[0][1])


def sung(model: Any, batch: Pairs, constrained: bool) -> Reading:
    """The model reads lyrics and, one token late, their melody."""
    start = torch.full((len(batch.target), 1), START)
    mask = sentence_attention_mask(batch.target_sentences, batch.source_sentences)
    return read(
        model,
        batch.source,
        torch.cat([start, batch.target[:, :-1]], 1),
        source_mask=batch.source != PAD,
        cross_mask=mask if constrained else None,
    )


def costs(reading: Reading, batch: Pairs) -> Tensor:
    """-log p of every target token, [B, T]; 0 for padding."""
    cost = F.cross_entropy(
        reading.logits.flatten(0, 1), batch.target.flatten(), ignore_index=PAD, reduction="none"
    )
    return cost.view(batch.target.shape)


def judge(
    song: Song, attention: Tensor, batch: Pairs, row: int
) -> tuple[float, tuple[Tensor, list[Block]]]:
    """F1 of a song's (note, word) pairs, and the first sentence's attention and blocks."""
    found = right = wanted = 0
    shown = []
    for sentence, notes in enumerate(song.notes):
        at = (batch.target_sentences[row] == sentence) & (batch.target_words[row] >= 0)
        words = (batch.source_sentences[row] == sentence) & (batch.source_words[row] >= 0)
        scores = attention[at][:, words].view(len(notes), 2, -1).sum(1)  # pitch and duration
        _, blocks = monotone_block_alignment(scores)
        pairs = aligned_pairs(blocks)
        truth = {(i, place) for i, (*_, place) in enumerate(notes)}
        found, wanted, right = found + len(pairs), wanted + len(truth), right + len(pairs & truth)
        shown.append((scores, blocks))
    return 2 * right / (found + wanted), shown[0]


def gain(higher: Tensor, lower: Tensor) -> float:
    """The mean difference over the songs in standard errors."""
    difference = higher - lower
    return float(difference.mean() / difference.std()) * math.sqrt(len(difference))


def draw(figure: Any, results: dict[str, Result]) -> None:
    """The attention of one sentence with its alignment, for each model."""
    for axes, (name, result) in zip(figure.subplots(1, 3), results.items(), strict=True):
        scores, blocks = result.shown
        axes.imshow(scores, aspect="auto", cmap="Blues")
        for notes, words in blocks:
            axes.plot(
                [word for word in words for _ in notes],
                [note for _ in words for note in notes],
                color="tab:red",
                marker="o",
            )
        axes.set_title(f"{name}\nF1 {float(result.f1.mean()):.2f}", fontsize=8)
        axes.set_xlabel("word")
        axes.set_ylabel("note")


PAPER = Paper(
    number=3,
    key="songmass",
    title="SongMASS: Automatic Song Writing with Pre-training and Alignment Constraint",
    arxiv="2012.05168",
    role="objective",
    family="control",
    claim="Song-level masked pre-training on unpaired lyrics and melodies makes better melodies, "
    "and attention constraints align them with the words.",
    reproduce=reproduce,
    threads=1,
)
