"""Token trees: several possible continuations of one prefix, verified in one forward pass.

Node 0 is the root: the token that is committed but not yet read by the model. Every other node is a
guess at the token after its parent. A node of probability q (all tokens from the root down to it
are what the model says) is worth q tokens, so a tree of nodes n is expected to give

    E[tokens] = 1 + Σ_n q_n,          q_n = q_parent(n) · rate_n,

where rate_n is how often a guess like n is accepted once its parent is. A child is never more
probable than its parent, so the m most probable nodes always form a tree, and no other tree of m
nodes expects more. `best_size` sets that against the time of a pass over m + 1 tokens.

Source: the template is that of Turning Trash into Treasure: Accelerating Inference of Large
Language Models with Token Recycling (arXiv 2408.08696); the rule for its size is our own.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

import torch
from torch import Tensor

from tokenry.core.errors import InputError, ShapeError

# How often a guess of rank 0, 1, ... is accepted when its parent is: SmolLM2-135M, the table
# empty at first, over 290 tokens of code, prose and JSON. Only the nodes' order depends on it.
PRIOR_RATES = (0.45, 0.1, 0.05, 0.035, 0.025, 0.02, 0.015, 0.01)


@dataclass(frozen=True)
class TokenTree:
    """A drafted tree.

    Of two children with one token only the first counts.

    Args:
        tokens: M ids, the root first.
        parents: M indices, -1 for the root, every parent before its children.
        notes: what the drafter wants to know of each node again when it is told how the tree fared;
            one per node, or none.
        proposals: [M, V], for trees that were sampled: row n is the distribution that node n's
            token was drawn from, given that its earlier siblings were not (see `rejection`).
    """

    tokens: tuple[int, ...]
    parents: tuple[int, ...]
    notes: tuple[Any, ...] = ()
    proposals: Tensor | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if len(self.tokens) != len(self.parents) or not self.tokens:
            raise ShapeError(
                f"a tree needs a parent for each token and at least a root, got "
                f"{len(self.tokens)} tokens and {len(self.parents)} parents"
            )
        if self.parents[0] != -1 or any(
            not 0 <= parent < node for node, parent in enumerate(self.parents) if node
        ):
            raise ShapeError(
                "node 0 must be the only root (parent -1), every parent before its children"
            )

    @classmethod
    def chain(cls, tokens: Sequence[int]) -> "TokenTree":
        """The tree that is one path."""
        return cls(tuple(tokens), tuple(range(-1, len(tokens) - 1)))

    def __len__(self) -> int:
        return len(self.tokens)

    @cached_property
    def depths(self) -> tuple[int, ...]:
        depths = [0] * len(self)
        for node, parent in enumerate(self.parents[1:], start=1):
            depths[node] = depths[parent] + 1
        return tuple(depths)

    def select(self, nodes: Sequence[int]) -> "TokenTree":
        """The tree of these nodes only, in this order; each with its parent before it."""
        index_of = {-1: -1} | {node: at for at, node in enumerate(nodes)}
        return TokenTree(
            tuple(self.tokens[node] for node in nodes),
            tuple(index_of[self.parents[node]] for node in nodes),
            tuple(self.notes[node] for node in nodes) if self.notes else (),
            None if self.proposals is None else self.proposals[list(nodes)],
        )

    def proposed(self, node: int) -> tuple[list[int], Tensor] | None:
        """For a tree that was sampled: the tokens of a node's children in the order in which they
        were drawn, and the distributions they were drawn from, [n, V]; None for other trees."""
        if self.proposals is None:
            return None
        children = [at for at in range(node + 1, len(self)) if self.parents[at] == node]
        return [self.tokens[at] for at in children], self.proposals[children]

    def limited(self, depth: int) -> "TokenTree":
        """The tree down to this depth."""
        if max(self.depths) <= depth:
            return self
        return self.select([node for node in range(len(self)) if self.depths[node] <= depth])

    @cached_property
    def children(self) -> Mapping[tuple[int, int], int]:
        """(node, token) -> the child of `node` that guesses `token`."""
        nodes: dict[tuple[int, int], int] = {}
        for node, parent in enumerate(self.parents[1:], start=1):
            nodes.setdefault((parent, self.tokens[node]), node)
        return nodes


@dataclass(frozen=True)
class TreeTemplate:
    """A tree of ranks: node (r1, ..., rd) is successor r_d of node (r1, ..., r_{d-1}).

    They are kept in preorder, lowest rank first: the chain 0, 00, 000, ..., which is accepted most
    often, then lies at the front, and keeping it in the cache moves nothing. Arrays over nodes have
    the root in front, with parent and rank -1 and depth 0.

    Attributes:
        paths: the draft nodes in any order; prefix-closed, without repeats.
    """

    paths: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        paths = tuple(sorted(tuple(path) for path in self.paths))
        known = {(), *paths}
        if len(known) != len(paths) + 1:
            raise InputError("a template lists every node once, and the root not at all")
        for path in paths:
            if path[:-1] not in known:
                raise InputError(f"the template has node {path} without its parent {path[:-1]}")
            if min(path) < 0:
                raise InputError(f"ranks count from 0, got node {path}")
        object.__setattr__(self, "paths", paths)

    @classmethod
    def default(cls) -> "TreeTemplate":
        """The 80 nodes of the paper."""
        return cls(tuple(tuple(map(int, node)) for node in PAPER_NODES.split()))

    def __len__(self) -> int:
        """Draft nodes, the root not counted."""
        return len(self.paths)

    @cached_property
    def parents(self) -> tuple[int, ...]:
        index_of = {path: node for node, path in enumerate(((), *self.paths))}
        return (-1, *(index_of[path[:-1]] for path in self.paths))

    @cached_property
    def ranks(self) -> tuple[int, ...]:
        return (-1, *(path[-1] for path in self.paths))

    @cached_property
    def depths(self) -> tuple[int, ...]:
        return (0, *(len(path) for path in self.paths))

    @property
    def breadth(self) -> int:
        """Successors per token that the template can ask for."""
        return max(self.ranks) + 1

    @cached_property
    def ancestor_mask(self) -> Tensor:
        """[n + 1, n + 1] bool: the column's node is the row's ancestor, or itself."""
        mask = torch.eye(len(self) + 1, dtype=torch.bool)
        for node, parent in enumerate(self.parents[1:], start=1):
            mask[node] |= mask[parent]
        return mask

    @cached_property
    def leaf_paths(self) -> tuple[tuple[int, ...], ...]:
        """Node indices from the root down to each leaf."""
        leaves = set(range(len(self) + 1)) - set(self.parents)
        return tuple(
            tuple(self.ancestor_mask[leaf].nonzero()[:, 0].tolist()) for leaf in sorted(leaves)
        )

    def unroll(
        self, root: int, successors: Callable[[int], Sequence[int]], depth: int
    ) -> TokenTree:
        """The template's nodes on top of the token `root`, as far as there are successors and down
        to this depth."""
        tokens, rows = {0: root}, {}
        for node in range(1, len(self) + 1):
            parent = tokens.get(self.parents[node])
            if parent is None or self.depths[node] > depth:
                continue
            row = rows[parent] if parent in rows else rows.setdefault(parent, successors(parent))
            if self.ranks[node] < len(row):
                tokens[node] = row[self.ranks[node]]
        index_of = {-1: -1} | {node: at for at, node in enumerate(tokens)}
        parents = tuple(index_of[self.parents[node]] for node in tokens)
        return TokenTree(tuple(tokens.values()), parents)

    def truncate(self, nodes: int, rates: Sequence[float] = PRIOR_RATES) -> "TreeTemplate":
        """The `nodes` most probable nodes (see the module's text); rates[r] is rank r's.

        Ties go to the shallower node, then to the earlier one.
        """
        by_node = [rates[min(rank, len(rates) - 1)] for rank in self.ranks]
        worth = path_probabilities(self.parents, by_node)[1:]
        order = sorted(range(len(self)), key=lambda at: (-worth[at], self.depths[at + 1]))[:nodes]
        return TreeTemplate(tuple(self.paths[node] for node in order))


def path_probabilities(parents: Sequence[int], rates: Sequence[float]) -> list[float]:
    """q_n = q_parent(n) · rate_n for every node; 1 for the root, whose rate is not read."""
    probabilities = [1.0] * len(parents)
    for node in range(1, len(parents)):
        probabilities[node] = probabilities[parents[node]] * rates[node]
    return probabilities


def best_size(worth: Sequence[float], latency: Mapping[int, float]) -> int:
    """How many draft nodes give the most expected tokens per second.

    Args:
        worth: q of the draft nodes, in falling order.
        latency: seconds of a pass by its number of tokens (root included), read by linear
            interpolation and, above its last point, by the slope of the last two. An empty curve
            means that passes cost the same: every node is taken.
    """
    best = BestSize(latency, len(worth))
    for value in worth:
        best.add(value)
    return best.size


class BestSize:
    """`best_size`, found while the nodes come, and whether more can change it.

    The speed (E + j w) / t(m + 1 + j) of a tree that m nodes and j others worth w each make is
    monotone in j between two points of the curve, so it is largest at one of them, or at an end.

    Args:
        most: nodes at most.
    """

    def __init__(self, latency: Mapping[int, float], most: int):
        self.count, self.size, self.expected = 0, 0, 1.0
        self.times, self.knots = sampled_curve(tuple(sorted(latency.items())), most + 1)
        self.speed = 1.0 / self.times[1]

    def add(self, value: float) -> None:
        """One more node, worth at most what the last one was."""
        self.count += 1
        self.expected += value
        speed = self.expected / self.times[self.count + 1]
        if speed > self.speed or not self.knots:
            self.size, self.speed = self.count, speed

    def may_improve(self, value: float) -> bool:
        """Whether more nodes, none worth more than this, could make a faster tree."""
        tokens = self.count + 1
        return not self.knots or any(
            self.expected + (size - tokens) * value > self.speed * self.times[size]
            for size in (tokens + 1, *self.knots)
            if tokens < size < len(self.times)
        )


@lru_cache(maxsize=64)
def sampled_curve(
    points: tuple[tuple[int, float], ...], most: int
) -> tuple[list[float], tuple[int, ...]]:
    """Times of 0 to `most` tokens, and the sizes between which they are linear; all 1 for no curve,
    without sizes."""
    if not points:
        return [1.0] * (most + 1), ()
    latency = dict(points)
    return [seconds(latency, size) for size in range(most + 1)], (*latency, most)


def seconds(latency: Mapping[int, float], tokens: int) -> float:
    """The curve at `tokens`, by linear interpolation."""
    if tokens in latency:
        return latency[tokens]
    known = sorted(latency)
    if tokens < known[0] or len(known) == 1:
        return latency[known[0]]
    right = next((i for i, size in enumerate(known) if size > tokens), len(known) - 1)
    low, high = known[right - 1], known[right]
    slope = (latency[high] - latency[low]) / (high - low)
    return latency[low] + slope * (tokens - low)


PAPER_NODES = """
0 1 2 3 4 5 6 7
00 01 02 03 04 05 06 07 10 11 12 13 20 21 22 30 31 40 50 60 70
000 001 002 003 004 005 006 007 010 011 012 020 021 030 040 050 060 070 100 101 110 200 300 400 500
0000 0001 0002 0003 0004 0010 0011 0020 0030 0040 0100 0200 1000 2000 3000
00000 00001 00002 00010 00020 00100 01000 10000
000000 000001 000100
"""
