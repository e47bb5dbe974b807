"""Informed routing: forecasters, then the routers that know where they fail.

    fit_forecasters         stage 1: closed form, reduced-rank ridge regression
    train_forecasters       the same by gradient descent, with the activation in between
    start_token_routers     stage 1b: routers learn to tell which tokens are forecast best
    train_token_routers     stage 2: routers, straight-through, towards a share of tokens that run

All functions that train return the loss of every step, and leave what they do not train as it was,
its `requires_grad` included.

Source: Informed Routing in LLMs: Smarter Token-Level Computation for Faster Inference (arXiv
2510.13831). Ours: the closed form.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, smooth_l1_loss

from tokenry.core.checks import in_range
from tokenry.core.errors import InputError
from tokenry.learn.fit import only_trainable
from tokenry.learn.recipes.language_loss import Batches, language_loss, optimise
from tokenry.model.adaptive.informed_routing import AttachedRouting
from tokenry.model.adaptive.routed_units import APPROXIMATE, FeatureForecaster, Record
from tokenry.model.adaptive.routing_report import recorded
from tokenry.model.adaptive.routing_rules import Sampled, lowest
from tokenry.model.adaptive.wrapping import batch_parts


@torch.no_grad()
def fit_forecasters(
    attached: AttachedRouting, batches: Iterable[Any], *, ridge: float = 1e-2
) -> None:
    """Set every forecaster to the best linear one of its rank, from one pass over the batches.

    With centred inputs X and updates Y of a unit: W = (X'X + c I)^-1 X'Y, c being `ridge` times the
    mean of the diagonal of X'X; then W V V' with V the top eigenvectors of W'(X'X)W. Needs
    activation="identity".
    """
    units = attached.units
    if not all(isinstance(unit.forecaster.activation, nn.Identity) for unit in units):
        raise InputError(
            "the closed form fits linear forecasters: attach InformedRouting(activation="
            "'identity'), or use train_forecasters"
        )
    sums: list[Any] = [None] * len(units)
    with attached.using(None):
        for batch in batches:
            for number, (record, real) in enumerate(recorded(attached, batch)):
                assert record.update is not None
                x, y = record.u[real].float(), record.update[real].float()
                # the mean of the first batch is taken away before squaring, against cancellation
                centre = (x.mean(0), y.mean(0)) if sums[number] is None else sums[number][0]
                x, y = x - centre[0], y - centre[1]
                parts = (x.T @ x, x.T @ y, x.sum(0), y.sum(0), torch.tensor(float(len(x))))
                parts = tuple(part.double() for part in parts)
                if sums[number] is not None:
                    former = sums[number][1]
                    parts = tuple(a + b for a, b in zip(former, parts, strict=True))
                sums[number] = (centre, parts)
    if sums[0] is None:
        raise InputError("there is no batch to fit forecasters to")
    for unit, ((x_centre, y_centre), (xx, xy, x_sum, y_sum, count)) in zip(
        units, sums, strict=True
    ):
        x_mean, y_mean = x_sum / count, y_sum / count
        xx = xx - count * x_mean.outer(x_mean)
        xy = xy - count * x_mean.outer(y_mean)
        forecaster: Any = unit.forecaster
        reduce, expand = reduced_rank_ridge(xx, xy, forecaster.reduce.out_features, ridge)
        bias = y_mean + y_centre - (x_mean + x_centre) @ reduce @ expand
        set_forecaster(forecaster, reduce, expand, bias)


def reduced_rank_ridge(xx: Tensor, xy: Tensor, rank: int, ridge: float) -> tuple[Tensor, Tensor]:
    """(A [d, r], B [r, d]) whose product is the ridge solution cut to the rank that loses least.

    Args:
        xx: X'X [d, d].
        xy: X'Y [d, d].
    """
    size = len(xx)
    loaded = xx + ridge * xx.diagonal().mean() * torch.eye(size, dtype=xx.dtype, device=xx.device)
    weight = torch.linalg.solve(loaded, xy)
    _, vectors = torch.linalg.eigh(weight.T @ xx @ weight)  # ascending
    top = vectors[:, -rank:]
    return weight @ top, top.T


def set_forecaster(
    forecaster: FeatureForecaster, reduce: Tensor, expand: Tensor, bias: Tensor
) -> None:
    """Weights u A B + bias; ranks beyond those of A stay empty."""
    given = reduce.shape[1]
    for layer in (forecaster.reduce, forecaster.expand):
        layer.weight.zero_()
        layer.bias.zero_()
    forecaster.reduce.weight[:given] = reduce.T.to(forecaster.reduce.weight)
    forecaster.expand.weight[:, :given] = expand.T.to(forecaster.expand.weight)
    forecaster.expand.bias.copy_(bias)


def train_forecasters(
    attached: AttachedRouting,
    batches: Batches,
    *,
    steps: int,
    learning_rate: float = 1e-3,
) -> list[float]:
    """Smooth L1 between LFF(u) and F(u) on the model's own data flow, all units at once."""
    units = attached.units

    def loss(step: int, batch: Any) -> Tensor:
        with attached.using(None), torch.no_grad():
            records = list(recorded(attached, batch))
        parts = []
        for unit, (record, real) in zip(units, records, strict=True):
            assert record.update is not None
            update = record.update[real].float()
            parts.append(smooth_l1_loss(unit.forecaster(record.u[real]).float(), update))
        return torch.stack(parts).sum()  # the units do not share weights: each has its own gradient

    weights = [weight for unit in units for weight in unit.forecaster.parameters()]
    return optimise(weights, loss, batches, steps, learning_rate, clip=None)


