"""Expanding a draft tree where it pays: most accepted tokens per second on this machine.

A source says, for the cursor at the end of a path, which tokens may come next and how likely each
is. `expand_tree` puts guesses into a tree, the likeliest path first:

    q_n = q_parent(n) · rate(n),        rate(n) = p(n) · (hits(kind) + a) / (Σ p over kind + b),

with p(n) the source's own probability and the fraction how often guesses of that kind came true so
far, against what was expected of them: sources are calibrated while they are used, so that guesses
of different sources compare. No child is likelier than its parent, so the m first nodes are the
best m, and `best_size` chooses m by the machine's measured time of a pass over m + 1 tokens.

The best-first order is that of DySpec (arXiv 2410.11744); the rule for the size and the calibration
are ours.
"""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from tokenry.core.checks import in_range, within
from tokenry.decode.speculation.tree import BestSize, TokenTree
from tokenry.decode.speculation.verify import Accepted

MOST_NODES = 48  # no machine measured here gains from more


class Guess(NamedTuple):
    """A possible next token.

    Attributes:
        prob: how likely its source holds it.
        kind: which guesses it is calibrated with.
        cursor: where it was made, from which its source finds what comes behind it.
    """

    token: int
    prob: float
    kind: Hashable
    cursor: Any


class Source(Protocol):
    """Where guesses come from. Several guesses of one cursor must be of different tokens."""

    def root(self) -> Any:
        """The cursor at the end of the text."""
        ...

    def guesses(self, cursor: Any) -> list[Guess]: ...

    def after(self, guess: Guess) -> Any:
        """The cursor behind a guess. Few guesses are ever gone on from, so it is asked late."""
        ...


@dataclass
class Calibration:
    """How often the guesses of every kind came true.

    Args:
        strength: what the source's own probability counts, in guesses of probability 1, against
            what was observed.
        fade: how much of the older observations is kept with every new one.
    """

    strength: float = 4.0
    fade: float = 0.98
    hits: dict[Hashable, float] = field(default_factory=dict)
    expected: dict[Hashable, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        within(self, "(0, inf)", "strength")
        within(self, "[0, 1]", "fade")

    def rate(self, guess: Guess) -> float:
        """How likely the guess is, after what was seen of its kind."""
        hits = self.hits.get(guess.kind, 0.0) + self.strength
        return min(0.99, guess.prob * hits / (self.expected.get(guess.kind, 0.0) + self.strength))

    def count(self, guess: Guess, hit: bool) -> None:
        """A guess was put to the test: its parent was what the model said."""
        kind = guess.kind
        self.hits[kind] = self.hits.get(kind, 0.0) * self.fade + hit
        self.expected[kind] = self.expected.get(kind, 0.0) * self.fade + guess.prob

    def learn(self, tree: TokenTree, accepted: Accepted) -> None:
        """Count the guesses below the accepted nodes of a tree whose notes are guesses."""
        truth = dict(zip(accepted.path, accepted.tokens, strict=False))
        for node in range(1, len(tree)):
            if (parent := tree.parents[node]) in truth:
                self.count(tree.notes[node], tree.tokens[node] == truth[parent])


def expand_tree(
    root: int,
    source: Source,
    calibration: Calibration,
    budget: int,
    *,
    nodes: int | None = None,
    latency: Mapping[int, float] | None = None,
) -> TokenTree:
    """The tree on top of the token `root`, at most `budget` deep; its notes are the guesses.

    Args:
        nodes: how many to draft; None takes as many as pay by `latency`, seconds of a pass by its
            number of tokens.
    """
    in_range("nodes", nodes, "[0, inf)", integer=True, optional=True)
    most = MOST_NODES if nodes is None else nodes
    # (-q, when it was put in, parent, guess): of equal q the one that came first
    heap: list[tuple[float, int, int, Guess]] = []
    entries = 0

    def offer(parent: int, depth: int, above: float, cursor: Any) -> None:
        nonlocal entries
        if depth < budget:
            for guess in source.guesses(cursor):
                worth = above * calibration.rate(guess)
                if worth > 0:
                    entries += 1
                    heapq.heappush(heap, (-worth, entries, parent, guess))

    tokens, parents, depths = [root], [-1], [0]
    notes: list[Guess | None] = [None]
    best = BestSize(latency or {} if nodes is None else {}, most)
    offer(0, 0, 1.0, source.root())
    while heap and best.count < most and best.may_improve(-heap[0][0]):
        loss, _, parent, guess = heapq.heappop(heap)
        best.add(-loss)
        tokens.append(guess.token)
        parents.append(parent)
        depths.append(depths[parent] + 1)
        notes.append(guess)
        offer(len(tokens) - 1, depths[-1], -loss, source.after(guess))
    kept = slice(0, best.size + 1)
    tree = TokenTree(tuple(tokens[kept]), tuple(parents[kept]), tuple(notes[kept]))
    return tree.select(preorder(tree))


def preorder(tree: TokenTree) -> list[int]:
    """Nodes with the first child's whole subtree before the second child: the likeliest path lies
    at the front, and keeping it in the cache then moves nothing."""
    below: list[list[int]] = [[] for _ in range(len(tree))]
    for node in range(len(tree) - 1, 0, -1):
        below[tree.parents[node]].append(node)
    order, waiting = [], [0]
    while waiting:
        node = waiting.pop()
        order.append(node)
        waiting += below[node]
    return order
