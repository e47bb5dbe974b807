"""Writing melodies for lyrics: models with and without pre-training on unpaired songs, judged.

Of the songs of `tasks.worlds.songs` few are paired. An encoder and a decoder for lyrics and for
melodies are pre-trained by song-level MASS on songs whose lyrics and melodies do not belong
together; the lyrics' encoder and the melodies' decoder then learn from the pairs.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence

from tokenry.lab.toy_encoder_decoder import joined, small_decoder, small_encoder
from tokenry.lab.toys import trained
from tokenry.learn.recipes.sequence_to_sequence.attention_alignment import (
    alignment_attention_loss,
    sentence_attention_mask,
)
from tokenry.learn.recipes.sequence_to_sequence.song_mass import MassExample, song_mass_example
from tokenry.learn.recipes.sequence_to_sequence.training import fit
from tokenry.model.encoder_decoder import Reading, read
from tokenry.tasks.worlds.songs import EOS, MASK, PAD, SENTENCE, START, Song, SongBatch, Songs
from tokenry.text.monotone_alignment import aligned_pairs, alignment_f1, monotone_block_alignment

WORLD = Songs()
LENGTH = 96  # longest sequence; positions of the encoders and decoders
RATE = 2e-3


@dataclass(frozen=True)
class SongScores:
    """Of each tested song: nats a melody token; F1 of the (note, word) pairs that the last layer's
    attention gives."""

    cost: Tensor
    f1: Tensor


@dataclass(frozen=True)
class SongBench:
    """Songs of one seed. paired, unpaired, tested: how many. pretraining, fine_tuning: steps, of
    `batch` songs each."""

    seed: int
    paired: int = 200
    unpaired: int = 2000
    tested: int = 100
    pretraining: int = 250
    fine_tuning: int = 250
    batch: int = 16

    def songs(self) -> list[list[Song]]:
        """Paired songs, unpaired ones for their lyrics and for their melodies, songs to test on."""
        chance = random.Random(self.seed)
        counts = (self.paired, self.unpaired, self.unpaired, self.tested)
        return [[WORLD.draw(chance) for _ in range(count)] for count in counts]

    def fresh(self) -> nn.ModuleDict:
        """An encoder and a decoder for lyrics and for melodies; any encoder feeds any decoder."""
        modules = {}
        for side, size, seed in (
            ("lyric", WORLD.lyric_size, self.seed), ("melody", WORLD.melody_size, self.seed + 2)
        ):  # fmt: skip
            modules[f"{side} encoder"] = small_encoder(size, LENGTH, seed)
            modules[f"{side} decoder"] = small_decoder(size, LENGTH, seed)
        return nn.ModuleDict(modules)

    def pretrained(self) -> nn.ModuleDict:
        """Modules after MASS on lyrics and on melodies, a batch of either at every step; kept."""

        def train(modules: Any) -> None:
            _, lyrics, melodies, _ = self.songs()
            kinds = {"lyric": [WORLD.word_ids], "melody": [WORLD.pitch_ids, WORLD.duration_ids]}
            songs = {"lyric": [s.lyrics for s in lyrics], "melody": [s.melody for s in melodies]}
            models = {side: joined(modules[f"{side} encoder"], modules[f"{side} decoder"])
                      for side in songs}  # fmt: skip

            def loss(generator: torch.Generator) -> Tensor:
                total = torch.zeros(())
                for side, rows in songs.items():
                    options: Any = {"kinds": kinds[side], "generator": generator}
                    drawn = torch.randint(len(rows), (self.batch,), generator=generator).tolist()
                    examples = [
                        song_mass_example(*rows[n], mask=MASK, start=EOS, **options) for n in drawn
                    ]
                    total = total + mass_loss(models[side], examples)
                return total

            steps = self.pretraining
            fit(loss, models.values(), steps=steps, learning_rate=RATE, seed=self.seed)

        return trained(self.fresh, train, self)

    def taught(self, modules: nn.ModuleDict, *, constrained: bool = False) -> SongScores:
        """The scores of a model that learned from the pairs, from these modules on.

        constrained: with the alignment loss and the sentence mask on its cross-attention.
        """
        modules = deepcopy(modules).requires_grad_(True)
        model = joined(modules["lyric encoder"], modules["melody decoder"])
        pairs, *_, songs = self.songs()
        training, new = SongBatch.of(pairs), SongBatch.of(songs)

        def read_on(batch: SongBatch) -> tuple[Reading, Tensor]:
            """Lyrics and, one token late, their melody; -log p of its tokens, 0 for padding."""
            mask = sentence_attention_mask(batch.target_sentences, batch.source_sentences)
            start = torch.full((len(batch.target), 1), START)
            reading = read(
                model,
                batch.source,
                torch.cat([start, batch.target[:, :-1]], 1),
                source_mask=batch.source != PAD,
                cross_mask=mask if constrained else None,
            )
            options: Any = {"ignore_index": PAD, "reduction": "none"}
            cost = cross_entropy(reading.logits.flatten(0, 1), batch.target.flatten(), **options)
            return reading, cost.view(batch.target.shape)

        def loss(generator: torch.Generator) -> Tensor:
            drawn = torch.randint(self.paired, (self.batch,), generator=generator)
            batch = training.take(drawn)
            reading, cost = read_on(batch)
            total = cost.sum()
            if constrained:
                words, sentences = batch.words, batch.sentences
                total = total + alignment_attention_loss(reading.attentions, *words, *sentences)
            return total / (batch.target != PAD).sum()

        fit(loss, [model], steps=self.fine_tuning, learning_rate=RATE, seed=self.seed)
        with torch.no_grad():
            reading, cost = read_on(new)
        attention = reading.attentions[-1]
        f1 = [song_f1(attention[row], new, row) for row in range(len(songs))]
        return SongScores(cost.sum(-1) / (new.target != PAD).sum(-1), torch.tensor(f1))


def mass_loss(model: Any, examples: list[MassExample]) -> Tensor:
    """The mean cost of the masked tokens. Positions leave out the marks between sentences."""

    def stacked(of: Callable[[MassExample], Tensor], value: int) -> Tensor:
        return pad_sequence([of(e) for e in examples], batch_first=True, padding_value=value)

    source, target = stacked(lambda e: e.source, PAD), stacked(lambda e: e.target, PAD)
    at_source = stacked(lambda e: torch.arange(len(e.source)) + e.source_sentences, 0)
    at_target = stacked(lambda e: e.positions + e.target_sentences, 0)
    reading = read(
        model,
        source,
        stacked(lambda e: e.decoder_input, PAD),
        source_mask=source != PAD,
        encoder_inputs={"position_ids": at_source},
        decoder_inputs={"decoder_position_ids": at_target},
    )
    return cross_entropy(reading.logits.flatten(0, 1), target.flatten(), ignore_index=PAD)


def song_f1(attention: Tensor, batch: SongBatch, row: int) -> float:
    """F1 of the blocks of attention [T, S], sentence by sentence, against a song's own words."""
    aligned, truth = [], []
    for sentence in range(int(batch.target_sentences[row].max()) + 1):
        at = (batch.target_sentences[row] == sentence) & (batch.target_words[row] >= 0)
        words = (batch.source_sentences[row] == sentence) & (batch.source_words[row] >= 0)
        scores = attention[at][:, words].view(-1, 2, int(words.sum())).sum(1)  # pitch and duration
        aligned.append(aligned_pairs(monotone_block_alignment(scores)[1]))
        own = (batch.target_words[row][at][::2] - SENTENCE * sentence).tolist()
        truth.append(set(enumerate(own)))
    return alignment_f1(aligned, truth)
