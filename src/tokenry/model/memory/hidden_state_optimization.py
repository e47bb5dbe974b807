"""Hidden-state optimisation: gradient steps on the cache, with the weights frozen.

A text is read in segments. With the keys and values H of the past, for each segment x:

    1. score:    L = - sum_t log p(x_t | x_<t, H), recorded: no token is scored by states that have
                 already learned from it
    2. gradient: G = dL / dH, H with the segment's own new states
    3. update:   M <- b1 M + (1 - b1) G,   N <- b2 N + (1 - b2) G^2
                 H <- H - lr (M / (1 - b1^k)) / (sqrt(N / (1 - b2^k)) + eps)

Adam's moments belong to the states: they move with them when the memory shifts, and a state's bias
is corrected by its own age k. The later text is read from the states so improved. It is dynamic
evaluation on activations; nothing is trained, and another text starts from nothing.

    reading = HiddenStateOptimizer(model)(ids)         # reading.nll [B, T]
    optimizer.classify(demonstrations, query, labels)  # few-shot: the demonstrations' labels teach

Source: Making the Most of your Model: Methods for Finetuning and Applying Pretrained Transformers
(arXiv 2408.16241), and Reconsidering the Past: Optimizing Hidden States in Language Models
(arXiv 2112.08653). The bias correction by the age of a state is reconstructed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tokenry.core.checks import in_range, within
from tokenry.core.errors import InputError, ShapeError
from tokenry.model import compat


@dataclass(frozen=True)
class HiddenStateOptimizer:
    """Reads texts with a causal model of transformers whose cache learns on the way.

    Args:
        lr: step size, in units of the states (0 evaluates plainly).
        betas: Adam's.
        eps: Adam's.
        segment: tokens read between two updates.
        memory: positions kept in the cache, the latest; None: all.
    """

    model: Any
    lr: float = 3e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    segment: int = 25
    memory: int | None = None

    def __post_init__(self) -> None:
        within(self, "[1, inf)", "segment", integer=True)
        within(self, "[1, inf)", "memory", integer=True, optional=True)
        within(self, "[0, inf)", "lr")
        within(self, "(0, inf)", "eps")
        for beta in self.betas:
            in_range("HiddenStateOptimizer.betas", beta, "[0, 1)")

    def __call__(
        self, ids: Tensor, attention: Tensor | None = None, target: Tensor | None = None
    ) -> Reading:
        """Read `ids` [B, T], padded on either side where `attention` [B, T] is False.

        target: [B, T], the tokens whose loss teaches the states (default: all). All are scored.
        """
        if ids.ndim != 2 or ids.shape[1] < 1:
            raise ShapeError(f"ids must be [B, T] with T >= 1, got {list(ids.shape)}")
        attention = torch.ones_like(ids) if attention is None else attention
        if attention.shape != ids.shape or (target is not None and target.shape != ids.shape):
            raise ShapeError(f"attention and target must be {list(ids.shape)} like ids")
        reading = Reading.empty(ids.shape[0], ids.device)
        cuts = range(0, ids.shape[1], self.segment)
        return self.read(reading, ids, attention.bool(), target, cuts)

    def read(
        self,
        reading: Reading,
        ids: Tensor,
        attention: Tensor,
        target: Tensor | None,
        cuts: Sequence[int],
    ) -> Reading:
        """Go on from `reading` with ids [B, T], in segments that begin at `cuts`; `reading` is
        left as it was. The first token is scored only where something was read before."""
        reading = reading.copy()
        for begin, end in zip(cuts, [*cuts[1:], ids.shape[1]], strict=True):
            part = slice(begin, end)
            teaches = None if target is None else target[:, part]
            self._segment(reading, ids[:, part], attention[:, part], teaches)
        return reading

    def _segment(self, reading: Reading, ids: Tensor, real: Tensor, target: Tensor | None) -> None:
        learns = self.lr > 0
        cache = compat.plain_cache(self.model)
        for number, (keys, values) in enumerate(reading.states):
            # detached copies in the model's dtype: the float32 ones are the states proper
            cast = (tensor.to(self.model.dtype, copy=True) for tensor in (keys, values))
            cache.update(*(tensor.requires_grad_(learns) for tensor in cast), number)
        attention = torch.cat([reading.attention, real], dim=1)
        positions = reading.read_so_far[:, None] + real.cumsum(1) - 1
        with torch.set_grad_enabled(learns):
            embedded = self.model.get_input_embeddings()(ids).detach().requires_grad_(learns)
            output = self.model(
                inputs_embeds=embedded,
                attention_mask=attention.long(),
                position_ids=positions.clamp_min(0),
                past_key_values=cache,
                use_cache=True,
            )
            logprobs = output.logits.float().log_softmax(-1)
            first = reading.next_logprobs
            first = torch.zeros_like(logprobs[:, :1]) if first is None else first
            foreseen = torch.cat([first, logprobs], dim=1)  # [B, t + 1, V], by the token before
            # a row's first token has nothing before it
            follows = real & (reading.read_so_far[:, None] + real.cumsum(1) > 1)
            nll = -foreseen[:, :-1].gather(-1, ids[..., None])[..., 0] * follows
            loss = (nll if target is None else nll * target).sum()
        if learns:
            states = [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]
            if loss.requires_grad:
                gradients = torch.autograd.grad(loss, states, allow_unused=True)
            else:  # one token, foreseen by states that are past
                gradients = [None] * len(states)
            self._update(reading, cache, gradients)
        else:
            reading.states = [(layer.keys.float(), layer.values.float()) for layer in cache.layers]
        reading.nll = torch.cat([reading.nll, nll.detach()], dim=1)
        reading.attention = torch.cat([reading.attention, real], dim=1)
        reading.read_so_far = reading.read_so_far + real.sum(1)
        # what foresees a row's next token stands behind its last real one
        last = (real * torch.arange(1, ids.shape[1] + 1, device=ids.device)).amax(1)
        rows = torch.arange(len(ids), device=ids.device)
        reading.next_logprobs = foreseen.detach()[rows, last][:, None]
        if self.memory is not None:
            reading.forget(self.memory)

    @torch.no_grad()
    def _update(self, reading: Reading, cache: Any, gradients: Sequence[Tensor | None]) -> None:
        """Step 3. New states have moments of zero and age 0."""
        b1, b2 = self.betas
        total = cache.layers[0].keys.shape[2]
        age = torch.nn.functional.pad(reading.age, (0, total - len(reading.age))) + 1
        correct1 = (1 - b1 ** age.double()).float()[:, None]  # [S, 1]
        correct2 = (1 - b2 ** age.double()).float()[:, None]
        states, moments = [], []
        for number, layer in enumerate(cache.layers):
            pair, pair_moments = [], []
            for which, kept in enumerate((layer.keys, layer.values)):
                old = reading.states[number][which] if reading.states else kept[:, :, :0].float()
                fresh = kept.detach()[:, :, old.shape[2] :].float()
                state = torch.cat([old, fresh], dim=2)
                gradient = gradients[2 * number + which]
                g = torch.zeros_like(state) if gradient is None else gradient.float()
                m, v = reading.moments[number][which] if reading.moments else (g[:, :, :0],) * 2
                grown = (0, 0, 0, total - m.shape[2])
                m = b1 * torch.nn.functional.pad(m, grown) + (1 - b1) * g
                v = b2 * torch.nn.functional.pad(v, grown) + (1 - b2) * g**2
                step = (m / correct1) / ((v / correct2).sqrt() + self.eps)
                pair.append(state - self.lr * step)
                pair_moments.append((m, v))
            states.append(tuple(pair))
            moments.append(tuple(pair_moments))
        reading.states, reading.moments, reading.age = states, moments, age

    def classify(
        self,
        demonstrations: Sequence[tuple[Sequence[int], Sequence[int]]],
        query: Sequence[int],
        labels: Sequence[Sequence[int]],
    ) -> Tensor:
        """Few-shot classification: log p(label | demonstrations, query) of each label, [n].

        Nothing is learned from it, nor from the labels.

        Args:
            demonstrations: (prompt ids, label ids) pairs, read in order, one segment each; the loss
                on their label tokens teaches the states.
            query: a prompt whose label is sought.
        """
        if not labels or not all(labels) or not query:
            raise InputError("classification needs a query and labels of at least one token each")
        device = next(self.model.parameters()).device
        reading = Reading.empty(1, device)
        for prompt, label in demonstrations:
            ids = torch.tensor([[*prompt, *label]], device=device)
            target = torch.zeros_like(ids, dtype=torch.bool)
            target[:, len(prompt) :] = True
            reading = self.read(reading, ids, torch.ones_like(target), target, [0])
        plain = HiddenStateOptimizer(self.model, lr=0.0, memory=self.memory)
        query_ids = torch.tensor([list(query)], device=device)
        reading = plain.read(reading, query_ids, torch.ones_like(query_ids).bool(), None, [0])
        scores = []
        for label in labels:
            ids = torch.tensor([list(label)], device=device)
            said = plain.read(reading, ids, torch.ones_like(ids).bool(), None, [0])
            scores.append(-said.nll[0, -len(label) :].sum())
        return torch.stack(scores)


States = list[tuple[Tensor, Tensor]]


@dataclass
class Reading:
    """What has been read: the states, and how well each token was foreseen.

    Args:
        nll: [B, T] float32, -log p of each token, in nats, before the states learned from it; 0 on
            padding and on the first token.
        states: per layer, keys and values [B, H, S, D] float32.
        moments: Adam's, for each of them.
        age: [S], updates of each position.
        attention: [B, S].
    """

    nll: Tensor
    attention: Tensor
    read_so_far: Tensor
    age: Tensor
    states: States = field(default_factory=list)
    moments: list[tuple[tuple[Tensor, Tensor], ...]] = field(default_factory=list)
    next_logprobs: Tensor | None = None

    @classmethod
    def empty(cls, rows: int, device: Any) -> Reading:
        none = torch.zeros(rows, 0, device=device)
        count = torch.zeros(rows, dtype=torch.long, device=device)
        return cls(none, none.bool(), count, torch.zeros(0, dtype=torch.long, device=device))

    def copy(self) -> Reading:
        """A reading that goes its own way; tensors are replaced and never written into."""
        return Reading(
            self.nll,
            self.attention,
            self.read_so_far,
            self.age,
            list(self.states),
            list(self.moments),
            self.next_logprobs,
        )

    def mean_nll(self) -> Tensor:
        """[B], nats per scored token."""
        return self.nll.sum(1) / (self.read_so_far - 1).clamp_min(1)

    def forget(self, memory: int) -> None:
        """Keep the latest `memory` positions, their moments and ages with them."""
        self.states = [
            (keys[:, :, -memory:], values[:, :, -memory:]) for keys, values in self.states
        ]
        self.moments = [
            tuple((m[:, :, -memory:], v[:, :, -memory:]) for m, v in pair) for pair in self.moments
        ]
        self.attention, self.age = self.attention[:, -memory:], self.age[-memory:]
