"""SparsePO against its paper: TDPO1 and DPO as special masks, gradients of masks, dead starts."""

import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenry.core.batch import TokenBatch
from tokenry.core.divergence import divergence
from tokenry.core.divergences import FORWARD_KL
from tokenry.core.errors import InputError, UnknownNameError
from tokenry.core.scores import Scores
from tokenry.learn.objective import objective
from tokenry.learn.preference.dpo import DPO
from tokenry.learn.preference.sparsepo import SparsePO
from tokenry.learn.preference.tdpo import TDPO
from tokenry.learn.preference.token_masks import (
    ActivationMask,
    LearnedMask,
    MaskedKL,
    TokenMask,
    activation_mask,
    mask_sparsity,
)
from tokenry.learn.preference.weighted import PreferenceObjective

PAIRS, LENGTH, V, D, BLOCKS = 2, 4, 5, 6, 3
CONFIG = SimpleNamespace(hidden_size=D, num_hidden_layers=BLOCKS)
MODEL = SimpleNamespace(config=SimpleNamespace(get_text_config=lambda: CONFIG))


class FixedMask(torch.nn.Module):
    """Stands in for the mask network: a table of weights."""

    def __init__(self, values):
        super().__init__()
        self.values = torch.nn.Parameter(values.clone())

    def forward(self, hidden_states, mask):
        return self.values


def case(seed=0):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(V, (2 * PAIRS, LENGTH + 1), generator=generator).tolist()
    lengths = [4, 2, 3, 4]
    targets = [[False] + [t < n for t in range(LENGTH)] for n in lengths]
    batch = TokenBatch.from_ids(ids, targets, group=[*range(PAIRS)] * 2)
    shape = (*batch.shape, V)
    logits = [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2)]
    states = tuple(
        torch.randn(*batch.shape, D, generator=generator, dtype=torch.float64)
        for _ in range(BLOCKS)
    )
    return batch, *logits, states


def scores_of(batch, policy, reference, states):
    def logprob(logits):
        taken = logits.log_softmax(-1).gather(-1, batch.ids[..., None])[..., 0]
        return torch.where(batch.target, taken, torch.nan)

    kl = divergence(reference, policy, FORWARD_KL)
    own = Scores(
        batch.ids,
        batch.target,
        logprob=logprob(policy),
        divergence=torch.where(batch.target, kl, torch.nan),
    )
    return own, Scores(batch.ids, batch.target, logprob=logprob(reference), hidden_states=states)


def fixed(batch, reward, kl=None):
    reward = torch.as_tensor(reward, dtype=torch.float64).expand(batch.shape)
    kl = reward if kl is None else torch.as_tensor(kl, dtype=torch.float64).expand(batch.shape)
    return torch.nn.ModuleDict({"reward": FixedMask(reward), "kl": FixedMask(kl)})


def value_and_gradient(objective, batch, policy, reference, states, **others):
    leaf = policy.clone().requires_grad_()
    loss = objective(batch, *scores_of(batch, leaf, reference, states), **others).loss
    return loss.detach(), torch.autograd.grad(loss, leaf)[0]


@pytest.mark.parametrize(
    ("reward", "kl", "other"),
    [(1.0, 1.0, TDPO(0.4, variant="tdpo1")), (1.0, 0.0, DPO(0.4))],
    ids=["tdpo1", "dpo"],
)
def test_masks_of_ones_are_tdpo1_and_without_the_kl_mask_dpo(reward, kl, other):
    """In value and gradient: the chosen KL is not stopped."""
    given_case = case()
    modules = fixed(given_case[0], reward, kl)
    found = value_and_gradient(SparsePO(0.4), *given_case, modules=modules)
    torch.testing.assert_close(found, value_and_gradient(other, *given_case))


def test_a_mask_of_zeros_gives_ln_2_and_teaches_the_policy_nothing():
    given_case = case()
    modules = fixed(given_case[0], 0.0)
    loss, gradient = value_and_gradient(SparsePO(0.4), *given_case, modules=modules)
    assert float(loss) == pytest.approx(math.log(2))
    assert (gradient == 0).all()


def test_gradients_of_the_masks_are_the_closed_forms():
    """d loss / d m_u = -/+ sigmoid(-beta h) beta rho / B + l_u, the same with k for m_d."""
    batch, policy, reference, states = case(1)
    beta, generator = 0.6, torch.Generator().manual_seed(3)
    masks = torch.rand(2, *batch.shape, generator=generator, dtype=torch.float64)
    modules = fixed(batch, *masks)
    own, frozen = scores_of(batch, policy, reference, states)
    objective = SparsePO(beta, reward_l1=0.02, kl_l1=0.03)
    result = objective(batch, own, frozen, modules=modules)
    result.loss.backward()

    rho = torch.where(batch.target, own.logprob - frozen.logprob, 0.0)
    kl = torch.where(batch.target, own.divergence, 0.0)
    rows = (masks[0] * rho + masks[1] * kl).sum(-1)
    sign = torch.tensor([-1.0, -1.0, 1.0, 1.0], dtype=torch.float64)[:, None]
    factor = torch.sigmoid(-beta * (rows[:2] - rows[2:])).repeat(2)[:, None] * beta / PAIRS
    for name, values, strength in (("reward", rho, 0.02), ("kl", kl, 0.03)):
        penalty = strength * batch.target / PAIRS
        torch.testing.assert_close(modules[name].values.grad, sign * factor * values + penalty)
    assert (modules["kl"].values.grad[:2][batch.target[:2]] < 0.03 / PAIRS).all()  # raises margin


