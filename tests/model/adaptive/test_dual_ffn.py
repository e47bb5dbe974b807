"""Duo-LLM: routes, the oracle against brute force, the controls of its advantage."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokenry.core.errors import InputError, ShapeError
from tokenry.model.adaptive.dual_ffn import (
    BIG,
    SKIP,
    SMALL,
    DuoLLM,
    RouteLosses,
    big_blocks,
    budget_loss,
    enumerate_routes,
    normal_minimum,
    oracle_routes,
    token_difficulty,
)

IDS = torch.randint(2, 64, (2, 9), generator=torch.Generator().manual_seed(0))
CLOSE = {"rtol": 1e-4, "atol": 2e-5}


@pytest.fixture
def duo(tiny_model):
    attached = DuoLLM(inner=5, skip=True).attach(copy.deepcopy(tiny_model))
    for weight in attached.own_parameters():
        weight.data.mul_(3)
    return attached


@torch.no_grad()
def logits(attached, ids=IDS, **options):
    return attached.model(ids, use_cache=False, **options).logits


def test_routes_are_all_there_once():
    counts = [len(enumerate_routes(4, budget)) for budget in range(5)]
    assert counts == [1, 4, 6, 4, 1]
    routes = enumerate_routes(4)
    assert len({tuple(route) for route in routes.tolist()}) == 16
    assert len(enumerate_routes(3, skip=True)) == 27
    assert len(enumerate_routes(3, 1, skip=True)) == 3 * 4
    assert big_blocks(torch.tensor([[BIG, SMALL, SKIP, BIG]])).tolist() == [2]
    with pytest.raises(InputError, match="budget of 5"):
        enumerate_routes(4, 5)


def test_one_route_for_all_is_the_plain_model_with_those_blocks(duo, tiny_model):
    with torch.no_grad():
        plain = tiny_model(IDS).logits
    assert torch.equal(logits(duo), plain)
    with duo.route("big"):
        assert torch.equal(logits(duo), plain)
    for kind in ("small", "skip"):
        model = copy.deepcopy(tiny_model)
        for layer, block in zip(model.model.layers, duo.wrappers(), strict=True):
            if kind == "small":
                layer.mlp = block.small
            else:
                layer.mlp.down_proj.weight.data.zero_()
        with duo.route(kind), torch.no_grad():
            torch.testing.assert_close(logits(duo), model(IDS).logits, **CLOSE)


def test_a_route_per_token_is_the_blocks_outputs_put_together(duo):
    routes = duo.random_routes((2, 9), torch.Generator().manual_seed(1))
    assert set(routes.unique().tolist()) == {SMALL, BIG, SKIP}
    block = duo.wrappers()[1]
    x = torch.randn(2, 9, 32, generator=torch.Generator().manual_seed(2))
    with duo.route(routes), torch.no_grad():
        found = block(x)
    route = routes[..., 1, None]
    with torch.no_grad():
        parts = block.base(x) * (route == BIG) + block.small(x) * (route == SMALL)
    torch.testing.assert_close(found, parts, **CLOSE)


def test_routes_of_a_wrong_shape_are_refused(duo):
    with pytest.raises(ShapeError, match="routes must be"), duo.route(torch.ones(2).long()):
        pass
    with (
        pytest.raises(ShapeError, match="the columns of this forward"),
        duo.route(torch.ones(2, 3, duo.layers).long()),
    ):
        logits(duo)
    with pytest.raises(InputError, match="none of big, small, skip"), duo.route("large"):
        pass
    with pytest.raises(InputError, match="tau"), duo.learned(tau=0):
        pass
    assert duo.state.routes is None  # a failure inside leaves no route behind
    with pytest.raises(InputError, match="inner"):
        DuoLLM(inner=0).attach(copy.deepcopy(duo.model))


@pytest.mark.parametrize("padding", ["none", "left", "right"])
def test_the_oracle_equals_recomputing_the_text_with_the_default_elsewhere(duo, padding):
    attention = torch.ones_like(IDS)
    if padding != "none":
        attention[1, : 3 if padding == "left" else 0] = 0
        attention[1, 9 if padding == "left" else 6 :] = 0
    ids = IDS * attention
    layers = duo.layers
    routes = enumerate_routes(layers, skip=True)[torch.tensor([0, 5, 7, 12, 26])]
    default = torch.tensor([BIG, SMALL, BIG, SKIP][:layers])
    found = oracle_routes(duo, ids, routes, attention, default)
    positions = (attention.cumsum(1) - 1).clamp_min(0)
    expected = torch.zeros(2, 9, len(routes))
    entropy = torch.zeros(2, 9, len(routes))
    for number, route in enumerate(routes):
        for t in range(8):
            chosen = default.expand(2, 9, layers).clone()
            chosen[:, t] = route
            with duo.route(chosen):
                after = logits(duo, ids, attention_mask=attention, position_ids=positions)[:, t]
            logprob = after.log_softmax(-1)
            expected[:, t + 1, number] = -logprob.gather(-1, ids[:, t + 1, None])[:, 0]
            entropy[:, t + 1, number] = torch.distributions.Categorical(logits=after).entropy()
    scored = found.scored
    assert int(scored.sum()) == {"none": 16, "left": 13, "right": 13}[padding]
    torch.testing.assert_close(found.loss[scored], expected[scored], **CLOSE)
    torch.testing.assert_close(found.entropy[scored], entropy[scored], **CLOSE)
    assert not found.loss[~scored].any()


def test_more_budget_is_never_worse_and_the_oracle_beats_every_pattern(duo):
    losses = oracle_routes(duo, IDS, enumerate_routes(duo.layers))
    best = torch.stack([losses.oracle(budget)[0] for budget in range(duo.layers + 1)])
    at_most = best.cummin(0).values
    assert bool((at_most[1:] <= at_most[:-1]).all())
    for budget in range(duo.layers + 1):
        loss, index = losses.oracle(budget)
        assert bool((big_blocks(losses.routes[index]) == budget).all())
        for place in losses.of_budget(budget):
            assert bool((loss <= losses.loss[..., place]).all())
        assert bool((loss <= losses.by_entropy(budget)).all())
        assert float(losses.usage(budget).sum()) == pytest.approx(budget)


def test_identical_blocks_make_all_routes_alike(tiny_model):
    attached = DuoLLM(inner=4).attach(copy.deepcopy(tiny_model))
    for block in attached.wrappers():
        block._modules["small"] = block.base
    losses = oracle_routes(attached, IDS)
    spread = losses.loss.amax(-1) - losses.loss.amin(-1)
    assert float(spread.max()) < 1e-4
    difficulty = token_difficulty(losses.loss[..., 0], losses.loss[..., -1])
    assert float(difficulty.abs().max()) < 1e-4


def test_token_difficulty_is_what_compute_gains():
    small, big = torch.tensor([3.0, 5.0]), torch.tensor([1.0, 5.0])
    assert token_difficulty(small, big).tolist() == [2.0, 0.0]


def test_budget_loss_is_zero_at_the_budget_and_pushes_layers_alike():
    probability = torch.rand(3, 2, 5, generator=torch.Generator().manual_seed(0))
    assert float(budget_loss(probability, float(probability.mean()))) < 1e-12
    probability.requires_grad_(True)
    loss = budget_loss(probability, 0.2)
    (gradient,) = torch.autograd.grad(loss, probability)
    delta = float(probability.mean().detach()) - 0.2
    torch.testing.assert_close(gradient, torch.full_like(gradient, 2 * delta / 30))


def test_routers_mix_softly_and_choose_hard(duo):
    block = duo.wrappers()[0]
    x = torch.randn(2, 4, 32, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        score = block.width_router(x)
        with duo.learned(tau=0.5, hard=False) as seen:
            soft = block(x)
        p = (score / 0.5).softmax(-1)
        expected = p[..., SMALL, None] * block.small(x) + p[..., BIG, None] * block.base(x)
        torch.testing.assert_close(soft, expected, **CLOSE)
        torch.testing.assert_close(seen[0], p)
        with duo.learned() as seen:
            hard = block(x)
        with duo.learned(tau=1e-6, hard=False):
            cold = block(x)
        torch.testing.assert_close(hard, cold, rtol=1e-3, atol=1e-3)
        with duo.learned() as seen:
            logits(duo)
    assert len(seen) == duo.layers
    assert seen[0].shape == (2, 9, 3)


def test_chance_alone_gives_the_expected_minimum():
    assert normal_minimum(1) == 0
    assert normal_minimum(2) == pytest.approx(-1 / math.sqrt(math.pi), abs=1e-6)
    assert normal_minimum(3) == pytest.approx(-1.5 / math.sqrt(math.pi), abs=1e-6)
    # losses that are noise: the oracle is as good as chance says. 4,000 tokens, standard error of
    # the mean of a minimum of six below 0.011: the tolerance is more than five of them
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(1, 4000, 6, generator=generator)
    routes = enumerate_routes(4, 2)
    losses = RouteLosses(routes, noise, noise.new_zeros(noise.shape), torch.ones(1, 4000).bool())
    oracle = float(losses.mean(losses.oracle(2)[0]))
    assert oracle == pytest.approx(normal_minimum(6), abs=0.06)
    # and so says the control, from the spread of the losses themselves
    assert float(losses.mean(losses.expected_minimum(2))) == pytest.approx(oracle, abs=0.08)
    assert abs(float(losses.mean(losses.by_entropy(2)))) < 0.1


def test_the_control_corrects_the_deviation_of_few_samples():
    """Worked: of two losses m +- d the deviation is d sqrt 2, which two normal samples show
    sqrt(2 / pi) of; their expected minimum is 1 / sqrt(pi) deviations below the mean. Together
    m - d, the smaller loss itself. Of 1, 2, 3: 2 - (2 / sqrt(pi)) (3 / 2) / sqrt(pi)."""
    three = RouteLosses(
        enumerate_routes(3, 1),
        torch.tensor([[[1.0, 2.0, 3.0]]]),
        torch.zeros(1, 1, 3),
        torch.ones(1, 1).bool(),
    )
    assert float(three.expected_minimum(1)) == pytest.approx(2 - 3 / math.pi, abs=1e-5)
    two = replace(three, routes=enumerate_routes(2, 1), loss=torch.tensor([[[1.0, 4.0]]]))
    assert float(two.expected_minimum(1)) == pytest.approx(1.0, abs=1e-5)


@given(st.integers(2, 30))
def test_the_expected_minimum_falls_with_the_number(count):
    assert normal_minimum(count + 1) < normal_minimum(count) < 0


def test_flops_count_the_blocks_that_a_route_takes(tiny_llama):
    duo = DuoLLM(inner=4).attach(copy.deepcopy(tiny_llama))
    big, small = 2 * 3 * 32 * 64, 2 * 3 * 32 * 4
    routes = torch.tensor([[BIG, BIG, BIG], [BIG, SMALL, SKIP]])
    assert duo.flops(routes).tolist() == [3 * big, big + small]


def test_generation_goes_on_under_a_route_and_in_half_precision(tiny_model):
    duo = DuoLLM(inner=4).attach(copy.deepcopy(tiny_model).to(torch.bfloat16))
    options = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None}
    with duo.route(torch.tensor([BIG, SMALL, BIG, SMALL][: duo.layers])):
        assert duo.model.generate(IDS, **options).shape == (2, 13)
    with duo.learned():
        assert duo.model.generate(IDS, **options).shape == (2, 13)
