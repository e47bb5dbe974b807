"""Recursive rejection sampling: the target's distribution, from guesses drawn without replacement.

p is the target's distribution of the next token, y_1, ..., y_n are guesses at it in the order in
which they were drawn, each y_i ~ R_i given all draws before it. (A draft q that draws without
replacement has R_i = q with y_1, ..., y_{i-1} banned, renormalised.)

    p_1 = p,   accept y_i with probability a_i = min(1, p_i(y_i) / R_i(y_i)),
    p_{i+1}(x) = max(p_i(x) - R_i(x), 0) / Σ_x' max(p_i(x') - R_i(x'), 0)   when y_i is rejected.

The first accepted guess is the next token; if there is none, it is drawn from p_{n+1}. Its
distribution is exactly p, whatever the R_i are: a guess is accepted as x with probability min(p_i,
R_i)(x), and the rest of p_i is what p_{i+1} makes up for. A rejected y_i had p_i(y_i) < R_i(y_i),
hence p_{i+1}(y_i) = 0: the next token equals a guess only if that guess was accepted. With point
masses R_i the rule bans the rejected guesses from p.

R_i may depend on everything that was drawn earlier, and so may the decision to draw a further
guess, but not on y_i itself: a tree that drops a guess after having seen it changes the
distribution of the text.

Source: the rule is that of SpecInfer (arXiv 2305.09781) with the draws without replacement that
DySpec: Faster Speculative Decoding with Dynamic Token Tree Structure (arXiv 2410.11744) builds on.
Ours: float64; where p_i - R_i rounds to nothing, p_i with y_i banned takes its place; a guess
that its R_i gives no probability was not drawn from it and is passed over.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from tokenry.core.errors import InputError, ShapeError
from tokenry.decode.speculation.tree import TokenTree


def draw_with_proposals(
    probs: Tensor,
    tokens: Sequence[int],
    proposals: Tensor,
    generator: torch.Generator | None = None,
) -> int:
    """The next token of the text; one of `tokens` exactly when that guess is accepted.

    Args:
        probs: [V], the target's distribution.
        tokens: the n guesses in the order of their draws.
        proposals: [n, V], the distribution that each was drawn from.
    """
    target = checked_distribution(probs, tokens, proposals)
    for token, proposal in zip(tokens, proposals, strict=True):
        accept, rest = judge(target, token, proposal)
        uniform = torch.rand((), dtype=target.dtype, device=target.device, generator=generator)
        if float(uniform) < accept:
            return token
        target = rest
    return int(torch.multinomial(target, 1, generator=generator))


def distribution_with_proposals(
    probs: Tensor, tokens: Sequence[int], proposals: Tensor
) -> tuple[list[float], Tensor]:
    """What `draw_with_proposals` does with these guesses, exactly.

    Returns:
        The probability that each guess is the one that is accepted, and the distribution of the
        next token, [V] float64, which equals `probs` on average over the draws of the guesses.
    """
    target = checked_distribution(probs, tokens, proposals)
    distribution, accepted, left = torch.zeros_like(target), [], 1.0
    for token, proposal in zip(tokens, proposals, strict=True):
        accept, target = judge(target, token, proposal)
        accepted.append(left * accept)
        distribution[token] += left * accept
        left *= 1 - accept
    return accepted, distribution.add_(target, alpha=left)


def acceptance(tree: TokenTree, probs: Tensor) -> list[float]:
    """The probability that each node of a drafted tree is accepted; 1 for the root.

    Guesses without proposals are point masses, each accepted with the probability that the target
    gives it. The sum over all nodes is the expected number of tokens of the step.

    Args:
        probs: [M, V], the target's distribution after every node.
    """
    below: dict[int, list[int]] = {}
    for node, parent in enumerate(tree.parents[1:], start=1):
        below.setdefault(parent, []).append(node)
    accepted = [0.0] * len(tree)
    accepted[0] = 1.0
    for parent in sorted(below):
        nodes, tokens = below[parent], [tree.tokens[node] for node in below[parent]]
        if tree.proposals is None:
            first = [tree.children[parent, token] for token in tokens]
            chances = [
                float(probs[parent, token]) if node == counted else 0.0
                for node, token, counted in zip(nodes, tokens, first, strict=True)
            ]
        else:
            chances, _ = distribution_with_proposals(probs[parent], tokens, tree.proposals[nodes])
        for node, chance in zip(nodes, chances, strict=True):
            accepted[node] = accepted[parent] * chance
    return accepted


def judge(target: Tensor, token: int, proposal: Tensor) -> tuple[float, Tensor]:
    """How probably a guess drawn from `proposal` is accepted, and the target once it is not."""
    proposal = proposal.to(target)
    total = float(proposal.sum())
    if not total > 0 or not float(proposal[token]) > 0:
        return 0.0, target
    proposal = proposal / total
    accept = min(1.0, float(target[token]) / float(proposal[token]))
    if accept == 1.0:
        return accept, target
    rest = (target - proposal).clamp_min_(0)
    if not float(rest.sum()) > 0:
        rest = target.clone()
        rest[token] = 0
    return accept, rest / rest.sum()


def checked_distribution(probs: Tensor, tokens: Sequence[int], proposals: Tensor) -> Tensor:
    """`probs` in float64, summing to 1, once the shapes and values have been checked."""
    if probs.ndim != 1 or proposals.shape != (len(tokens), len(probs)):
        raise ShapeError(
            f"probs must be [V] and proposals [n, V] for n guesses, got {list(probs.shape)} and "
            f"{list(proposals.shape)} for {len(tokens)}"
        )
    target = probs.double()
    total = float(target.sum())
    if not 0 < total < float("inf") or float(target.min()) < 0:
        raise InputError(
            f"probs must be probabilities, got values from {float(target.min())} that sum to "
            f"{total}"
        )
    return target / total
