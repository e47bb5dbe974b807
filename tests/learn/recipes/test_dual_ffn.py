"""Duo-LLM: random routes make small blocks useful, routers keep to one budget."""

import copy

import pytest
import torch

from tokenry.core.errors import InputError
from tokenry.learn.recipes.dual_ffn import train_random_routes, train_routers
from tokenry.learn.recipes.language_loss import language_loss
from tokenry.model.adaptive.dual_ffn import BIG, DuoLLM


def batches_of(count=2, rows=8, length=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(2, 64, (rows, length), generator=generator) for _ in range(count)]


def weights_of(model):
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


def moved(model, before):
    return {name for name, weight in model.named_parameters() if not weight.equal(before[name])}


def test_random_routes_make_small_blocks_useful(tiny_llama):
    attached = DuoLLM(inner=8).attach(copy.deepcopy(tiny_llama))
    batches = [ids % 8 + 2 for ids in batches_of(2)]
    with torch.no_grad(), attached.route("small"):
        untrained = float(language_loss(attached.model, batches[0]))
    losses = train_random_routes(attached, batches, steps=40, learning_rate=3e-3)
    assert losses[-1] < losses[0]
    for kind in ("small", "big"):
        with torch.no_grad(), attached.route(kind):
            assert float(language_loss(attached.model, batches[0])) < untrained
    again = DuoLLM(inner=8).attach(copy.deepcopy(tiny_llama))
    assert train_random_routes(again, batches, steps=3) == pytest.approx(
        train_random_routes(DuoLLM(inner=8).attach(copy.deepcopy(tiny_llama)), batches, steps=3)
    )


@pytest.mark.parametrize("budget", [1, 2])
def test_routers_keep_to_one_global_budget(tiny_llama, budget):
    attached = DuoLLM(inner=8).attach(copy.deepcopy(tiny_llama))
    batches = batches_of()
    before = weights_of(attached.model)
    train_routers(attached, batches, budget=budget, steps=60, learning_rate=5e-2, weight=100.0)
    assert all("width_router" in name for name in moved(attached.model, before))
    with attached.learned(tau=0.2, hard=False) as seen, torch.no_grad():
        attached.model(batches[0], use_cache=False)
    share = float(torch.stack(seen)[..., BIG].mean())
    assert share == pytest.approx(budget / 3, abs=0.1)
    with pytest.raises(InputError, match="budget"):
        train_routers(attached, batches, budget=4, steps=1)
