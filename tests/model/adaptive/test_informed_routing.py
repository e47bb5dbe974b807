"""Informed routing: gates, forecasts in place of units, what padding and rules may not change."""

import copy

import pytest
import torch

from tokenry.core.errors import InputError
from tokenry.learn.recipes.informed_routing import fit_forecasters, sparsity_loss, turn_loss
from tokenry.model.adaptive.informed_routing import InformedRouting
from tokenry.model.adaptive.routed_units import FeatureForecaster, TokenRouter
from tokenry.model.adaptive.routing_report import routing_report
from tokenry.model.adaptive.routing_rules import Learned, Lowest, Sampled, lowest, oracle_route
from tokenry.model.adaptive.wrapping import linear_flops

IDS = torch.randint(2, 64, (2, 12), generator=torch.Generator().manual_seed(0))
CLOSE = {"rtol": 1e-4, "atol": 2e-5}


class Given:
    """A rule that runs the tokens it is told to."""

    def __init__(self, execute, needs_update=False):
        self.execute, self.needs_update = execute, needs_update

    def __call__(self, unit, u, update, real):
        return self.execute


@pytest.fixture
def routed(tiny_model):
    model = copy.deepcopy(tiny_model)
    generator = torch.Generator().manual_seed(1)
    for name, weight in model.named_parameters():
        if "layernorm" in name:  # behind an untrained norm all updates are of one size
            weight.data.add_(torch.randn(weight.shape, generator=generator) / 2)
    attached = InformedRouting(rank=6, hidden=8).attach(model)
    for weight in attached.own_parameters():
        weight.data.normal_(std=0.3, generator=generator)
    return attached


@torch.no_grad()
def logits(attached, ids=IDS, **options):
    return attached.model(ids, use_cache=False, **options).logits


def some(share=0.5, seed=2):
    return torch.rand(2, 12, generator=torch.Generator().manual_seed(seed)) > share


def test_running_everywhere_is_the_base_model(routed):
    plain = of_the_base(routed)
    everything = torch.ones(2, 12)
    for rule in (None, Given(everything.bool()), Given(everything, True), Lowest("error", 0.0)):
        with routed.using(rule):
            torch.testing.assert_close(logits(routed), plain, **CLOSE)
    assert not torch.allclose(logits(routed), _under(routed, Learned()), atol=1e-2)


def of_the_base(attached):
    model = copy.deepcopy(attached)
    model.remove()
    with torch.no_grad():
        return model.model(IDS, use_cache=False).logits


def _under(attached, rule, mode=None, **options):
    with attached.using(rule, mode):
        return logits(attached, **options)


def test_forecasters_of_zero_are_skipping(routed):
    for unit in routed.units:
        for weight in unit.forecaster.parameters():
            weight.data.zero_()
    for rule in (Given(some()), Given(some().float(), True)):
        approximate = _under(routed, rule)
        torch.testing.assert_close(approximate, _under(routed, rule, "skip"), **CLOSE)


def test_perfect_forecasters_make_every_routing_the_base(routed):
    """The forecaster is replaced by the unit itself (its feed-forward blocks: attention mixes)."""
    plain = of_the_base(routed)

    class Exact(torch.nn.Module):
        def __init__(self, unit):
            super().__init__()
            self.unit = (unit,)

        def forward(self, u):
            return self.unit[0].normed(self.unit[0].base(u))

    for unit in routed.units:
        if unit.location.kind == "mlp":
            unit._modules["forecaster"] = Exact(unit)
    attention = [unit for unit in routed.units if unit.location.kind == "attention"]

    class OnlyBlocks(Given):
        def __call__(self, unit, u, update, real):
            return torch.ones_like(self.execute) if unit in attention else self.execute

    for execute in (some(), torch.zeros(2, 12).bool(), some().float()):
        rule = OnlyBlocks(execute, execute.dtype != torch.bool)
        torch.testing.assert_close(_under(routed, rule), plain, **CLOSE)
    # and attention, whose exact output is remembered from the base's own flow
    with routed.recording() as records:
        logits(routed)
    for unit, record in zip(routed.units, records, strict=True):
        unit._modules["forecaster"] = Constant(record.update)
    none = Given(torch.zeros(2, 12).bool(), True)
    torch.testing.assert_close(_under(routed, none), plain, **CLOSE)