def test_common_masks_are_penalised_once_and_independent_ones_each():
    """At the published 0.001 for both, a common mask costs 0.001 |m|, not 0.002 |m|."""
    batch, policy, reference, states = case(2)
    generator = torch.Generator().manual_seed(4)
    mask = torch.rand(batch.shape, generator=generator, dtype=torch.float64)
    norm = torch.where(batch.target, mask, 0.0).sum() / PAIRS
    own = scores_of(batch, policy, reference, states)
    modules = fixed(batch, mask, mask)
    for masks, expected in (("common", 0.001 * norm), ("independent", 0.002 * norm)):
        plain, penalised = (
            SparsePO(masks=masks, reward_l1=strength, kl_l1=strength)(
                batch, *own, modules=modules
            ).loss
            for strength in (0.0, 0.001)
        )
        torch.testing.assert_close(penalised - plain, expected)
    one_sided = SparsePO(masks="common", reward_l1=0.01)(batch, *own, modules=modules)
    torch.testing.assert_close(one_sided.metrics["mask/reward_l1"].mean(), 0.005 * norm)


def test_a_token_with_both_masks_at_zero_does_not_matter():
    batch, policy, reference, states = case()
    masks = torch.ones(batch.shape, dtype=torch.float64)
    masks[:, 2] = 0.0
    modules = fixed(batch, masks)
    changed = policy.clone()
    changed[:, 2] += torch.randn(4, V, generator=torch.Generator().manual_seed(9)) * 5
    one, two = (
        value_and_gradient(SparsePO(), batch, logits, reference, states, modules=modules)
        for logits in (policy, changed)
    )
    torch.testing.assert_close(one[0], two[0])
    assert (two[1][:, 2] == 0).all()


def test_gradient_of_policy_and_mask_networks_is_the_finite_difference():
    batch, policy, reference, states = case(4)
    objective = SparsePO(0.9, reward_l1=0.01, kl_l1=0.02, dropout=0.0)
    torch.manual_seed(0)
    modules = objective.modules(MODEL).double()

    def loss(logits, *weights):
        state = dict(zip([n for n, _ in modules.named_parameters()], weights, strict=True))
        module = FunctionalParts(modules, state)
        return objective(batch, *scores_of(batch, logits, reference, states), modules=module).loss

    inputs = (policy.requires_grad_(), *(p.detach().requires_grad_() for p in modules.parameters()))
    assert torch.autograd.gradcheck(loss, inputs, fast_mode=True)


class FunctionalParts:
    """The parts with other weights, for finite differences."""

    def __init__(self, modules, state):
        self.modules, self.state = modules, state

    def __getitem__(self, name):
        own = {k.removeprefix(f"{name}."): v for k, v in self.state.items() if k.startswith(name)}
        return lambda *inputs: torch.func.functional_call(self.modules[name], own, inputs)


@pytest.mark.parametrize("layers", ["all", "last"])
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), scale=st.sampled_from([1e-3, 1.0, 1e4]))
def test_the_mask_is_never_negative_and_begins_alive(layers, seed, scale):
    torch.manual_seed(seed)
    network = TokenMask(D, BLOCKS, layers, dropout=0.0).double()
    batch, *_, states = case(seed)
    values = network([scale * state for state in states], batch.target)
    assert values.shape == batch.shape
    assert (values >= 0).all()
    assert (values[~batch.target] == 0).all()
    assert values[batch.target].mean() > 0.2
    gradients = torch.autograd.grad(values.sum(), [*network.parameters()])
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert sum(gradient.abs().sum() for gradient in gradients) > 0


def test_masks_read_the_reference_only_and_no_gradient_flows_into_it():
    batch, policy, reference, states = case()
    states = tuple(state.requires_grad_() for state in states)
    objective = SparsePO(dropout=0.0)
    torch.manual_seed(0)
    modules = objective.modules(MODEL).double()
    own, frozen = scores_of(batch, policy, reference, states)
    before = modules["reward"](states, batch.target)
    objective(batch, own, frozen, modules=modules).loss.backward()
    assert all(state.grad is None for state in states)
    torch.testing.assert_close(before, modules["reward"](states, batch.target))
    assert modules["reward"].mixer.weight.grad is not None
    assert modules["kl"].mixer.weight.grad is not None


