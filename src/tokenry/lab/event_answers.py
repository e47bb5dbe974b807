"""Models of the event-questions world, trained with a weighted event unlikelihood, and their
answers."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tokenry.decode.greedy import greedy
from tokenry.lab.toy_encoder_decoder import joined, small_decoder, small_encoder
from tokenry.learn.recipes.sequence_to_sequence.event_posterior import (
    EventLikelihood,
    event_token_weights,
)
from tokenry.learn.recipes.sequence_to_sequence.training import fit
from tokenry.model.encoder_decoder import read
from tokenry.tasks.worlds.event_questions import EOS, START, EventQuestion, EventQuestions, batch

BATCH, RATE, LONGEST = 32, 2e-3, 6


@dataclass(frozen=True)
class Answers:
    """Of each question, [N]: wrong, the share of the emitted events that do not answer; f1."""

    wrong: Tensor
    f1: Tensor


def drawn(world: EventQuestions, counts: tuple[int, ...], seed: int) -> list[list[EventQuestion]]:
    """So many questions for each purpose, drawn from one seed."""
    chance = random.Random(seed)
    return [[world.draw(chance) for _ in range(count)] for count in counts]


def trained_with(
    world: EventQuestions, questions: list[EventQuestion], weight: float, steps: int, seed: int
) -> Any:
    """An encoder-decoder trained by cross-entropy and `weight` times the event unlikelihood."""
    V = world.vocabulary
    source, target, mask = batch(questions)
    token_weights = torch.stack([event_token_weights(V, q.answers, q.others) for q in questions])
    objective = EventLikelihood(weight)
    encoder, decoder = small_encoder(V, source.shape[1], seed), small_decoder(V, 8, seed)
    # One embedding on all sides: a trigger that is attended to is half way to being emitted.
    encoder.set_input_embeddings(decoder.get_input_embeddings())
    model = joined(encoder, decoder)

    def loss(generator: torch.Generator) -> Tensor:
        rows = torch.randint(len(questions), (BATCH,), generator=generator)
        given = torch.cat([torch.full((BATCH, 1), START), target[rows, :-1]], 1)
        logits = read(model, source[rows], given).logits
        return objective(logits, target[rows], mask[rows], token_weights[rows])

    fit(loss, [model], steps=steps, learning_rate=RATE, seed=seed)
    return model


def answers(model: Any, questions: list[EventQuestion]) -> Answers:
    """What the model emits for each question, greedily, and how much of it is right."""
    source, _, _ = batch(questions)
    output = greedy(
        lambda ids: read(model, source, ids).logits[:, -1],
        len(questions),
        start=START,
        end=EOS,
        limit=LONGEST,
    )
    wrong, f1 = [], []
    for row, question in zip(output.tolist(), questions, strict=True):
        emitted = set(row) - {EOS}
        wrong.append(len(emitted & {*question.others}) / max(1, len(emitted)))
        right = len(emitted & {*question.answers})
        f1.append(2 * right / (len(emitted) + len(question.answers)))
    return Answers(torch.tensor(wrong), torch.tensor(f1))