class Constant(torch.nn.Module):
    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, u):
        return self.value.view(u.shape)


def test_a_unit_is_its_output_or_the_forecast_token_by_token(routed):
    """Hard masks, computed for the chosen tokens only, equal the gates' weighted sum."""
    execute = some()
    hard, soft = _under(routed, Given(execute)), _under(routed, Given(execute.float(), True))
    torch.testing.assert_close(hard, soft, **CLOSE)
    hard = _under(routed, Given(execute), "skip")
    torch.testing.assert_close(hard, _under(routed, Given(execute.float(), True), "skip"), **CLOSE)


def test_blocks_run_for_the_chosen_tokens_only(routed):
    counted = []
    for unit in routed.units:
        if unit.location.kind == "mlp":
            unit.base.register_forward_hook(
                lambda module, args, output: counted.append(output.numel() // 32)
            )
    execute = some()
    _under(routed, Given(execute))
    assert counted == [int(execute.sum())] * len(counted)


def test_straight_through_gates(routed):
    """One-hot forwards, gradients to routers, and none to the base when it is frozen."""
    unit = routed.units[1]
    u = torch.randn(2, 12, 32, generator=torch.Generator().manual_seed(3))
    rule = Sampled(2.0, torch.Generator().manual_seed(4))
    gate = rule(unit, u, None, torch.ones(2, 12).bool())
    torch.testing.assert_close(gate.detach(), gate.detach().round())
    assert {0.0, 1.0} == set(gate.detach().round().unique().tolist())
    (gradient,) = torch.autograd.grad(gate.sum(), unit.token_router.outer.weight)
    assert bool(gradient.any())
    own = {id(weight) for weight in routed.own_parameters()}
    for weight in routed.model.parameters():
        weight.requires_grad_(id(weight) in own)
    with routed.using(Sampled(1.0, torch.Generator().manual_seed(5))):
        routed.model(IDS, labels=IDS, use_cache=False).loss.backward()
    for weight in routed.model.parameters():
        assert (weight.grad is not None) == (id(weight) in own)
    for unit in routed.units:
        assert bool(unit.token_router.inner.weight.grad.any())


def test_noise_of_the_gates_is_gumbel(routed):
    """P(execute) is the softmax of the logits at any temperature: 20,000 draws, five standard
    errors."""
    unit = routed.units[0]
    u = torch.randn(1, 1, 32, generator=torch.Generator().manual_seed(6)).expand(1, 20000, 32)
    expected = float(unit.token_router(u[:, :1]).softmax(-1)[0, 0, 0].detach())
    gate = Sampled(3.0, torch.Generator().manual_seed(7))(unit, u, None, None)
    assert float(gate.detach().mean()) == pytest.approx(expected, abs=5 * 0.5 / 20000**0.5)


def test_sparsity_loss_is_zero_at_the_target_with_equal_slopes():
    means = [torch.tensor(value, requires_grad=True) for value in (0.9, 0.6, 0.8, 0.7)]
    assert float(sparsity_loss(means, 0.25)) == pytest.approx(0, abs=1e-6)
    for target, sign in ((0.5, 1), (0.1, -1)):
        gradients = torch.autograd.grad(sparsity_loss(means, target), means)
        assert [float(one) for one in gradients] == pytest.approx([sign * 8 / 4] * 4)
    assert float(sparsity_loss(means, 0.5, weight=2.0)) == pytest.approx(0.5)


def test_turn_loss_weighs_what_is_approximated(routed):
    execute = some().float()
    with routed.using(Given(execute, True)), routed.recording() as records:
        logits(routed)
    parts = []
    for record in records:
        away = 1 - execute
        parts.append((away * (1 - record.turn)).sum() / (away.sum() + 1))
    torch.testing.assert_close(turn_loss(records), torch.stack(parts).mean())
    # the cosine is that of the residual before and after the unit
    x = routed.model.get_input_embeddings()(IDS)
    cosine = torch.cosine_similarity(x, x + records[0].update, dim=-1)
    torch.testing.assert_close(records[0].turn, cosine.detach(), rtol=1e-4, atol=1e-5)


def test_the_lowest_share_of_each_row_is_chosen_among_real_tokens():
    score = torch.tensor([[3.0, 1.0, 2.0, 4.0], [1.0, 2.0, 3.0, 0.0]])
    real = torch.tensor([[True] * 4, [False, False, True, True]])
    assert lowest(score, 0.5, real).tolist() == [[False, True, True, False], [False] * 3 + [True]]
    assert oracle_route(score, 0.25).tolist() == [[True, False, True, True], [True] * 3 + [False]]
    for wrong in (("errors", 0.5), ("error", 1.5)):
        with pytest.raises(InputError, match=r"Lowest\."):
            Lowest(*wrong)


def test_left_padding_and_the_order_of_rows_change_nothing(routed):
    attention = torch.ones_like(IDS)
    attention[1, :5] = 0
    ids = IDS * attention
    positions = (attention.cumsum(1) - 1).clamp_min(0)
    inputs = {"attention_mask": attention, "position_ids": positions}
    for rule in (Learned(), Lowest("error", 0.5), Lowest("update", 0.5)):
        with routed.using(rule):
            with routed.recording(attention):
                batch = logits(routed, ids, **inputs)
            with routed.recording(attention.flip(0)):
                flipped = {name: part.flip(0) for name, part in inputs.items()}
                mixed = logits(routed, ids.flip(0), **flipped)
            alone = logits(routed, ids[1:, 5:])
        torch.testing.assert_close(mixed.flip(0)[0], batch[0], **CLOSE)
        torch.testing.assert_close(alone[0], batch[1, 5:], **CLOSE)


def test_generation_under_learned_routers_is_the_teacher_forced_one(routed):
    options = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None}
    routed.rule = Learned()
    found = routed.model.generate(IDS, **options)
    whole = logits(routed, found[:, :-1])
    assert torch.equal(whole[:, -5:].argmax(-1), found[:, -5:])


