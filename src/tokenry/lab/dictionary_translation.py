"""Translators of the word-senses world that are told more or less of a dictionary.

The same small encoder-decoder with a copy gate, trained on the same sentences; what stands behind a
source differs: no dictionary; one candidate of every phrase, drawn at random; one that is the right
one in training, as in lexically constrained translation, and drawn at random afterwards; all
candidates. Rare words and those of several senses are in the dictionary.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from tokenry.decode.greedy import greedy
from tokenry.lab.toy_encoder_decoder import joined, small_decoder, small_encoder
from tokenry.learn.recipes.sequence_to_sequence.training import fit
from tokenry.measure.constraint_copy import constraint_copy_metrics
from tokenry.model.layers.copy_mixture import (
    Annotated,
    DictionaryTranslator,
    annotate_with_candidates,
)
from tokenry.tasks.worlds.word_senses import EOS, ISEP, PAD, SEP, START, Translation, WordSenses

Told = Literal["no dictionary", "one at random", "one, right in training", "all candidates"]
BATCH, RATE = 48, 2e-3
FIRST_POSITION = 16  # of a block of candidates


@dataclass(frozen=True)
class Sentences:
    """A world's sentences: those of the training, in which each rare word stands once, and new ones
    with a rare word each."""

    world: WordSenses
    training: list[Translation]
    tested: list[Translation]

    @classmethod
    def drawn(cls, training: int, tested: int, seed: int) -> Sentences:
        world, chance = WordSenses(length=5, seed=seed), random.Random(seed)
        pairs, rare = world.training(training, chance), world.rare_words
        return cls(
            world, pairs, [world.sentence(chance, rare[i % len(rare)]) for i in range(tested)]
        )


def annotated(
    world: WordSenses, sentence: Translation, told: Told, chance: random.Random, training: bool
) -> Annotated:
    """A source, and behind it what is told of the dictionary."""
    phrases = []
    for word in sentence.source:
        candidates = world.candidates(word)
        if told == "no dictionary" or (len(candidates) < 2 and word not in world.rare_words):
            continue
        if told == "one, right in training" and training:
            candidates = [world.translated(word, sentence.topic)]
        elif told != "all candidates":
            candidates = [chance.choice(candidates)]
        phrases.append([[candidate] for candidate in candidates])
    marks = {"sep": SEP, "isep": ISEP, "eos": EOS, "first_position": FIRST_POSITION}
    return annotate_with_candidates(sentence.source, phrases, **marks)


def translations(sentences: Sentences, told: Told, steps: int, seed: int) -> Tensor:
    """Train a translator; its translations of the tested sentences, [N, length]."""
    world, chance = sentences.world, random.Random(seed + 1)
    size = max(world.source_size, world.target_size)
    encoder = small_encoder(size, 48, seed, segments=world.length + 1)
    translator = DictionaryTranslator(joined(encoder, small_decoder(world.target_size, 16, seed)))
    sources = [annotated(world, one, told, chance, training=True) for one in sentences.training]
    targets = torch.tensor([[START, *one.target, EOS] for one in sentences.training])

    def loss(generator: torch.Generator) -> Tensor:
        drawn = torch.randint(len(sources), (BATCH,), generator=generator)
        rows, mask = Annotated.batch([sources[i] for i in drawn.tolist()], PAD)
        logprob = translator(rows, mask, targets[drawn, :-1])
        return F.nll_loss(logprob.flatten(0, 1), targets[drawn, 1:].flatten())

    fit(loss, [translator], steps=steps, learning_rate=RATE, seed=seed)
    given = [annotated(world, one, told, chance, training=False) for one in sentences.tested]
    rows, mask = Annotated.batch(given, PAD)
    output = greedy(
        lambda ids: translator(rows, mask, ids)[:, -1],
        len(given),
        start=START,
        end=EOS,
        limit=world.length,
    )
    return F.pad(output, (0, world.length - output.shape[1]))


def judged(sentences: Sentences, output: Tensor) -> tuple[dict[str, float], dict[str, float]]:
    """What of the translations is right: measures in [0, 1], and of rare words by their senses."""
    world, tested = sentences.world, sentences.tested
    right = output == torch.tensor([one.target for one in tested])
    cursor = torch.tensor([int(one.rare or 0) for one in tested])
    at_rare = right[torch.arange(len(tested)), cursor]
    words = [one.source[int(one.rare or 0)] for one in tested]
    senses = torch.tensor([len(world.candidates(word)) for word in words])
    matches = [[[[candidate] for candidate in world.candidates(word)]] for word in words]
    copied = constraint_copy_metrics(matches, output.tolist(), [one.target for one in tested])
    measures = {
        "rare words with several senses right": _mean(at_rare[senses > 1]),
        "all words right": _mean(right),
        "copy success rate": copied.csr,
    }
    by_senses: Sequence[int] = sorted(set(senses.tolist()))
    return measures, {str(count): _mean(at_rare[senses == count]) for count in by_senses}


def _mean(flags: Tensor) -> float:
    return float(flags.double().mean())
