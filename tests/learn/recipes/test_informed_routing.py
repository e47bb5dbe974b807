"""Informed routing: the closed form is the best of its rank, routers keep their share."""

import copy

import pytest
import torch
from torch import nn

from tokenry.core.errors import InputError
from tokenry.learn.recipes.informed_routing import (
    fit_forecasters,
    reduced_rank_ridge,
    set_forecaster,
    start_token_routers,
    train_forecasters,
    train_token_routers,
)
from tokenry.model.adaptive.informed_routing import InformedRouting
from tokenry.model.adaptive.routed_units import FeatureForecaster
from tokenry.model.adaptive.routing_report import routing_report
from tokenry.model.adaptive.routing_rules import Learned


def batches_of(count=2, rows=8, length=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(2, 64, (rows, length), generator=generator) for _ in range(count)]


def weights_of(model):
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


def moved(model, before):
    return {name for name, weight in model.named_parameters() if not weight.equal(before[name])}


def test_a_linear_unit_of_low_rank_is_forecast_exactly():
    """F(u) = A u + b with rank(A) <= r: zero error; with a smaller r, the tail of the singular
    values of the whitened map, as Eckart and Young have it."""
    generator = torch.Generator().manual_seed(0)
    d, rank = 10, 4
    a = torch.randn(d, rank, generator=generator, dtype=torch.double)
    a = a @ torch.randn(rank, d, generator=generator, dtype=torch.double)
    x = torch.randn(300, d, generator=generator, dtype=torch.double)
    x = x - x.mean(0)
    y = x @ a
    for kept in (2, 4, 7):
        reduce, expand = reduced_rank_ridge(x.T @ x, x.T @ y, kept, ridge=0.0)
        error = float((y - x @ reduce @ expand).square().sum())
        tail = float(torch.linalg.svdvals(y)[kept:].square().sum())
        assert error == pytest.approx(tail, abs=1e-8)
    forecaster = FeatureForecaster(d, 6, "identity").double()
    bias = torch.randn(d, generator=generator, dtype=torch.double)
    with torch.no_grad():
        set_forecaster(forecaster, *reduced_rank_ridge(x.T @ x, x.T @ y, 4, 0.0), bias)
        torch.testing.assert_close(forecaster(x), y + bias)


def test_the_closed_form_is_the_best_of_its_rank_on_every_unit(tiny_model):
    """Full rank, hardly any ridge: the residual is that of least squares with an intercept; and
    batches, padding and offsets do not matter."""
    attached = InformedRouting(rank=32, activation="identity").attach(copy.deepcopy(tiny_model))
    batches = batches_of(2, 8, 20)
    attention = torch.ones_like(batches[1])
    attention[0, :9] = 0
    fit_forecasters(
        attached, [batches[0], {"input_ids": batches[1], "attention_mask": attention}], ridge=1e-9
    )
    collected = []
    for ids, real in ((batches[0], torch.ones_like(attention)), (batches[1], attention)):
        with attached.recording(real) as records, torch.no_grad():
            attached.model(ids, attention_mask=real, use_cache=False)
        keep = real.bool()
        collected.append([(one.u[keep].double(), one.update[keep].double()) for one in records])
    for number, unit in enumerate(attached.units):
        u = torch.cat([part[number][0] for part in collected])
        y = torch.cat([part[number][1] for part in collected])
        ones = torch.cat([u, torch.ones(len(u), 1, dtype=torch.double)], dim=1)
        best = (y - ones @ torch.linalg.lstsq(ones, y, driver="gelsd").solution).square().sum()
        with torch.no_grad():
            error = (y - unit.forecaster.double()(u)).square().sum()
        assert float(error) == pytest.approx(float(best), rel=1e-3, abs=1e-6 * float(y.norm()) ** 2)


def test_both_fits_beat_skipping_and_leave_the_base_alone(tiny_llama):
    batches = batches_of()
    for activation in ("identity", "silu"):
        attached = InformedRouting(rank=8, activation=activation).attach(copy.deepcopy(tiny_llama))
        before = weights_of(attached.model)
        if activation == "identity":
            fit_forecasters(attached, batches)
        else:
            losses = train_forecasters(attached, batches, steps=40, learning_rate=1e-2)
            assert losses[-1] < losses[0]
            with pytest.raises(InputError, match="identity"):
                fit_forecasters(attached, batches)
        assert all("forecaster" in name for name in moved(attached.model, before))
        with attached.recording() as records, torch.no_grad():
            attached.model(batches[0], use_cache=False)
        for unit, record in zip(attached.units, records, strict=True):
            with torch.no_grad():
                error = (record.update - unit.forecaster(record.u)).square().mean()
            assert float(error) < float(record.update.square().mean())
    with pytest.raises(InputError, match="no batch"):
        fit_forecasters(
            InformedRouting(activation="identity").attach(copy.deepcopy(tiny_llama)), []
        )


def test_routers_reach_the_sparsity_and_freeze_the_base(tiny_llama):
    attached = InformedRouting(rank=8, activation="identity").attach(copy.deepcopy(tiny_llama))
    batches = batches_of()
    fit_forecasters(attached, batches)
    before = weights_of(attached.model)
    attached.model.model.norm.weight.requires_grad_(False)
    required = {name: weight.requires_grad for name, weight in attached.model.named_parameters()}
    start_token_routers(attached, batches, steps=10, share=0.25)
    assert all("token_router" in name for name in moved(attached.model, before))
    train_token_routers(attached, batches, sparsity=0.4, steps=80, learning_rate=2e-2)
    assert all("token_router" in name for name in moved(attached.model, before))
    now = {name: weight.requires_grad for name, weight in attached.model.named_parameters()}
    assert now == required
    for name, weight in attached.model.named_parameters():
        if "token_router" not in name:
            assert weight.grad is None
    attached.rule = Learned()
    report = routing_report(attached, batches)
    rate = sum(unit.execute_rate for unit in report) / len(report)
    assert rate == pytest.approx(0.6, abs=0.12)
    with pytest.raises(InputError, match="sparsity"):
        train_token_routers(attached, batches, sparsity=1.5, steps=1)


def test_forecasters_are_tuned_when_asked(tiny_llama):
    attached = InformedRouting(rank=4).attach(copy.deepcopy(tiny_llama))
    before = weights_of(attached.model)
    train_token_routers(attached, batches_of(1), sparsity=0.5, steps=2, tune_forecasters=True)
    changed = moved(attached.model, before)
    assert any("forecaster" in name for name in changed)
    assert all("forecaster" in name or "token_router" in name for name in changed)


def test_linear_forecasters_have_no_activation():
    assert isinstance(FeatureForecaster(4, 2, "identity").activation, nn.Identity)
    assert isinstance(FeatureForecaster(4, 2).activation, nn.SiLU)
