"""ASAp: sampling that learns which prefixes of a grammar the model cannot complete.

With c(u) the probability that the model completes prefix u to a text that the constraint accepts,
the model's own distribution given the constraint is, token by token, p(a|u) c(ua) / c(u). Masking
puts 1 for every c that is not 0. ASAp puts an upper bound c~ that every text it draws makes
tighter: c~ = 1 where nothing is known, and where the continuations were seen

    c~(u) = Σ_{accepted a} p(a|u) c~(ua),        q(a|u) = p(a|u) c~(ua) / c~(u),

from the tokens to the prefix and on to the root. As texts are drawn, q converges to the target.

Here each token also gets its weight p(a|u) / q(a|u), so that texts are properly weighted from the
first one on, whatever was learned before: for a text y of the constraint, E[Π p/q f] over q is
Σ p f, since q is positive wherever c is. Learning makes the weights equal, Π p/q -> Z.

    asap = ASAp()                                           # keep it: it remembers
    for seed in range(10):
        samples = generate(loaded, prompt, grammar, asap, particles=8, seed=seed)

Source: Grammar-Aligned Decoding (arXiv 2405.21047). Added here: the weights; batches; and what a
limit on the length makes impossible is learned like what the grammar does. Every token needs a
mask of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from tokenry.core.checks import within
from tokenry.decode.constraints.base import Constraint, State, refuse
from tokenry.decode.samplers.base import (
    DEAD,
    NOTHING,
    Step,
    TokenSampler,
    drawn_tokens,
    fitted_mask,
)
from tokenry.decode.samplers.prefix_trie import Node, visit
from tokenry.decode.samplers.request import Request, check_sampling, text_sampler
from tokenry.decode.samplers.samples import Samples
from tokenry.decode.samplers.smc import run_smc
from tokenry.decode.samplers.texts import joined


class RemovedMass:
    """What was learned, one trie for each thing that was sampled from: model, constraint, prompt,
    temperature, processors and length limit. A model whose weights change is a new one: forget."""

    def __init__(self) -> None:
        self.roots: dict[tuple[Any, ...], Node] = {}
        self._known: dict[int, Any] = {}  # holds the objects, so that no other gets their id

    def root(self, request: Request) -> Node:
        """The node of the empty text; its `bound` is at least the constraint's probability."""
        model = getattr(request.decoding, "model", None)
        objects = (model, request.constraint, *request.processors)
        self._known.update((id(thing), thing) for thing in objects)
        limit = request.max_new_tokens if request.must_end else None
        key = (request.prompt_ids, request.temperature, limit, *map(id, objects))
        return self.roots.setdefault(key, Node())

    def forget(self) -> None:
        self.roots.clear()
        self._known.clear()


@text_sampler("asap", paper=17)
@dataclass(frozen=True)
class ASAp:
    """Adaptive sampling with approximate expected futures.

    Args:
        rows: texts that grow together; they learn from those before, and little from each other
            (the paper's is 1).
        memory: what calls of this object, or of several, remember.
    """

    rows: int = 4
    memory: RemovedMass = field(default_factory=RemovedMass, compare=False, repr=False)
    exact: ClassVar[bool] = True

    def __post_init__(self) -> None:
        within(self, "[1, inf)", "rows", integer=True)

    def __call__(self, request: Request, particles: int) -> Samples:
        check_sampling(request.max_new_tokens, request.temperature, particles)
        root = self.memory.root(request)
        limit = request.max_new_tokens if request.must_end else None
        remembered = replace(request, constraint=Remembered(request.constraint, root, limit))
        rounds: list[Samples] = []
        for start in range(0, particles, self.rows):
            count = min(self.rows, particles - start)
            rounds.append(run_smc(remembered, count, ExpectedFuture(), ess_threshold=0.0))
            if root.log_bound == DEAD:  # nothing can satisfy the constraint: known by now
                break
        return joined(rounds)


class Remembered(Constraint):
    """A constraint whose states know their prefix's node.

    Args:
        limit: texts must have ended, end token included, after so many tokens; None: they need not.
    """

    def __init__(self, constraint: Constraint, root: Node, limit: int | None = None):
        self.constraint, self.root, self.limit = constraint, root, limit
        self.vocab_size, self.eos = constraint.vocab_size, constraint.eos

    def initial(self) -> State:
        return self.begin(())

    def begin(self, prompt: Sequence[int]) -> RememberedState:
        return RememberedState(self, self.constraint.begin(prompt), self.root, 0)


@dataclass(frozen=True)
class RememberedState:
    constraint: Remembered
    inner: State
    node: Node
    depth: int

    @property
    def complete(self) -> bool:
        return self.inner.complete

    @property
    def finished(self) -> bool:
        return self.inner.finished

    @property
    def mask_cost(self) -> float:
        return self.inner.mask_cost

    @property
    def must_end(self) -> bool:
        return self.constraint.limit is not None and self.depth + 1 >= self.constraint.limit

    def allows(self, token: int) -> bool:
        if self.must_end and token not in self.constraint.eos:
            return False
        return self.inner.allows(token)

    def mask(self) -> Tensor:
        if not self.must_end:
            return self.inner.mask()
        mask = torch.zeros(self.constraint.vocab_size, dtype=torch.bool)
        mask[list(self.constraint.eos)] = self.complete
        return mask

    def advance(self, token: int) -> RememberedState:
        if not self.allows(token):
            raise refuse(token, f"after {self.depth} tokens")
        inner, node = self.inner.advance(token), self.node.child(token)
        return RememberedState(self.constraint, inner, node, self.depth + 1)


class ExpectedFuture(TokenSampler):
    """Draws in proportion to p c~ at the states of a `Remembered` constraint; weight p / q."""

    def steps(
        self, logprobs: Tensor, states: Sequence[State], generator: torch.Generator
    ) -> list[Step]:
        nodes, where, first = distinct_nodes(states)
        masks = torch.stack([fitted_mask(states[row], logprobs.shape[-1]) for row in first])
        log_p = logprobs.double()[first].masked_fill(~masks.to(logprobs.device), DEAD)  # [n, V]
        log_q = log_p + visit(nodes, log_p)
        log_mass = log_q.logsumexp(-1)  # log c~ of the prefixes
        cumulative = (log_q - log_mass.clamp(min=-1e300)[:, None]).exp().cumsum(-1)[where]
        tokens = drawn_tokens(cumulative, generator)
        rows = torch.tensor(where, device=tokens.device)
        weights = log_p[rows, tokens] - log_q[rows, tokens] + log_mass[rows]
        steps = []
        drawn = zip(where, tokens.tolist(), weights.tolist(), strict=True)
        for row, (number, token, weight) in enumerate(drawn):
            masked = int(row == first[number])
            if nodes[number].log_bound == DEAD:
                steps.append(Step(NOTHING, DEAD, masks=masked))
                continue
            nodes[number].try_token(token, log_p[number])
            steps.append(Step(token, weight, masks=masked))
        return steps


def distinct_nodes(states: Sequence[Any]) -> tuple[list[Node], list[int], list[int]]:
    """The different nodes of some states, the place of each state's node, and of each node the
    first state that is at it."""
    nodes = {id(state.node): state.node for state in states}
    number_of = {node: number for number, node in enumerate(nodes)}
    where = [number_of[id(state.node)] for state in states]
    first = [where.index(number) for number in range(len(nodes))]
    return list(nodes.values()), where, first
