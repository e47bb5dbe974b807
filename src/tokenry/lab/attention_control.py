"""Control of an attention head: how near do k free rows before given ones bring its outputs?

What `measure.audit.reachability` says cannot be reached is searched for by gradient descent.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tokenry.learn.fit import fit
from tokenry.measure.audit.reachability import attention_unreachability_bound

NORM = 0.4  # of a control row, at most


def distance(
    control: Tensor, x0: Tensor, wq: Tensor, wk: Tensor, wv: Tensor, wanted: Tensor
) -> Tensor:
    """How far the outputs are from any multiple of the wanted ones, at the worst position, [R].

    Args:
        control: [R, k, d], rows before x0 [m, d]; those longer than `NORM` are shortened to it.
        wq: weights of the head, [d, d_k], [d, d_k], [d, d_v].
        wk: weights of the head, [d, d_k], [d, d_k], [d, d_v].
        wv: weights of the head, [d, d_k], [d, d_k], [d, d_v].
        wanted: [m, d_v].
    """
    size = control.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    rows = control * (NORM / size).clamp(max=1.0)
    keys = torch.cat([rows, x0.expand(len(rows), -1, -1)], 1)
    scores = (x0 @ wq) @ (keys @ wk).mT / math.sqrt(wk.shape[1])
    output = scores.softmax(-1) @ (keys @ wv)  # [R, m, d_v]
    along = (output * wanted).sum(-1, keepdim=True) / wanted.square().sum(-1, keepdim=True)
    return (output - along * wanted).norm(dim=-1).amax(-1)


def bound_ratio(seed: int, restarts: int = 100, updates: int = 100) -> float:
    """How near control below the bound comes to a random head's wanted outputs, as a share of the
    distance without control; infinite where a single row is not excluded."""
    draw = torch.Generator().manual_seed(seed)
    head = x0, wq, wk, wv, wanted = [
        torch.randn(rows, 4, generator=draw, dtype=torch.float64) * size
        for rows, size in ((3, 1.0), (4, 0.3), (4, 0.3), (4, 1.0), (3, 1.0))
    ]
    least = float(attention_unreachability_bound(x0, wq, wk, wv, wanted, NORM).max())
    if least <= 1:
        return math.inf
    k = max(1, math.ceil(least) - 1)
    control = torch.randn(restarts, k, 4, generator=draw, dtype=torch.float64).requires_grad_()
    adam = torch.optim.Adam
    fit(
        lambda step, _: distance(control, *head).sum(),
        [control],
        steps=updates,
        learning_rate=0.05,
        optimizer=adam,
        clip=None,
    )
    with torch.no_grad():
        free = distance(control[:1] * 0, *head)
        return float(distance(control, *head).min() / free[0])
