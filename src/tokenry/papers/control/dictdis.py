"""DictDis: all candidates of a dictionary, of which a translator picks the one that fits.

Two made-up languages in which the sentence's topic selects the sense of a word; two thirds of the
rare words, seen once in training, have two or three senses. The same small encoder-decoder with a
copy gate is trained four times on the same sentences: without a dictionary; with one candidate of
every phrase, drawn at random; with one that is the right one in training, as in lexically
constrained translation, and drawn at random afterwards; and with all candidates. Measured on new
sentences with a rare word: whether its translation is right, and all words'.
"""

import math
import random
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from tokenry.decode.greedy import greedy
from tokenry.lab.toy_encoder_decoder import joined, small_decoder, small_encoder
from tokenry.learn.recipes.sequence_to_sequence.training import fit
from tokenry.measure.constraint_copy import CopyMetrics, constraint_copy_metrics
from tokenry.model.layers.copy_mixture import (
    Annotated,
    DictionaryTranslator,
    annotate_with_candidates,
)
from tokenry.papers.base import Measurement, Outcome, Paper
from tokenry.tasks.worlds.word_senses import EOS, ISEP, PAD, SEP, START, Translation, WordSenses

System = Literal["no dictionary", "one at random", "one, right in training", "all candidates"]
PAIRS, TESTED, STEPS, BATCH, RATE = 3000, 400, 350, 48, 2e-3
FIRST_POSITION = 16


def reproduce(seed: int) -> Outcome:
    """Held if all candidates beat the better single one, and that one none, by two standard errors
    on rare words with several senses, and all words are translated no worse."""
    world = WordSenses(length=5, seed=seed)
    chance = random.Random(seed)
    training = world.training(PAIRS, chance)
    rare = world.rare_words
    tested = [world.sentence(chance, rare[i % len(rare)]) for i in range(TESTED)]
    results = {name: run(world, training, tested, name, seed) for name in get_args(System)}
    measured = []
    for name, result in results.items():
        measured += [
            Measurement(
                f"rare words with several senses right, {name}", result.rare, "share", seed
            ),
            Measurement(f"all words right, {name}", result.all, "share", seed),
            Measurement(f"copy success rate, {name}", result.copy.csr, "share", seed),
        ]
    none, loose, forced, everything = results.values()
    single = max(loose, forced, key=lambda result: result.rare)
    ahead, behind = gain(everything, single), gain(single, none)
    no_worse = everything.all >= max(result.all for result in results.values()) - 0.01
    return Outcome(
        held=ahead > 2 and behind > 2 and no_worse,
        needs="rare words with several senses: all candidates right more often than the better way "
        "to give one, and that more often than without a dictionary, by two standard errors each; "
        "all words right at most 0.01 less often than in any other system",
        measurements=measured,
        reason=f"on {single.polysemous} rare words with several senses, all candidates are "
        f"{ahead:.1f} standard errors ahead of the better single one, and that one {behind:.1f} of "
        "none; a single candidate is the wrong one more often than not",
        figure=lambda figure: draw(figure, results),
    )


class Result:
    """What one system translated right."""

    def __init__(self, world: WordSenses, tested: Sequence[Translation], output: Tensor):
        places = [int(one.rare or 0) for one in tested]
        words = [one.source[place] for one, place in zip(tested, places, strict=True)]
        target = torch.tensor([one.target for one in tested])
        right = output[:, : target.shape[1]] == target
        at_rare = right[torch.arange(len(tested)), torch.tensor(places)]
        degrees = torch.tensor([len(world.candidates(word)) for word in words])
        several = degrees > 1
        self.all = float(right.float().mean())
        self.rare, self.polysemous = float(at_rare[several].float().mean()), int(several.sum())
        self.by_degree = {k: float(at_rare[degrees == k].float().mean()) for k in (1, 2, 3)}
        matches = [[[[c] for c in world.candidates(word)]] for word in words]
        self.copy: CopyMetrics = constraint_copy_metrics(
            matches, output.tolist(), [one.target for one in tested]
        )


def gain(better: Result, worse: Result) -> float:
    """The difference in rare words with several senses, in standard errors."""
    variance = sum(r.rare * (1 - r.rare) / r.polysemous for r in (better, worse))
    return (better.rare - worse.rare) / math.sqrt(variance)


def run(
    world: WordSenses,
    training: list[Translation],
    tested: list[Translation],
    system: System,
    seed: int,
) -> Result:
    """Train and test one system."""
    chance = random.Random(seed + 1)
    encoder = small_encoder(
        max(world.source_size, world.target_size), 48, seed, segments=world.length + 1
    )
    decoder = small_decoder(world.target_size, 16, seed)
    translator = DictionaryTranslator(joined(encoder, decoder))
    sources = [annotated(world, one, system, chance, trained=True) for one in training]
    targets = torch.tensor([[START, *one.target, EOS] for one in training])

    def loss(generator: torch.Generator) -> Tensor:
        drawn = torch.randint(len(training), (BATCH,), generator=generator)
        rows, mask = Annotated.batch([sources[i] for i in drawn.tolist()], PAD)
        target = targets[drawn]
        logprob = translator(rows, mask, target[:, :-1])
        return F.nll_loss(logprob.flatten(0, 1), target[:, 1:].flatten())

    fit(loss, [translator], steps=STEPS, learning_rate=RATE, seed=seed)
    given = [annotated(world, one, system, chance, trained=False) for one in tested]
    rows, mask = Annotated.batch(given, PAD)
    output = greedy(
        lambda ids: translator(rows, mask, ids)[:, -1],
        len(tested),
        start=START,
        end=EOS,
        limit=world.length,
    )
    return Result(world, tested, F.pad(output, (0, world.length - output.shape[1])))


def annotated(
    world: WordSenses, sentence: Translation, system: System, chance: random.Random, trained: bool
) -> Annotated:
    """A source with what a system is given of the dictionary: rare and polysemous words are in
    it."""
    phrases = []
    for word in sentence.source:
        candidates = world.candidates(word)
        if len(candidates) < 2 and word not in world.rare_words:
            continue
        if system == "one, right in training" and trained:
            candidates = [world.translated(word, sentence.topic)]
        elif system != "all candidates":
            candidates = [chance.choice(candidates)]
        phrases.append([[candidate] for candidate in candidates])
    return annotate_with_candidates(
        sentence.source,
        [] if system == "no dictionary" else phrases,
        sep=SEP,
        isep=ISEP,
        eos=EOS,
        first_position=FIRST_POSITION,
    )


def draw(figure: Any, results: dict[str, Result]) -> None:
    """Accuracy on rare words by the number of their senses."""
    axes = figure.subplots()
    for rank, (name, result) in enumerate(results.items()):
        places = [degree + 0.2 * (rank - 1.5) for degree in result.by_degree]
        axes.bar(places, result.by_degree.values(), 0.2, label=name)
    axes.set_xticks([1, 2, 3])
    axes.set_xlabel("senses of a rare word")
    axes.set_ylabel("share translated right")
    axes.legend()


PAPER = Paper(
    number=31,
    key="dictdis",
    title="DICTDIS: Dictionary Constrained Disambiguation for Improved NMT",
    arxiv="2210.06996",
    role="module",
    family="control",
    claim="A translator that is given all candidates of a dictionary and may copy them picks the "
    "sense that fits, where one given candidate is often the wrong one.",
    reproduce=reproduce,
    threads=1,
)