def test_oracle_learned_random_errors_at_the_same_rate(tiny_model):
    """At an equal execute rate: oracle <= learned <= random in the error of what is forecast."""
    from tokenry.learn.recipes.informed_routing import start_token_routers

    attached = InformedRouting(rank=4, activation="identity").attach(copy.deepcopy(tiny_model))
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randint(2, 64, (8, 24), generator=generator) for _ in range(2)]
    fit_forecasters(attached, batches)
    start_token_routers(attached, batches, steps=60, share=0.3, learning_rate=1e-2)
    with attached.recording() as records, torch.no_grad():
        attached.model(batches[0], use_cache=False)
    oracle = learned = random = 0.0
    for unit, record in zip(attached.units, records, strict=True):
        with torch.no_grad():
            error = (record.update - unit.forecaster(record.u)).norm(dim=-1)
            score = unit.token_router(record.u)
        real = torch.ones_like(error).bool()
        away = lowest(score[..., 0] - score[..., 1], 0.3, real)
        best = ~oracle_route(error, 0.3)
        assert float(error[best].sum()) <= float(error[away].sum()) + 1e-4
        oracle += float(error[best].mean())
        learned += float(error[away].mean())
        random += float(error.mean())
    assert oracle < learned < random


def test_the_report_counts_real_tokens(routed):
    attention = torch.ones_like(IDS)
    attention[1, :6] = 0
    batch = {"input_ids": IDS, "attention_mask": attention}
    routed.rule = Lowest("error", 0.5)
    report = routing_report(routed, [batch, batch])
    assert [(unit.layer, unit.kind) for unit in report] == [
        (unit.location.layer, unit.location.kind) for unit in routed.units
    ]
    assert all(unit.execute_rate == pytest.approx(0.5) for unit in report)
    with pytest.raises(InputError, match="no batch"):
        routing_report(routed, [])
    routed.rule = None
    with routed.recording() as records:
        logits(routed)
    real, record, unit = attention.bool(), records[0], routed.units[0]
    # u of the padded batch differs from that without padding: the report is asked with none
    report = routing_report(routed, [IDS])[0]
    y = record.update.flatten(0, 1)
    error = y - unit.forecaster(record.u).detach().flatten(0, 1)
    r2 = 1 - error.square().sum() / (y - y.mean(0)).square().sum()
    assert report.r2 == pytest.approx(float(r2), rel=1e-3)
    assert report.execute_rate == 1
    assert report.error == pytest.approx(float((error.norm(dim=-1) / y.norm(dim=-1)).mean()), 1e-3)
    assert bool(real.any())


