"""A toy preference world in which everything that preference learning estimates is known exactly.

Sequences of `length` tokens come from a random Markov chain (the language); a hidden table gives
each token a reward, mostly 0 (a few +1, a few -1), and a sequence the sum r(y) of its tokens'
rewards. Pairs are labelled by Bradley-Terry: P(a preferred to b) = sigmoid(r(a) - r(b)).

Because the reward is additive and the language Markov, the maximiser of E[r] - beta KL(pi || chain)
is itself a Markov chain that changes with the position,

    pi*_t(v | s) = chain(v | s) exp(r_v / beta) Z_t+1(v) / Z_t(s),
    Z_t(s) = sum_v chain(v | s) exp(r_v / beta) Z_t+1(v),   Z after the last token = 1

so the best reachable reward at every KL is known, without sampling.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from tokenry.core.batch import TokenBatch
from tokenry.core.errors import InputError


@dataclass(frozen=True)
class Pairs:
    """Labelled pairs of sequences, [N, length] each."""

    chosen: Tensor
    rejected: Tensor

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, index: slice) -> Pairs:
        return Pairs(self.chosen[index], self.rejected[index])

    def __add__(self, other: Pairs) -> Pairs:
        return Pairs(*(torch.cat(rows) for rows in zip(self, other, strict=True)))

    def __iter__(self) -> Iterator[Tensor]:
        return iter((self.chosen, self.rejected))


@dataclass(frozen=True)
class MarkovPolicy:
    """A chain that may change with the position.

    logprob: [length, V + 1, V], log p_t(v | previous token); previous token V is the start.
    """

    logprob: Tensor

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """[count, length] sequences."""
        length, _, vocabulary = self.logprob.shape
        state = torch.full((count,), vocabulary)
        tokens = []
        for step in range(length):
            state = torch.multinomial(self.logprob[step, state].exp(), 1, generator=generator)[:, 0]
            tokens.append(state)
        return torch.stack(tokens, 1)

    def greedy(self, start: Tensor, position: int) -> Tensor:
        """The likeliest token at each step, from `position` on behind tokens [N], [N, rest]."""
        return self._follow(start, {t: self.logprob[t].argmax(-1) for t in self._steps(position)})

    def likeliest(self, start: Tensor, position: int) -> Tensor:
        """The likeliest completion from `position` on behind tokens [N], [N, rest] (Viterbi)."""
        value, choices = self.logprob.new_zeros(self.logprob.shape[-1]), {}
        for step in reversed(self._steps(position)):
            best, choices[step] = (self.logprob[step] + value).max(-1)  # of each previous token
            value = best[:-1]
        return self._follow(start, choices)

    def _steps(self, position: int) -> range:
        return range(position, len(self.logprob))

    def _follow(self, token: Tensor, choices: dict[int, Tensor]) -> Tensor:
        """The path of the token chosen at each step for each token before it."""
        return torch.stack([token := choices[step][token] for step in sorted(choices)], 1)

    def sequence_logprob(self, sequences: Tensor) -> Tensor:
        """log p(y), [N]."""
        start = sequences.new_full((len(sequences), 1), self.logprob.shape[-1])
        previous = torch.cat([start, sequences[:, :-1]], 1)
        steps = torch.arange(sequences.shape[1])
        return self.logprob[steps, previous, sequences].sum(1)

    def visits(self) -> Tensor:
        """Probability of each state before each token, [length, V + 1]."""
        length, states, _ = self.logprob.shape
        visits = torch.zeros(length, states, dtype=self.logprob.dtype)
        visits[0, -1] = 1.0
        for step in range(length - 1):
            visits[step + 1, :-1] = visits[step] @ self.logprob[step].exp()
        return visits

    def containing(self, token: int) -> float:
        """Probability that a sequence contains the token, exact."""
        without = self.logprob.exp()
        without[..., token] = 0.0
        states = torch.zeros(without.shape[1], dtype=without.dtype)
        states[-1] = 1.0
        for step in without:
            states = torch.nn.functional.pad(states @ step, (0, 1))
        return 1.0 - float(states.sum())

    def with_share(self, token: int, share: float) -> MarkovPolicy:
        """The chain with one number added to the token's logit in every step, so that this share of
        sequences, in (0, 1), contains it. By bisection of that number in [-12, 12]."""
        low, high = -12.0, 12.0
        raised = self
        for _ in range(40):
            middle = (low + high) / 2
            boost = torch.zeros(self.logprob.shape[-1], dtype=self.logprob.dtype)
            boost[token] = middle
            raised = MarkovPolicy((self.logprob + boost).log_softmax(-1))
            low, high = (middle, high) if raised.containing(token) < share else (low, middle)
        return raised

    def kl(self, other: MarkovPolicy) -> float:
        """KL(self || other) of whole sequences, nats, exact."""
        per_state = (self.logprob.exp() * (self.logprob - other.logprob)).sum(-1)
        return float((self.visits() * per_state).sum())

    def expected(self, token_reward: Tensor) -> float:
        """Expected sum of token rewards, exact."""
        per_state = self.logprob.exp() @ token_reward.to(self.logprob.dtype)
        return float((self.visits() * per_state).sum())

    def entropy(self) -> float:
        """Entropy of a sequence, nats, exact."""
        per_state = -(self.logprob.exp() * self.logprob).sum(-1)
        return float((self.visits() * per_state).sum())


@dataclass(frozen=True)
class PreferenceWorld:
    """A seeded world. Token ids are 0 .. vocabulary - 1; `start` is one more id, the prompt.

    vocabulary: V. length: tokens of a sequence. liked, disliked: how many tokens have reward +1
    and -1. spread: standard deviation of the chain's logits; larger means more predictable.
    """

    seed: int = 0
    vocabulary: int = 24
    length: int = 10
    liked: int = 3
    disliked: int = 3
    spread: float = 1.2

    def __post_init__(self) -> None:
        if self.liked + self.disliked > self.vocabulary:
            raise InputError(
                f"{self.liked} liked and {self.disliked} disliked tokens do not fit in a "
                f"vocabulary of {self.vocabulary}"
            )

    @property
    def start(self) -> int:
        return self.vocabulary

    @property
    def prompt(self) -> Tensor:
        """The one prompt there is, [1, 1]."""
        return torch.tensor([[self.start]])

    @cached_property
    def _tables(self) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(self.seed)
        shape = (self.vocabulary + 1, self.vocabulary)
        logits = self.spread * torch.randn(shape, generator=generator, dtype=torch.float64)
        reward = torch.zeros(self.vocabulary, dtype=torch.float64)
        order = torch.randperm(self.vocabulary, generator=generator)
        reward[order[: self.liked]] = 1.0
        reward[order[self.liked : self.liked + self.disliked]] = -1.0
        return logits.log_softmax(-1), reward

    @property
    def token_reward(self) -> Tensor:
        """The hidden reward of each token, [V]."""
        return self._tables[1]

    @cached_property
    def language(self) -> MarkovPolicy:
        """The chain that sequences come from."""
        return MarkovPolicy(self._tables[0].expand(self.length, -1, -1))

    def reward(self, sequences: Tensor) -> Tensor:
        """r(y), [N]."""
        return self.token_reward[sequences].sum(-1)

    def batch_reward(self, batch: TokenBatch) -> Tensor:
        """r(y) of a batch's rows, [B] float32; the start token, drawn again, earns 0."""
        table = torch.cat([self.token_reward, torch.zeros(1, dtype=torch.float64)]).float()
        return (table[batch.ids] * batch.target).sum(-1)

    def optimum(self, beta: float) -> MarkovPolicy:
        """argmax of E[r] - beta KL(pi || language): the closed form that RLHF and DPO aim at."""
        base, tilt = self._tables[0], self.token_reward / beta
        log_z = torch.zeros(self.vocabulary, dtype=base.dtype)
        steps = []
        for _ in range(self.length):
            joint = base + tilt + log_z  # [V + 1, V]
            total = joint.logsumexp(-1)
            steps.append(joint - total[:, None])
            log_z = total[:-1]
        return MarkovPolicy(torch.stack(steps[::-1]))

    def foresight(self, sequences: Tensor) -> Tensor:
        """P(the next token carries reward | the one before it), of every token, [N, length]."""
        chance = self.language.logprob[0].exp()[:, self.token_reward != 0].sum(-1)
        start = sequences.new_full((len(sequences), 1), self.start)
        return chance[torch.cat([start, sequences[:, :-1]], 1)]

    def optimum_at(self, kl: float) -> MarkovPolicy:
        """The optimum at this KL from the language, in nats: no policy has more reward there.

        By bisection on beta in [0.01, 1000].
        """
        low, high = 1e-2, 1e3
        for _ in range(60):
            middle = (low * high) ** 0.5
            if self.optimum(middle).kl(self.language) > kl:
                low = middle
            else:
                high = middle
        return self.optimum(high)

    def pairs(
        self, count: int, generator: torch.Generator, sequences: Tensor | None = None
    ) -> Pairs:
        """Bradley-Terry pairs of sequences from the language, or of the 2 * count given ones.

        Pairs of two equal sequences say nothing and are drawn again (or left out when given).
        """
        drawn = self.language.sample(2 * count, generator) if sequences is None else sequences
        first, second = drawn[:count], drawn[count : 2 * count]
        differ = (first != second).any(-1)
        first, second = first[differ], second[differ]
        prefer_first = logsigmoid(self.reward(first) - self.reward(second)).exp()
        uniform = torch.rand(len(first), generator=generator, dtype=prefer_first.dtype)
        swap = (uniform > prefer_first)[:, None]
        pairs = Pairs(torch.where(swap, second, first), torch.where(swap, first, second))
        if sequences is None and len(pairs) < count:
            pairs += self.pairs(count - len(pairs), generator)
        return pairs

    def batch(self, pairs: Pairs, index: Tensor | None = None) -> TokenBatch:
        """A preference batch [2B, 1 + length]: chosen rows, then rejected; `start` in front."""
        chosen, rejected = pairs if index is None else (rows[index] for rows in pairs)
        batch = self.sequences_batch(torch.cat([chosen, rejected]))
        return TokenBatch(
            batch.ids, batch.attention, batch.target, torch.arange(len(chosen)).repeat(2)
        )

    def sequences_batch(self, sequences: Tensor) -> TokenBatch:
        """Sequences as rows behind the start token; every token but the start is a target."""
        start = sequences.new_full((len(sequences), 1), self.start)
        ids = torch.cat([start, sequences], 1)
        attention = torch.ones_like(ids, dtype=torch.bool)
        target = attention.clone()
        target[:, 0] = False
        return TokenBatch(ids, attention, target)


@dataclass(frozen=True)
class Taste(PreferenceWorld):
    """A world's language with another table of rewards, [V]; pairs are labelled by it."""

    table: tuple[float, ...] = ()

    @property
    def token_reward(self) -> Tensor:
        return torch.tensor(self.table, dtype=torch.float64)


def opposed(world: PreferenceWorld) -> Taste:
    """A taste that conflicts with the world's: two liked and two disliked tokens change sides, the
    others of both are neutral, one neutral token becomes liked and one disliked."""
    own = world.token_reward
    liked, disliked, neutral = ((own == value).nonzero()[:, 0] for value in (1, -1, 0))
    other = torch.zeros_like(own)
    other[torch.cat([disliked[:2], neutral[:1]])] = 1.0
    other[torch.cat([liked[:2], neutral[1:2]])] = -1.0
    shape = {field.name: getattr(world, field.name) for field in fields(world)}
    return Taste(**shape, table=tuple(other.tolist()))
