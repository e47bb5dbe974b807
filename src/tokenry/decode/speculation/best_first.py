"""Expanding a tree to the largest values when guesses below a node become known one node at a time.

Values fall from a node to its children and to its next sibling, so taking the largest first gives
the m best. `best_first` is that heap, and asks for the guesses below one node when they are due.
`by_level` asks once per depth: it takes all positions of a depth that can be among the m best
(paper: value >= c), and some that are cut at the end, to the same tree.

Source: the two constructions of DySpec (arXiv 2410.11744), whose values are explained in `dyspec`.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from tokenry.decode.speculation.tree import seconds

MOST_DEPTH = 16


class ChildGuesses(NamedTuple):
    """The guesses below one node, in order; every list has one number for each.

    Attributes:
        values: what ranks the guess, falling.
        rates: how probably it is accepted once its parent is, by which its own children's values
            are multiplied; at most its value.
        acceptances: how probably it is accepted, as far as is known before it is drawn.
    """

    tokens: list[int]
    values: list[float]
    rates: list[float]
    acceptances: list[float]


@dataclass
class TreeExpansion:
    """A tree that is being expanded, in the order in which nodes came; node 0 is the root.

    Args:
        path_probabilities: the product of the rates from the root down.
        values: those of the guess, times the path probability of its parent.
        acceptances: those of the guess, times the path probability of its parent.
    """

    tokens: list[int]
    parents: list[int] = field(default_factory=lambda: [-1])
    depths: list[int] = field(default_factory=lambda: [0])
    values: list[float] = field(default_factory=lambda: [1.0])
    path_probabilities: list[float] = field(default_factory=lambda: [1.0])
    acceptances: list[float] = field(default_factory=lambda: [1.0])
    ranks: list[int] = field(default_factory=lambda: [0])

    def __len__(self) -> int:
        return len(self.tokens)

    def add(self, parent: int, rank: int, below: ChildGuesses) -> int:
        above = self.path_probabilities[parent]
        self.tokens.append(below.tokens[rank])
        self.parents.append(parent)
        self.depths.append(self.depths[parent] + 1)
        self.values.append(above * below.values[rank])
        self.path_probabilities.append(above * below.rates[rank])
        self.acceptances.append(above * below.acceptances[rank])
        self.ranks.append(rank)
        return len(self) - 1

    def best(self) -> list[int]:
        """All drafted nodes by falling value, parents and earlier siblings first."""
        return sorted(range(1, len(self)), key=lambda n: (-self.values[n], self.depths[n], n))


Expand = Callable[[TreeExpansion, list[int]], list[ChildGuesses]]


def best_first(
    root: int, expand: Expand, nodes: int, depth: int = MOST_DEPTH, threshold: float = 0.0
) -> TreeExpansion:
    """The paper's greedy tree: the `nodes` guesses of largest value, `expand` called for one node
    at a time, when its first child is due."""
    tree = TreeExpansion([root])
    known: dict[int, ChildGuesses] = {}
    # (-value or a bound of it, order, parent, rank)
    heap = [(-1.0, 0, 0, 0)] if depth else []
    entries = 1
    while heap and len(tree) <= nodes:
        bound, _, parent, rank = heapq.heappop(heap)
        if -bound < threshold:
            break
        if parent not in known:
            (known[parent],) = expand(tree, [parent])
        below = known[parent]
        if rank >= len(below.tokens):
            continue
        value = tree.path_probabilities[parent] * below.values[rank]
        if value < -bound:
            heapq.heappush(heap, (-value, entries, parent, rank))  # it was known as a bound
        else:
            node = tree.add(parent, rank, below)
            if rank + 1 < len(below.tokens):
                after = tree.path_probabilities[parent] * below.values[rank + 1]
                heapq.heappush(heap, (-after, entries, parent, rank + 1))
            if tree.depths[node] < depth and tree.path_probabilities[node] > 0:
                heapq.heappush(heap, (-tree.path_probabilities[node], entries + 1, node, 0))
        entries += 2
    return tree


def by_level(
    root: int, expand: Expand, nodes: int, depth: int = MOST_DEPTH, threshold: float = 0.0
) -> TreeExpansion:
    """The guesses of `best_first` and some that are worth less, `expand` called once per depth."""
    tree, frontier = TreeExpansion([root]), [0]
    best: list[float] = []  # heap of the largest values so far, at most `nodes` of them

    def counts(value: float) -> bool:
        """Whether a node that comes now can be among the best; of equal ones the earlier is."""
        return 0 < value >= threshold and (len(best) < nodes or value > best[0])

    for _ in range(depth if nodes else 0):
        if not frontier:
            break
        start = len(tree)
        for parent, below in zip(frontier, expand(tree, frontier), strict=True):
            for rank, factor in enumerate(below.values):
                value = tree.path_probabilities[parent] * factor
                if not counts(value):
                    break
                tree.add(parent, rank, below)
                heapq.heappush(best, value)
                if len(best) > nodes:
                    heapq.heappop(best)
        # no child is worth more than its parent's path probability
        reachable = enumerate(tree.path_probabilities[start:], start)
        frontier = [node for node, probability in reachable if counts(probability)]
    return tree


def affordable(acceptances: Sequence[float], latency: Mapping[int, float]) -> int:
    """How many draws to make, decided on each before it is made.

    A draw is made if it, and as many more like it as one likes, would give more tokens per second
    than stopping; later draws cannot undo it. Times as for `best_size`, which may look ahead.

    Args:
        acceptances: how probably each would be accepted, in the order in which they are made.
    """
    if not latency:
        return len(acceptances)
    times = [seconds(latency, size) for size in range(1, len(acceptances) + 2)]
    expected = 1.0
    for size, acceptance in enumerate(acceptances):
        speed = expected / times[size]
        like = (
            (expected + more * acceptance) / times[size + more]
            for more in range(1, len(acceptances) - size + 1)
        )
        if max(like) <= speed:
            return size
        expected += acceptance
    return len(acceptances)
