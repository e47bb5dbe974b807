"""Mixtures nearest to 0: the weights that balance several objectives, of scalars or of gradients.

    c = argmin over the simplex of || sum_i c_i g_i ||        g_i numbers, or vectors

Sources: Multi-Objective Optimization as a direction common to all gradients, Finding the Nearest
Point in a Polytope (Wolfe 1976); of numbers, Pareto Multi-Objective Alignment for Language Models
(arXiv 2508.07768), Theorem 1.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tokenry.core.aggregate import full_precision
from tokenry.core.errors import InputError, ShapeError


@torch.no_grad()
def min_norm_scalars(a: Tensor) -> tuple[Tensor, Tensor]:
    """Weights on the simplex that bring sum_i c_i a_i nearest to 0, and that sum.

    a: [n, ...], one problem per place behind the first dimension; weights have its shape. All
    positive: everything on the smallest (shared among equals). All negative: on the largest. Mixed
    signs: on the smallest and the largest so that they cancel.
    """
    if a.ndim == 0 or not len(a):
        raise ShapeError(f"one number per reward is needed, [n, ...]; got {[*a.shape]}")
    a = full_precision(a)
    least, most = a.amin(0), a.amax(0)
    nearest = torch.where(least > 0, least, most)  # the end that faces 0, when all have one sign
    mixed = (least <= 0) & (most >= 0) & (least < most)
    width = torch.where(mixed, most - least, 1.0)
    on_least = torch.where(mixed, most / width, 0.0)
    on_most = torch.where(mixed, -least / width, 0.0)
    weights = _shared(a == least, on_least) + _shared(a == most, on_most)
    weights = torch.where(mixed, weights, _shared(a == nearest, torch.ones_like(nearest)))
    return weights, torch.where(mixed, 0.0, nearest)


@torch.no_grad()
def mgda_weights(gradients: Tensor) -> Tensor:
    """argmin over the simplex of || sum_i c_i g_i ||, [n], of gradients [n, d].

    The point of a polytope that is nearest to 0, exactly, by Wolfe's active-set method (Finding the
    Nearest Point in a Polytope, 1976): a few linear systems of at most n unknowns, in float64.
    Where several weights give that point, one of them. Raises ShapeError and InputError.
    """
    if gradients.ndim != 2 or not len(gradients):
        raise ShapeError(f"gradients must be [n, d] with n >= 1, got {[*gradients.shape]}")
    if not bool(gradients.isfinite().all()):
        raise InputError("gradients must be finite to be balanced")
    # ||G' c|| = ||R c|| with the QR factor R of G': columns of at most n numbers instead of d
    points = torch.linalg.qr(gradients.detach().double().cpu().T, mode="r").R
    largest = points.norm(dim=0).max()
    active = [int(points.norm(dim=0).argmin())]
    weights = torch.zeros(points.shape[1], dtype=torch.float64)
    weights[active] = 1.0
    for _ in range(100 * len(weights)):  # far more than it takes: every round lowers the norm
        nearest = points @ weights
        # optimal when no point lies nearer to 0 than `nearest` does, along `nearest`
        along = points.T @ nearest
        best = int(along.argmin())
        if best in active or along[best] >= along @ weights - 1e-13 * largest * nearest.norm():
            break
        active.append(best)
        while True:
            # the nearest point to 0 of the plane through the active points
            first, others = points[:, active[:1]], points[:, active[1:]]
            shares = torch.linalg.lstsq(others - first, -first, driver="gelsd").solution[:, 0]
            wanted = torch.cat([1 - shares.sum(0, keepdim=True), shares])
            if bool((wanted > 0).all()):
                weights[active] = wanted
                break
            # outside the polytope: go towards it until a weight is 0, and drop that point
            current = weights[active]
            falling = wanted <= 0
            steps = torch.where(falling, current / (current - wanted), math.inf)
            weights[active] = current + steps.min() * (wanted - current)
            dropped = active.pop(int(steps.argmin()))
            weights[dropped] = 0.0
    return weights.to(gradients.device, full_precision(gradients).dtype)


def _shared(which: Tensor, amount: Tensor) -> Tensor:
    """An amount [...] shared equally among the marked entries of [n, ...]."""
    return which * (amount / which.sum(0).clamp_min(1))
