"""A sparse grammar: it is known of each sentence whether it is wrong, and which token is."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from tokenry.tasks.worlds.preference import MarkovPolicy, Pairs, PreferenceWorld


@dataclass(frozen=True)
class SparseGrammar(PreferenceWorld):
    """Each token allows `successors` tokens after it. The language breaks that rule at `noise`."""

    successors: int = 4
    noise: float = 0.1

    @cached_property
    def allowed(self) -> Tensor:
        """What may follow each token, [V + 1, V] bool; the last row is for the first token."""
        generator = torch.Generator().manual_seed(self.seed)
        ranks = torch.rand(self.vocabulary + 1, self.vocabulary, generator=generator).argsort(-1)
        return ranks < self.successors

    @cached_property
    def grammatical(self) -> MarkovPolicy:
        """The language without noise: each allowed token with equal probability."""
        chain = self.allowed.double() / self.successors
        return MarkovPolicy(chain.log().expand(self.length, -1, -1))

    @cached_property
    def language(self) -> MarkovPolicy:  # type: ignore[override]
        chain = (1 - self.noise) * self.grammatical.logprob.exp() + self.noise / self.vocabulary
        return MarkovPolicy(chain.log())

    def corrupted_pairs(self, count: int, generator: torch.Generator) -> tuple[Pairs, Tensor]:
        """Grammatical sentences, chosen over what `corrupt` makes of them; and where they differ
        first, [count]."""
        chosen = self.grammatical.sample(count, generator)
        rejected, position = self.corrupt(chosen, generator)
        return Pairs(chosen, rejected), position

    def corrupt(self, sequences: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """One token of each sequence replaced by one that may not stand there, and what follows
        by what may follow it, [N, length]; and the position of that token, [N]."""
        position = torch.randint(self.length, (len(sequences),), generator=generator)
        corrupted = sequences.clone()
        for step in range(self.length):
            before = corrupted[:, step - 1] if step else torch.full_like(position, self.start)
            fitting = self.allowed[before]
            weight = torch.where((position == step)[:, None], ~fitting, fitting).double()
            token = torch.multinomial(weight, 1, generator=generator)[:, 0]
            corrupted[:, step] = torch.where(step >= position, token, corrupted[:, step])
        return corrupted, position
