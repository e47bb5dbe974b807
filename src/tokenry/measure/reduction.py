"""What a token reduction kept: numbers that need no task, for any reduction of any tokens.

With X [N, d] the tokens, X' [M, d] the reduced ones, cos the cosine:

    retention       M / N
    coverage        mean over i of max over j of cos(x_i, x'_j)
    redundancy      mean over pairs j != k of cos(x'_j, x'_k)
    effective rank  exp(H(s / sum s)), s the singular values, H the entropy
    information     KL(model(X) || model(X')) of the next token, in nats
    stability       mean Jaccard overlap of the places kept when X is slightly perturbed

Source: ours, for the families in "Token Reduction Should Go Beyond Efficiency in Generative Models:
From Vision, Language to Multimodality" (arXiv 2505.18227), which names no measure; the effective
rank is that of Roy and Vetterli (2007).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from tokenry.core.checks import in_range
from tokenry.core.errors import ShapeError
from tokenry.core.reduction import Reduction


def reduction_report(
    x: Tensor,
    reduction: Reduction,
    *,
    model: Any = None,
    reduce: Callable[[Tensor], Reduction] | None = None,
    noise: float = 0.01,
    trials: int = 4,
    seed: int = 0,
) -> dict[str, float]:
    """All of the measures for tokens x [N, d].

    Args:
        model: a causal language model, if the loss of information is wanted; x are then input
            embeddings.
        reduce: what made the reduction, if its stability is wanted under Gaussian noise of `noise`
            times the tokens' root mean square.
    """
    if x.ndim != 2:
        raise ShapeError(f"tokens must be [N, d], got {list(x.shape)}")
    reduced = reduction.apply(x)
    report = {
        "retention": len(reduced) / len(x),
        "coverage": coverage(x, reduced),
        "redundancy": redundancy(reduced),
        "effective rank": effective_rank(x),
        "effective rank, reduced": effective_rank(reduced),
    }
    if model is not None:
        report["information lost"] = information_lost(model, x, reduction)
    if reduce is not None:
        report["stability"] = stability(reduce, x, noise=noise, trials=trials, seed=seed)
    return report


def coverage(x: Tensor, reduced: Tensor) -> float:
    """How well every token is represented by its nearest reduced one: 1 if all are kept."""
    similarity = normalize(x.float(), dim=-1) @ normalize(reduced.float(), dim=-1).T
    return float(similarity.max(-1).values.mean())


def redundancy(reduced: Tensor) -> float:
    """Mean cosine between different reduced tokens; 0 for a single one."""
    count = len(reduced)
    if count < 2:
        return 0.0
    unit = normalize(reduced.float(), dim=-1)
    similarity = unit @ unit.T
    return float((similarity.sum() - similarity.diagonal().sum()) / (count * (count - 1)))


def effective_rank(x: Tensor) -> float:
    """The number of directions that the tokens fill, weighted: k for k orthonormal ones."""
    values = torch.linalg.svdvals(x.float())
    share = values / values.sum().clamp_min(1e-30)
    return float(torch.special.entr(share).sum().exp())


@torch.no_grad()
def information_lost(model: Any, x: Tensor, reduction: Reduction) -> float:
    """KL between the next-token distributions after x [N, d] and after the reduced tokens, which
    keep the positions that they had."""
    positions = torch.arange(len(x), device=x.device)

    def logprob(embeddings: Tensor, positions: Tensor) -> Tensor:
        output = model(
            inputs_embeds=embeddings[None].to(model.dtype),
            position_ids=positions[None],
            use_cache=False,
        )
        return output.logits[0, -1].float().log_softmax(-1)

    full = logprob(x, positions)
    fewer = logprob(reduction.apply(x), reduction.positions().to(x.device))
    return float((full.exp() * (full - fewer)).sum().clamp_min(0))


def stability(
    reduce: Callable[[Tensor], Reduction],
    x: Tensor,
    *,
    noise: float = 0.01,
    trials: int = 4,
    seed: int = 0,
) -> float:
    """Mean overlap |kept and kept'| / |kept or kept'| under noise; 1: always the same places."""
    in_range("noise", noise, "[0, inf)")
    in_range("trials", trials, "[1, inf)", integer=True)
    generator = torch.Generator().manual_seed(seed)
    kept = set(reduce(x).positions().tolist())
    spread = noise * float(x.float().square().mean().sqrt())
    overlaps = []
    for _ in range(trials):
        moved = x + spread * torch.randn(x.shape, generator=generator).to(x)
        other = set(reduce(moved).positions().tolist())
        overlaps.append(len(kept & other) / len(kept | other))
    return sum(overlaps) / trials
