"""A world so small that every group of completions can be listed: expectations are sums.

A policy is a table of logits [contexts, V], one row for each text so far; completions end with the
token 0 or at `length`. The expectation over groups of n completions of any function of a group is

    E f = sum over (y_1 .. y_n) of  prod_i pi(y_i)  f(y_1 .. y_n)

which is exact, so that the gradient that a policy objective gives on average can be compared with
the one that it should give.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from tokenry.core.batch import TokenBatch
from tokenry.core.linear_head import LinearHead
from tokenry.core.scores import Scores

END = 0


@dataclass(frozen=True)
class EnumerableWorld:
    """Completions over `vocabulary` tokens of at most `length`; rewards are drawn with `seed`.

    A text is named by its number in `texts`; rows of a table by `contexts`.
    """

    vocabulary: int = 3
    length: int = 2
    seed: int = 0

    @cached_property
    def contexts(self) -> dict[tuple[int, ...], int]:
        """Texts that go on, with their rows in a table."""
        sizes = range(self.length)
        going = (itertools.product(range(1, self.vocabulary), repeat=size) for size in sizes)
        return {text: row for row, text in enumerate(itertools.chain(*going))}

    @cached_property
    def texts(self) -> tuple[tuple[int, ...], ...]:
        """All completions."""
        return tuple(
            (*text, token)
            for text in self.contexts
            for token in range(self.vocabulary)
            if token == END or len(text) + 1 == self.length
        )

    @cached_property
    def reward(self) -> Tensor:
        """[N] float64, of each text."""
        generator = torch.Generator().manual_seed(self.seed)
        return torch.randn(len(self.texts), generator=generator, dtype=torch.float64)

    @cached_property
    def _along(self) -> tuple[Tensor, Tensor, Tensor]:
        """The texts' tokens, the rows that they were chosen from, and which are there,
        [N, 1 + length]; the first column is the prompt's one token, so that the shape is a
        batch's."""
        ids = torch.zeros(len(self.texts), 1 + self.length, dtype=torch.long)
        rows, target = ids.clone(), torch.zeros_like(ids, dtype=torch.bool)
        for number, text in enumerate(self.texts):
            ids[number, 1 : 1 + len(text)] = torch.tensor(text)
            own = [self.contexts[text[:at]] for at in range(len(text))]
            rows[number, 1 : 1 + len(text)] = torch.tensor(own)
            target[number, 1 : 1 + len(text)] = True
        return ids, rows, target

    def table(self, seed: int = 0) -> Tensor:
        """A random policy: logits [contexts, V], float64, that require gradients."""
        generator = torch.Generator().manual_seed(seed)
        shape = (len(self.contexts), self.vocabulary)
        return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()

    def logprob(self, table: Tensor, chosen: Sequence[int]) -> Tensor:
        """log pi of every token of these texts, [n, 1 + length]; 0 elsewhere."""
        ids, rows, target = (each[list(chosen)] for each in self._along)
        return torch.where(target, table.log_softmax(-1)[rows, ids], 0.0)

    def probability(self, table: Tensor) -> Tensor:
        """pi of every text, [N]; they sum to 1."""
        return self.logprob(table, range(len(self.texts))).sum(-1).exp()

    def scores(self, table: Tensor, chosen: Sequence[int]) -> Scores:
        """What a model with these logits says of texts: its states are the table's rows, [V] each,
        and its head is the identity."""
        ids, rows, target = (each[list(chosen)] for each in self._along)
        states = torch.where(target[..., None], table[rows], 0.0)
        spread = torch.special.entr(states.softmax(-1)).sum(-1)
        return Scores(
            ids,
            target,
            logprob=self.logprob(table, chosen),
            entropy=torch.where(target, spread, 0.0),
            hidden=states,
            head=LinearHead(torch.eye(self.vocabulary, dtype=table.dtype)),
        )

    def batch(self, chosen: Sequence[int]) -> TokenBatch:
        """A group of completions of one prompt, with their rewards."""
        ids, _, target = (each[list(chosen)] for each in self._along)
        attention = target.clone()
        attention[:, 0] = True
        group = torch.zeros(len(ids), dtype=torch.long)
        return TokenBatch(ids, attention, target, group, {"reward": self.reward[list(chosen)]})

    def groups(self, size: int) -> Iterator[tuple[int, ...]]:
        """All groups of `size` completions, in every order."""
        return itertools.product(range(len(self.texts)), repeat=size)
