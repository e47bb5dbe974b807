"""A world so small that every group of completions can be listed: expectations are sums.

A policy is a table of logits [contexts, V], one row for each text so far; completions end with the
token 0 or at `length`. The expectation over groups of n completions of any function of a group is

    E f = sum over (y_1 .. y_n) of  prod_i pi(y_i)  f(y_1 .. y_n)

which is exact, so that the gradient that a policy objective gives on average can be compared with
the one that it should give.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tokenry.core.batch import TokenBatch

END = 0


@dataclass(frozen=True)
class EnumerableWorld:
    """Completions over `vocabulary` tokens of at most `length`; rewards are drawn with `seed`.

    texts: all completions. reward: [N] float64, of each of them.
    """

    vocabulary: int = 3
    length: int = 2
    seed: int = 0
    contexts: dict[tuple[int, ...], int] = field(init=False, repr=False, compare=False)
    texts: tuple[tuple[int, ...], ...] = field(init=False, repr=False, compare=False)
    reward: Tensor = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        going = [
            text
            for size in range(self.length)
            for text in itertools.product(range(1, self.vocabulary), repeat=size)
        ]
        texts = [
            (*text, token)
            for text in going
            for token in range(self.vocabulary)
            if token == END or len(text) + 1 == self.length
        ]
        generator = torch.Generator().manual_seed(self.seed)
        reward = torch.randn(len(texts), generator=generator, dtype=torch.float64)
        for name, value in (
            ("contexts", {text: row for row, text in enumerate(going)}),
            ("texts", tuple(texts)),
            ("reward", reward),
        ):
            object.__setattr__(self, name, value)

    def table(self, seed: int = 0) -> Tensor:
        """A random policy: logits [contexts, V], float64, that require gradients."""
        generator = torch.Generator().manual_seed(seed)
        shape = (len(self.contexts), self.vocabulary)
        return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()

    def logprob(self, table: Tensor, chosen: tuple[int, ...]) -> Tensor:
        """log pi of every token of these texts (numbers in `texts`), [n, 1 + length]; 0 elsewhere.

        The first column is the prompt's one token, so that the shape is a batch's.
        """
        return torch.where(
            self.batch(chosen).target, self._tokens(table.log_softmax(-1), chosen), 0.0
        )

    def entropy(self, table: Tensor, chosen: tuple[int, ...]) -> Tensor:
        """Entropy of the policy where each token was chosen, like `logprob`."""
        logprob = table.log_softmax(-1)
        per_context = -(logprob.exp() * logprob).sum(-1, keepdim=True).expand_as(logprob)
        return torch.where(self.batch(chosen).target, self._tokens(per_context, chosen), 0.0)

    def probability(self, table: Tensor) -> Tensor:
        """pi of every text, [N]; they sum to 1."""
        return self.logprob(table, tuple(range(len(self.texts)))).sum(-1).exp()

    def batch(self, chosen: tuple[int, ...]) -> TokenBatch:
        """A group of completions of one prompt, with their rewards."""
        texts = [self.texts[number] for number in chosen]
        ids = torch.zeros(len(texts), 1 + self.length, dtype=torch.long)
        target = torch.zeros_like(ids, dtype=torch.bool)
        for row, text in enumerate(texts):
            ids[row, 1 : 1 + len(text)] = torch.tensor(text)
            target[row, 1 : 1 + len(text)] = True
        attention = target.clone()
        attention[:, 0] = True
        group = torch.zeros(len(texts), dtype=torch.long)
        return TokenBatch(ids, attention, target, group, {"reward": self.reward[list(chosen)]})

    def groups(self, size: int) -> Iterator[tuple[int, ...]]:
        """All groups of `size` completions, in every order."""
        return itertools.product(range(len(self.texts)), repeat=size)

    def _tokens(self, values: Tensor, chosen: tuple[int, ...]) -> Tensor:
        """values[context, token] along the texts, [n, 1 + length]."""
        rows = []
        for number in chosen:
            text = self.texts[number]
            along = [values[self.contexts[text[:at]], text[at]] for at in range(len(text))]
            rest = [values.new_zeros(())] * (self.length - len(text))
            rows.append(torch.stack([values.new_zeros(()), *along, *rest]))
        return torch.stack(rows)
