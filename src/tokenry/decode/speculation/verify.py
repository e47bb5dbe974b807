"""Verification of a token tree: which drafted tokens the model would have produced itself.

Walk from the root; at node n choose the next token x from the model's logits there, and go on at
the child of n that guesses x. Without such a child, x is the bonus token and the walk ends.

    greedy      x = argmax logits[n]
    sampling    x ~ p_n = softmax(logits[n] / temperature), cut to its top-p nucleus

Each x has exactly the distribution that it has without a draft, whatever the tree guesses, so the
text is lossless. Sampling is the rule of speculative sampling for drafts that are point masses:
accepting the first child c with probability p(c), else setting p(c) to 0, renormalising and trying
the next one, takes child c with probability p(c) and another token x as the bonus with probability
p(x). One draw from p has that distribution.

Only the nodes on the walk are looked at, and each token costs one draw. With one generator a text
is therefore the same with any draft.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from tokenry.core.checks import in_range
from tokenry.core.errors import ConstraintError
from tokenry.decode.speculation.rejection import draw_with_proposals
from tokenry.decode.speculation.tree import TokenTree

Choice = Callable[[int, Tensor], int | None]


class Accepted(NamedTuple):
    """
    Attributes:
        path: nodes from the root to the last accepted one.
        tokens: what follows the root, one per node of `path`; the last is the bonus token, unless
            the walk was stopped.
    """

    path: list[int]
    tokens: list[int]


def verify_greedy(tree: TokenTree, logits: Tensor) -> Accepted:
    """The longest path of the tree that greedy decoding takes.

    Args:
        logits: [M, V].
    """
    return walk(tree, logits, lambda _, row: int(row.argmax()))


def verify_sampling(
    tree: TokenTree,
    logits: Tensor,
    temperature: float = 1.0,
    top_p: float = 1.0,
    generator: torch.Generator | None = None,
) -> Accepted:
    """A path that follows the distribution of sampling from the model.

    Args:
        logits: [M, V].
    """
    return walk(tree, logits, lambda _, row: draw(row, temperature, top_p, generator))


def walk(tree: TokenTree, logits: Tensor, choose: Choice) -> Accepted:
    """Follow `choose(node, logits[node])` down the tree; None stops the walk at that node."""
    path, tokens, node = [0], [], 0
    while (token := choose(node, logits[node])) is not None:
        tokens.append(token)
        child = tree.children.get((node, token))
        if child is None:
            break
        path.append(child)
        node = child
    return Accepted(path, tokens)


def draw(
    logits: Tensor,
    temperature: float = 1.0,
    top_p: float = 1.0,
    generator: torch.Generator | None = None,
    proposed: tuple[Sequence[int], Tensor] | None = None,
) -> int:
    """One token from softmax(logits / temperature); the most probable one at temperature 0.

    Args:
        logits: [V].
        top_p: draw from the smallest set of most probable tokens that holds this much.
        proposed: tokens that were themselves drawn, and from what; the token then has the same
            distribution, and is one of them as often as possible (see `rejection`).

    Raises:
        ConstraintError: no token is possible.
    """
    in_range("temperature", temperature, "[0, inf)")
    in_range("top_p", top_p, "(0, 1]")
    best, likeliest = logits.max(-1)
    if not float(best) > float("-inf"):  # NaN is none either
        raise ConstraintError(
            f"no token can follow: their logits are all {float(best)}, as processors left them"
        )
    if temperature == 0:
        return int(likeliest)
    probs = (logits.float() / temperature).softmax(-1)
    if top_p < 1:
        falling, order = probs.sort(descending=True, stable=True)
        outside = falling.cumsum(-1) - falling >= top_p  # the mass before a token is enough
        probs = probs.index_fill(0, order[outside], 0.0)
    if proposed is not None and proposed[0]:
        return draw_with_proposals(probs / probs.sum(), *proposed, generator=generator)
    return int(torch.multinomial(probs, 1, generator=generator))