def test_flops_of_routers_and_forecasters_are_paid(tiny_llama):
    attached = InformedRouting(rank=4, hidden=8).attach(copy.deepcopy(tiny_llama))
    router, forecaster = 2 * (32 * 8 + 8 * 2), 2 * 2 * 32 * 4
    attention, block = 2 * (2 * 32 * 32 + 2 * 32 * 16), 2 * 3 * 32 * 64
    scores, shared = 4 * 10 * 32, 2 * 2 * 32 * 16
    assert linear_flops(attached.units[0].token_router) == router
    saved = attached.flops_saved([0.25] * 6, context=10)
    assert saved.dense == 3 * (attention + scores + block)
    needed = shared + 0.25 * (attention - shared + scores) + 0.25 * block
    assert saved.needed == pytest.approx(3 * (needed + 2 * router + 2 * 0.75 * forecaster))
    assert saved.spent > saved.needed
    assert attached.flops_saved([1.0] * 6, context=10).saved < 0


def test_new_weights_start_as_skipping_and_bad_settings_are_refused():
    forecaster = FeatureForecaster(16, 4)
    u = torch.randn(3, 16, generator=torch.Generator().manual_seed(0))
    assert float(forecaster(u).abs().max()) < 1e-4
    assert TokenRouter(16, 8)(u.bfloat16()).dtype == torch.float32
    for wrong in ({"rank": 0}, {"mode": "drop"}, {"activation": "relu"}, {"hidden": 0}):
        with pytest.raises(InputError):
            InformedRouting(**wrong)


def test_half_precision(tiny_model):
    attached = InformedRouting(rank=4).attach(copy.deepcopy(tiny_model).to(torch.bfloat16))
    plain = logits(attached)
    with attached.using(Given(some())):
        assert logits(attached).dtype == plain.dtype == torch.bfloat16


@pytest.mark.parametrize("by", ["error", "update"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_counts_in_no_share_outside_of_recordings_too(routed, by, side):
    model, columns = routed.model, slice(5, None) if side == "left" else slice(0, 7)
    attention = torch.ones_like(IDS)
    attention[1] = 0
    attention[1, columns] = 1
    positions = (attention.cumsum(1) - 1).clamp_min(0)
    routed.rule = Lowest(by, 0.4)
    with torch.no_grad():
        both = model(IDS, attention_mask=attention, position_ids=positions, use_cache=False)
        alone = model(IDS[1:, columns], use_cache=False)
    torch.testing.assert_close(both.logits[1, columns], alone.logits[0], **CLOSE)
    assert all(unit.state.seen is None for unit in routed.units)
    routed.remove()
    assert not model._forward_pre_hooks
    assert not model._forward_hooks


def test_a_method_that_chooses_tokens_before_it_is_refused(tiny_llama):
    import copy

    from tokenry.core.errors import ModelError
    from tokenry.model.adaptive.dual_ffn import DuoLLM

    model = copy.deepcopy(tiny_llama)
    ids = torch.arange(5, 17)[None]
    routing = InformedRouting(rank=2, activation="identity").attach(model)
    duo = DuoLLM(inner=8).attach(model)
    routes = torch.zeros(1, 12, model.config.num_hidden_layers, dtype=torch.long)
    routes[:, ::2] = 1
    with duo.route(routes), pytest.raises(ModelError, match="another method chooses tokens"):
        model(ids, attention_mask=torch.ones_like(ids))
    assert routing.model is model
