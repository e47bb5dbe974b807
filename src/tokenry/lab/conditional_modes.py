"""Modes of a small language model: its most probable text, and that of a given length.

A transformer learns the dialects of `tasks.worlds.clauses`. For each dialect its plain mode is
searched; for each length the mode given the length, by beam search guided by a classifier of
remaining lengths, by beam search under a mask, and as the best of the model's own samples.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch

from tokenry.core.batch import TokenBatch
from tokenry.decode.constraints.base import Anything, Constraint
from tokenry.decode.constraints.length import Length
from tokenry.decode.exact_mode import exact_mode
from tokenry.decode.prefix_classifier import LengthAttribute
from tokenry.decode.rollouts import rollouts
from tokenry.decode.samplers.beam import BeamSearch
from tokenry.decode.samplers.request import Request
from tokenry.decode.samplers.texts import text_logprobs
from tokenry.lab.toy_training import fit_toy
from tokenry.learn.recipes.prefix_classifier import remaining_labels, train_prefix_classifier
from tokenry.model.decoding import DecodingState
from tokenry.tasks.worlds.clauses import DIALECTS, END, LIMIT, VOCABULARY, ClauseLanguage


@dataclass(frozen=True)
class DialectModes:
    """One dialect.

    empty, proven: whether the mode of a wide beam search is the empty text, and whether exact
    search proves it. valid: of the modes given a length by guided search, length by length.
    logprob: "guided", "masked", "sampled" -> mean log p over the lengths at which all three
    returned a text; nothing if they never did.
    """

    empty: bool
    proven: bool
    valid: list[bool]
    logprob: dict[str, float]


def clause_model(language: ClauseLanguage, texts: int = 8000, steps: int = 400) -> Any:
    """A transformer that has read so many texts of the language; kept."""
    rows = language.texts(texts, random.Random(language.seed))
    whole = TokenBatch.from_ids(rows, pad_id=END)

    def batches(generator: torch.Generator) -> TokenBatch:
        return whole.select(torch.randint(texts, (64,), generator=generator))

    size, seed = (VOCABULARY, LIMIT + 2), language.seed
    rate: Any = {"steps": steps, "learning_rate": 5e-3, "clip": 1.0}
    return fit_toy(batches, *size, seed, data=(language, texts), **rate)


def search_modes(
    seed: int,
    *,
    lengths: tuple[int, ...] = (9, 11, 15),
    texts: int = 8000,
    steps: int = 400,
    classifier_texts: int = 200,
    classifier_steps: int = 500,
    samples: int = 2400,
    best_of: int = 100,
    wide: int = 20,
    beams: int = 5,
    passes: int = 200,
) -> list[DialectModes]:
    """Train the model of a language and a classifier of its texts, and search in every dialect.

    Args:
        texts: of the model's training. classifier_texts, classifier_steps: of the classifier's,
            texts of each dialect.
        steps: as `texts`.
        samples: drawn in each dialect, of which the first `best_of` of a length count.
        wide: of the plain beam search and of those for a length. passes: of the exact one.
        beams: as `wide`.
    """
    language, ends, most = ClauseLanguage(seed), [END], LIMIT - 1
    model, anything = clause_model(language, texts, steps), Anything(VOCABULARY, ends)
    options: Any = {"max_new_tokens": LIMIT, "ends": ends}
    prompts = [[dialect] for dialect in DIALECTS]
    drawn = rollouts(model, prompts, classifier_texts, seed=seed, **options)
    own = [text for texts in drawn for text in texts]
    classifier = train_prefix_classifier(
        model,
        [prompt for prompt in prompts for _ in range(classifier_texts)],
        own,
        remaining_labels(own, ends, most),
        classes=most + 1,
        steps=classifier_steps,
        seed=seed,
    )
    generator, results = torch.Generator().manual_seed(seed + 1), []
    for dialect in DIALECTS:
        state = DecodingState.start(model, torch.tensor([[dialect]]))

        def request(constraint: Constraint, state: Any = state, dialect: int = dialect) -> Request:
            loaded = (model, None)
            return Request(state, constraint, (dialect,), max_new_tokens=LIMIT, loaded=loaded)

        empty = BeamSearch()(request(anything), wide).ids[0] == []
        exact = exact_mode(request(anything), max_passes=passes)
        proven = exact is not None and exact.proven and not exact.ids
        (drawn,) = rollouts(model, [[dialect]], samples, seed=generator, **options)
        valid, logprob = [], {"guided": [], "masked": [], "sampled": []}
        for length in lengths:
            q = LengthAttribute.of(classifier, model, ends, length)
            guided = BeamSearch(q, beams=beams)(request(anything), 1)
            exactly = Length(length, length, range(VOCABULARY), ends)
            masked = BeamSearch(beams=beams)(request(exactly), 1)
            rows = [text[:-1] for text in drawn if text[-1] == END and len(text) == length + 1]
            sampled = text_logprobs(request(anything), rows[:best_of], [True] * len(rows[:best_of]))
            best = [guided.log_weights[:1], masked.log_weights[:1], sampled]
            if best[0] > -math.inf:
                (text,) = guided.ids
                valid.append(len(text) == length and language.valid(dialect, text))
            if all(len(values) and values.max() > -math.inf for values in best):
                for values, kept in zip(best, logprob.values(), strict=True):
                    kept.append(float(values.max()))
        means = {name: fmean(values) for name, values in logprob.items() if values}
        results.append(DialectModes(empty, proven, valid, means))
    return results
