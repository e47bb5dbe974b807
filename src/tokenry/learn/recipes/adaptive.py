"""Training of adaptive depth and width: schedules, routes, forecasters and routers.

    train_on_schedule       SkipDecode: fine-tune with every column at the depth it will have
    train_random_routes     Duo-LLM, stage 1: big and small blocks together, routes at random
    train_routers           Duo-LLM, stage 3: a router per layer under one global budget
    fit_forecasters         informed routing, stage 1: closed form, reduced-rank ridge regression
    train_forecasters       the same by gradient descent, with the activation in between
    start_token_routers     stage 1b: routers learn to tell which tokens are forecast best
    train_token_routers     stage 2: routers, straight-through, towards a share of tokens that run

A batch is ids [B, T], or a mapping with `input_ids` and, if wanted, `attention_mask` and `labels`;
a list of batches is gone through again and again. All functions return the loss of every step, and
leave what they do not train as it was, its `requires_grad` included.

Sources: arXiv 2307.02628 (SkipDecode), 2410.10846 (Duo-LLM), 2510.13831 (informed routing). The
closed form is ours, as is the annealing of Duo-LLM's temperature.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, smooth_l1_loss

from tokenry.core.checks import in_range
from tokenry.core.errors import InputError
from tokenry.learn.fit import cosine, fit, only_trainable
from tokenry.model import compat
from tokenry.model.adaptive.dual_ffn import BIG, AttachedDuo, budget_loss
from tokenry.model.adaptive.informed_routing import (
    APPROXIMATE,
    AttachedRouting,
    FeatureForecaster,
    Sampled,
    batch_parts,
    lowest,
    recorded,
    sparsity_loss,
    turn_loss,
)
from tokenry.model.adaptive.skipdecode import AttachedSkipDecode

Batches = Sequence[Any]


def train_on_schedule(
    attached: AttachedSkipDecode,
    batches: Batches,
    *,
    steps: int,
    learning_rate: float = 1e-4,
    prompt_columns: int = 0,
) -> list[float]:
    """Fine-tune the model with every column at the depth that decoding will give it."""

    def loss(step: int, batch: Any) -> Tensor:
        return language_loss(attached.model, batch, prompt_columns=prompt_columns)

    return optimise(trained(attached.model), loss, batches, steps, learning_rate)


def train_random_routes(
    attached: AttachedDuo,
    batches: Batches,
    *,
    steps: int,
    learning_rate: float = 1e-3,
    seed: int = 0,
) -> list[float]:
    """Train the model and the small blocks with independent random routes for every token and
    layer, so that every route works."""
    generator = torch.Generator().manual_seed(seed)

    def loss(step: int, batch: Any) -> Tensor:
        routes = attached.random_routes(tuple(batch_parts(batch)[0].shape), generator)
        with attached.route(routes):
            return language_loss(attached.model, batch)

    return optimise(trained(attached.model), loss, batches, steps, learning_rate)


def train_routers(
    attached: AttachedDuo,
    batches: Batches,
    *,
    budget: float,
    steps: int,
    learning_rate: float = 1e-2,
    weight: float = 10.0,
    tau: tuple[float, float] = (2.0, 0.2),
    hard: bool = False,
) -> list[float]:
    """Train the routers alone: L_LM + weight (mean P(big) - budget / L)^2.

    budget: big blocks per token. tau: temperature, from the first step to the last; the blocks are
    mixed by P, which low temperatures make nearly one choice.
    """
    target = budget / attached.layers
    in_range("weight", weight, "[0, inf)")
    in_range("budget", budget, f"[0, {attached.layers}]")  # the model's layers

    def loss(step: int, batch: Any) -> Tensor:
        at = step / max(steps - 1, 1)
        with attached.learned(tau[0] * (tau[1] / tau[0]) ** at, hard=hard) as seen:
            fit = language_loss(attached.model, batch)
        return fit + weight * budget_loss(torch.stack(seen)[..., BIG], target)

    routers = [weight for one in attached.wrappers() for weight in one.width_router.parameters()]
    with only_trainable(attached.model, routers):
        return optimise(routers, loss, batches, steps, learning_rate)


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
    xx: X'X [d, d]. xy: X'Y [d, d]."""
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

    rho: mean share of tokens that run, over units. tau: of the Gumbel noise, falling linearly.
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


def language_loss(model: Any, batch: Any, **options: Any) -> Tensor:
    """Mean loss of the next token over the real tokens but the first of each row; with `labels`
    in the batch, over those that are not -100."""
    ids, attention = batch_parts(batch)
    compat.require_left_padding(model, attention)
    output = model(input_ids=ids, attention_mask=attention, use_cache=False, **options)
    real = attention.bool()
    scored = real[:, 1:] & real[:, :-1]
    if not isinstance(batch, Tensor) and "labels" in batch:
        scored = scored & (batch["labels"][:, 1:] != -100)
    return cross_entropy(output.logits[:, :-1][scored].float(), ids[:, 1:][scored])


def optimise(
    weights: Iterable[nn.Parameter],
    loss_of: Callable[[int, Any], Tensor],
    batches: Batches,
    steps: int,
    learning_rate: float,
    clip: float | None = 1.0,
) -> list[float]:
    """Adam with a cosine that ends at a tenth of the learning rate; the loss of every step."""
    in_range("steps", steps, "[1, inf)", integer=True)
    if not len(batches):
        raise InputError("training needs batches; there are none")
    return fit(
        lambda step, _: loss_of(step, batches[step % len(batches)]),
        weights,
        steps=steps,
        learning_rate=learning_rate,
        schedule=cosine(end=0.1),
        optimizer=torch.optim.Adam,
        clip=clip,
    )


def trained(model: Any) -> list[nn.Parameter]:
    return [weight for weight in model.parameters() if weight.requires_grad]