def start_token_routers(
    attached: AttachedRouting,
    batches: Batches,
    *,
    steps: int,
    share: float = 0.25,
    learning_rate: float = 2e-3,
) -> list[float]:
    """Cross-entropy to labels by rank: the `share` of a row's tokens that are forecast with the
    lowest error are approximated."""
    units = attached.units

    def loss(step: int, batch: Any) -> Tensor:
        with attached.using(None), torch.no_grad():
            records = list(recorded(attached, batch))
        parts = []
        for unit, (record, real) in zip(units, records, strict=True):
            assert record.update is not None
            error = record.update.float() - unit.forecaster(record.u).detach().float()
            label = lowest(error.norm(dim=-1), share, real).long() * APPROXIMATE
            parts.append(cross_entropy(unit.token_router(record.u)[real], label[real]))
        return torch.stack(parts).sum()

    return optimise(routers_of(attached), loss, batches, steps, learning_rate, clip=None)


def train_token_routers(
    attached: AttachedRouting,
    batches: Batches,
    *,
    sparsity: float,
    steps: int,
    learning_rate: float = 2e-3,
    weight: float = 8.0,
    turn_weight: float = 0.1,
    tau: tuple[float, float] = (5.0, 1.0),
    tune_forecasters: bool = False,
    seed: int = 0,
) -> list[float]:
    """L_LM + weight |(1 - sparsity) - rho| + turn_weight L_cos, the base frozen.

    rho: mean share of tokens that run, over units.

    Args:
        tau: of the Gumbel noise, falling linearly.
    """
    in_range("sparsity", sparsity, "[0, 1]")
    in_range("weight", weight, "[0, inf)")
    in_range("turn_weight", turn_weight, "[0, inf)")
    rule = Sampled(tau[0], torch.Generator().manual_seed(seed))

    def loss(step: int, batch: Any) -> Tensor:
        _, attention = batch_parts(batch)
        rule.tau = tau[0] + (tau[1] - tau[0]) * step / max(steps - 1, 1)
        with attached.using(rule), attached.recording(attention) as records:
            fit = language_loss(attached.model, batch)
        real = attention.bool()
        means = [record.execute[real].mean() for record in records]
        return fit + sparsity_loss(means, sparsity, weight) + turn_weight * turn_loss(records)

    weights = routers_of(attached)
    if tune_forecasters:
        weights += [one for unit in attached.units for one in unit.forecaster.parameters()]
    with only_trainable(attached.model, weights):
        return optimise(weights, loss, batches, steps, learning_rate)


def routers_of(attached: AttachedRouting) -> list[nn.Parameter]:
    return [weight for unit in attached.units for weight in unit.token_router.parameters()]


def sparsity_loss(execute: Sequence[Tensor], target: float, weight: float = 8.0) -> Tensor:
    """weight |(1 - target) - rho|, with rho the mean over units.

    Args:
        execute: the mean of g_0 of each unit.
        target: the share of tokens that are approximated.
    """
    rho = torch.stack([part.float() for part in execute]).mean()
    return weight * (1 - target - rho).abs()


def turn_loss(records: Sequence[Record]) -> Tensor:
    """Mean over units of sum g_1 (1 - cos(x, x + F(u))) / (sum g_1 + 1): what is approximated
    should not turn the residual much."""
    parts = []
    for record in records:
        assert record.turn is not None
        away = 1 - record.execute.float()
        parts.append((away * (1 - record.turn)).sum() / (away.sum() + 1))
    return torch.stack(parts).mean()
