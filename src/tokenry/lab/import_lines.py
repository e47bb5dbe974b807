"""A character model that imports modules, some of which do not exist, and rounds of unlearning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch

from tokenry.core.batch import TokenBatch
from tokenry.lab.toy_training import Batches, fit_toy, sample_on, train_copy
from tokenry.learn.preference.unlearning import discover
from tokenry.learn.reference import FrozenModel
from tokenry.model.score import score
from tokenry.tasks.worlds.import_lines import (
    CHARACTERS,
    END,
    LONGEST,
    TOPIC,
    ImportLines,
    encode,
    mutate,
    prompt,
)
from tokenry.text.names import hallucination_rate, tri_mask


class NamingPoint(NamedTuple):
    """Shares of generated names that do not exist, on held-out and on mutated prompts; perplexity
    of everything in held-out lines but the names; KL(reference || model) per token, nats."""

    rate: float
    mutated: float
    perplexity: float
    name_kl: float
    other_kl: float


@dataclass(frozen=True)
class NamingBench:
    """A model fitted to the corpus, and topics to collect its texts on (`pool`) and to measure it.

    lines: of the corpus. fit_steps: of the model. steps: of an unlearning, over all its rounds.
    """

    corpus: ImportLines
    lines: int = 10_000
    fit_steps: int = 250
    pool: int = 400
    held_out: int = 400
    steps: int = 180
    batch_size: int = 32
    learning_rate: float = 5e-4

    @cached_property
    def model(self) -> Any:
        lines = self.corpus.lines(self.corpus.topics(self.lines, 0))

        def batches(draw: torch.Generator) -> TokenBatch:
            return batch_of([lines[n] for n in torch.randint(len(lines), (48,), generator=draw)])

        return fit_toy(
            batches, len(CHARACTERS), 24, self.corpus.seed, data=(self.corpus, self.lines),
            steps=self.fit_steps, clip=1.0,
        )  # fmt: skip

    @cached_property
    def tests(self) -> tuple[list[str], list[str]]:
        """Held-out topics, and mutations of those on which the model fails."""
        topics, seed = self.corpus.topics(self.held_out, 1), self.corpus.seed
        texts = respond(self.model, topics, seed)
        failing = [t for t, x in zip(topics, texts, strict=True) if self.corpus.fails(x)]
        return topics, mutate(failing * 4, seed + 1)

    def unlearned(self, objective: Any, rounds: int = 1) -> Any:
        """The model after `rounds` of discovery, each of which collects the current model's texts
        (from the second on, on the prompts that failed, mutated) and trains on all so far."""
        policy, examples, seed = self.model, [], self.corpus.seed
        pool = prompts = self.corpus.topics(self.pool, 2)
        for number in range(rounds):
            new, changed, _ = discover(
                lambda topics, p=policy, n=number: respond(p, topics, seed + 10 + n),
                prompts,
                self.corpus.registry,
                lambda failed, n=number: mutate(failed * 3, seed + 20 + n),
            )
            examples += new
            prompts = (changed + pool)[: len(pool)]
            policy, _ = train_copy(
                self.balanced(examples), objective, policy, reference=self.model,
                steps=self.steps // rounds, learning_rate=self.learning_rate, seed=seed + number,
            )  # fmt: skip
        return policy

    def balanced(self, examples: Sequence[tuple[str, str, Any]]) -> Batches:
        """Batches of which half name something that does not exist, with the column "tri"."""
        marked: dict[bool, list[tuple[str, list[int]]]] = {True: [], False: []}
        for _, text, spans in examples:
            offsets = [(place, place + 1) for place in range(len(text))]
            registry = self.corpus.registry
            mask = tri_mask(offsets, spans, forget="first_divergent", registry=registry)
            marked[2 in mask].append((text, mask))

        def batches(draw: torch.Generator) -> TokenBatch:
            rows = []
            for pool in marked.values():
                picked = torch.randint(max(len(pool), 1), (self.batch_size // 2,), generator=draw)
                rows += [pool[place] for place in picked.tolist()] if pool else []
            batch = batch_of([text for text, _ in rows])
            tri = torch.zeros(batch.shape)
            for row, (_, mask) in enumerate(rows):
                tri[row, : len(mask)] = torch.tensor(mask).float()
            return batch.with_columns(tri=tri)

        return batches

    def measure(self, policy: Any) -> NamingPoint:
        seed = self.corpus.seed
        rates = [
            hallucination_rate(respond(policy, topics, seed + 2), self.corpus.registry)[0]
            for topics in self.tests
        ]
        batch = batch_of(self.corpus.lines(self.tests[0]))
        frozen = FrozenModel(self.model)(batch, ("hidden",))
        scores = score(policy, batch, needs=("logprob", "divergence"), reference=frozen)
        names = batch.target & (torch.arange(batch.shape[1]) >= len(prompt("_" * TOPIC)))
        other = batch.target & ~names
        logprob, divergence = scores.need("logprob"), scores.need("divergence")
        return NamingPoint(
            rates[0],
            rates[1],
            perplexity=float((-logprob[other].mean()).exp()),
            name_kl=float(divergence[names].mean()),
            other_kl=float(divergence[other].mean()),
        )


def respond(model: Any, topics: Sequence[str], seed: int) -> list[str]:
    """A sampled line for each topic, prompt included."""
    prompts = torch.tensor([encode(prompt(topic)) for topic in topics])
    draw = torch.Generator().manual_seed(seed)
    drawn = sample_on(model, prompts, LONGEST + 1, draw, end=END)
    texts = ["".join(CHARACTERS[i] for i in row) for row in drawn.tolist()]
    return [prompt(t) + x.partition("\n")[0] + "\n" for t, x in zip(topics, texts, strict=True)]


def batch_of(texts: Sequence[str]) -> TokenBatch:
    """Lines as rows; every character but the first is a target."""
    return TokenBatch.from_ids([encode(text) for text in texts], group=[*range(len(texts))])