def test_common_masks_have_one_network_and_mapo_none():
    batch, policy, reference, states = case()
    scores = scores_of(batch, policy, reference, states)
    torch.manual_seed(0)
    common = SparsePO(masks="common", dropout=0.0)
    modules = common.modules(MODEL).double()
    assert [*modules] == ["reward"]
    both = torch.nn.ModuleDict({"reward": modules["reward"], "kl": modules["reward"]})
    torch.testing.assert_close(
        common(batch, *scores, modules=modules).loss,
        SparsePO(dropout=0.0)(batch, *scores, modules=both).loss,
    )
    mapo = SparsePO(masks="activation")
    assert len(mapo.modules(MODEL)) == 0
    mask = activation_mask(states, batch.target)
    torch.testing.assert_close(
        mapo(batch, *scores, modules=mapo.modules(MODEL)).loss,
        SparsePO()(batch, *scores, modules=fixed(batch, mask)).loss,
    )


def test_is_a_composition_of_a_weight_and_a_margin():
    given_case = case()
    torch.manual_seed(0)
    objective = SparsePO(0.7, dropout=0.0)
    modules = objective.modules(MODEL).double()
    learned = LearnedMask(dropout=0.0)
    mixed = PreferenceObjective(0.7, weight=learned, margin=MaskedKL(learned))
    assert set(mixed.needs) == set(SparsePO.needs)
    found = value_and_gradient(objective, *given_case, modules=modules)
    own = torch.nn.ModuleDict({"weight0": modules["reward"], "margin0": modules["kl"]})
    torch.testing.assert_close(found, value_and_gradient(mixed, *given_case, modules=own))
    assert MaskedKL(ActivationMask()).modules(MODEL) is None


@settings(max_examples=25)
@given(seed=st.integers(0, 10_000), scale=st.floats(0.1, 100), shift=st.floats(-100, 100))
def test_activation_masks_span_zero_to_one_and_ignore_affine_rescaling(seed, scale, shift):
    batch, *_, states = case(seed)
    mask = activation_mask(states[:1], batch.target)
    for row, target in zip(mask, batch.target, strict=True):
        assert float(row[target].min()) == 0.0
        assert float(row[target].max()) == 1.0
    moved = activation_mask([scale * states[0] + shift], batch.target)
    torch.testing.assert_close(moved, mask, rtol=1e-6, atol=1e-6)


def test_activation_masks_average_over_blocks_and_survive_equal_activations():
    batch, *_, states = case()
    both = activation_mask(states[:2], batch.target)
    singles = [activation_mask([state], batch.target) for state in states[:2]]
    torch.testing.assert_close(both, torch.stack(singles).mean(0))
    equal = activation_mask([torch.full((*batch.shape, D), 3.0)], batch.target)
    torch.testing.assert_close(equal, batch.target.float())
    spoiled = states[0].masked_fill(~batch.target[..., None], torch.nan)
    torch.testing.assert_close(activation_mask([spoiled], batch.target), singles[0])


def test_sparsity_counts_exact_zeros_of_the_completions():
    values = torch.tensor([[9.0, 0.0, 0.5, 0.0], [0.0, 0.0, 1e-9, 7.0]])
    mask = torch.tensor([[False, True, True, False], [False, True, True, True]])
    assert float(mask_sparsity(values, mask)) == pytest.approx(2 / 5)


def test_dropout_is_for_training_only():
    batch, policy, reference, states = case()
    objective = SparsePO(dropout=0.5)
    modules = objective.modules(MODEL).double().train()
    scores = scores_of(batch, policy, reference, states)
    trained = [float(objective(batch, *scores, modules=modules).loss.detach()) for _ in range(4)]
    with torch.no_grad():
        evaluated = [float(objective(batch, *scores, modules=modules).loss) for _ in range(4)]
    assert len(set(trained)) > 1
    assert len(set(evaluated)) == 1


def test_wrong_inputs_say_what_is_wrong():
    batch, policy, reference, states = case()
    own, frozen = scores_of(batch, policy, reference, states)
    with pytest.raises(UnknownNameError, match="independent"):
        SparsePO(masks="shared")  # type: ignore[arg-type]
    with pytest.raises(UnknownNameError, match="last"):
        SparsePO(layers="first")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="network"):
        SparsePO()(batch, own, frozen)
    with pytest.raises(InputError, match="reference"):
        ActivationMask()(batch, own, None)
    with pytest.raises(InputError, match="3 blocks got 2"):
        TokenMask(D, 3)(states[:2], batch.target)


def test_the_masks_learning_rate_may_come_from_yaml_as_a_text():
    with pytest.raises(InputError, match="modules_learning_rate"):
        SparsePO(modules_learning_rate="1e-3")  # type: ignore[arg-type]
    assert SparsePO().modules_learning_rate is None


def test_is_filed_under_its_paper():
    assert objective["sparsepo"] is SparsePO
    assert {entry.key: entry.paper for entry in objective}["sparsepo"] == 60
