"""A trie of prefixes that were seen, with how much of each one's future is still open.

Every prefix u has c(u), the probability that the model, going on from u, ends in a text that the
constraint accepts. A node keeps an upper bound c~(u) >= c(u): 1 until the prefix was visited, then

    c~(u) = Σ_{accepted a} p(a|u) - Σ_{children a} p(a|u) (1 - c~(ua))
          = rest(u) + Σ_{children a} p(a|u) c~(ua),

where rest(u) is the mass of the accepted tokens that were not tried yet. Only tried tokens have a
node. Everything is kept as logs: far down a narrow language c~ is smaller than any float.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

DEAD = float("-inf")
RELIABLE = 1e-6  # a smaller part of a sum is not found by subtraction


class Node:
    """A prefix.

    Args:
        log_share: log p of its last token after its parent's prefix.

    Attributes:
        log_bound: log c~.
        log_rest: None before the first visit.
    """

    __slots__ = ("children", "log_bound", "log_rest", "log_share", "parent")

    def __init__(self, parent: Node | None = None, log_share: float = DEAD):
        self.parent, self.log_share = parent, log_share
        self.children: dict[int, Node] = {}
        self.log_rest: float | None = None
        self.log_bound = 0.0

    @property
    def bound(self) -> float:
        """c~, at least the probability that the prefix can be completed."""
        return math.exp(self.log_bound)

    def child(self, token: int) -> Node:
        """The prefix with one more token; its probability stays unknown until `try_token`, or the
        next visit of this node."""
        if token not in self.children:
            self.children[token] = Node(self)
        return self.children[token]

    def try_token(self, token: int, log_accepted: Tensor) -> None:
        """`token` was drawn.

        Args:
            log_accepted: float64 `[V]`, as in the `visit` before.
        """
        if token in self.children:
            return
        share = float(log_accepted[token])
        self.children[token] = Node(self, share)
        if self.log_rest is None:
            return
        left = -math.expm1(min(share - self.log_rest, 0.0)) if self.log_rest > DEAD else 0.0
        if left > RELIABLE:
            self.log_rest += math.log(left)
        else:  # a difference cannot tell nothing from almost nothing: sum what is left
            untried = log_accepted.clone()
            untried[list(self.children)] = DEAD
            self.log_rest = float(untried.logsumexp(0))

    def at(self, prefix: Sequence[int]) -> Node | None:
        """The node of this one's prefix and the tokens of `prefix`; None if it was never tried."""
        node: Node | None = self
        for token in prefix:
            node = node.children.get(token) if node else None
        return node


def visit(nodes: Sequence[Node], log_accepted: Tensor) -> Tensor:
    """log c~ of every continuation `[n, V]` of n different prefixes, which are told what is known.

    The bounds of the prefixes and of all that lead to them are lowered accordingly.

    Args:
        log_accepted: float64 `[n, V]`, log p of the next token, -inf where the constraint refuses
            it.
    """
    log_future = log_accepted.new_zeros(log_accepted.shape)
    untried = log_accepted.clone()
    known = [
        (row, token, child)
        for row, node in enumerate(nodes)
        for token, child in node.children.items()
    ]
    if known:
        entries = [row for row, _, _ in known], [token for _, token, _ in known]
        for (_, _, child), share in zip(known, log_accepted[entries].tolist(), strict=True):
            child.log_share = share
        log_future[entries] = log_future.new_tensor([child.log_bound for _, _, child in known])
        untried[entries] = DEAD
    for node, rest in zip(nodes, untried.logsumexp(-1).tolist(), strict=True):
        node.log_rest = rest
        lower(node)
    return log_future


def lower(node: Node | None) -> None:
    """Compute the bound of a node anew, then those of its ancestors, as far as they change."""
    while node is not None and node.log_rest is not None:
        tried = (child.log_share + child.log_bound for child in node.children.values())
        bound = min(node.log_bound, log_sum([node.log_rest, *tried]))
        if bound == node.log_bound:
            return
        node.log_bound, node = bound, node.parent


def log_sum(logs: Sequence[float]) -> float:
    """log Σ exp(logs)."""
    top = max(logs)
    return top if top == DEAD else top + math.log(math.fsum(math.exp(x - top) for x in logs))
