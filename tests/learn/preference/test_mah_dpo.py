"""MAH-DPO: DPO per head, where gradients go, and the mixed model."""

import copy
import math

import pytest
import torch

from tokenry.core.batch import TokenBatch
from tokenry.core.errors import InputError, ModelError
from tokenry.decode.search import stepwise_beam_search
from tokenry.learn.compute import compute_loss
from tokenry.learn.objective import objective
from tokenry.learn.preference.dpo import DPO
from tokenry.learn.preference.mah_dpo import MAHDPO, ObjectiveHeads, mixed_model
from tokenry.learn.reference import FrozenModel


def pairs_of(objectives, seed=0, vocabulary=64):
    """A preference batch with prompts of 2 tokens, completions of 2 to 5, and its objectives."""
    generator = torch.Generator().manual_seed(seed)
    count = len(objectives)
    rows, targets = [], []
    for row in range(2 * count):
        length = 2 + (3 * row) % 4
        rows.append(torch.randint(2, vocabulary, (2 + length,), generator=generator).tolist())
        targets.append([False] * 2 + [True] * length)
    batch = TokenBatch.from_ids(rows, targets, group=[*range(count)] * 2)
    return batch.with_columns(objective=torch.tensor([*objectives] * 2, dtype=torch.float))


def perturbed(module, seed=1, scale=0.3):
    """The same module with other weights, so that heads and trunk differ from the reference."""
    module = copy.deepcopy(module)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in module.parameters():
            noise = torch.randn(weight.shape, generator=generator)
            weight += scale * weight.std() * noise
    return module.requires_grad_(True)


@pytest.fixture
def case(tiny_llama):
    """A trunk and heads that have moved; the reference has not."""
    heads = MAHDPO(objectives=3).modules(tiny_llama)
    return perturbed(tiny_llama), perturbed(heads, seed=2), FrozenModel(tiny_llama)


def evaluate(objective, batch, policy, heads, reference):
    return compute_loss(objective, batch, policy, reference, modules=heads)


def single(batch, policy, heads, number, reference):
    """DPO of the pairs of one objective with the model that has only this head."""
    alone = mixed_model(policy, heads, [float(d == number) for d in range(len(heads))])
    pairs = (batch.column("objective") == number).nonzero()[:, 0]
    return compute_loss(DPO(), batch.select(pairs), alone, reference, grad=False).loss


def test_one_head_is_dpo_in_value_and_in_the_trunks_gradient(tiny_llama):
    policy, reference = perturbed(tiny_llama), FrozenModel(tiny_llama)
    policy.lm_head.weight = torch.nn.Parameter(policy.lm_head.weight.detach().clone())  # untied
    batch = pairs_of([0, 0, 0])
    plain = compute_loss(DPO(), batch, policy, reference)
    name = "model.layers.1.mlp.up_proj.weight"
    (expected,) = torch.autograd.grad(plain.loss, policy.get_parameter(name))
    heads = MAHDPO(objectives=1).modules(policy)
    found = evaluate(MAHDPO(objectives=1), batch, policy, heads, reference)
    torch.testing.assert_close(found.loss, plain.loss)
    torch.testing.assert_close(found.metrics["rewards/margin"], plain.metrics["rewards/margin"])
    found.loss.backward()
    torch.testing.assert_close(policy.get_parameter(name).grad, expected)
    assert policy.lm_head.weight.grad is None  # the head's copy is what is trained


def test_heads_give_the_models_own_scaled_and_bounded_logits(scaled_model):
    """So that nothing has moved at first: the loss is ln 2, whatever the model does to logits."""
    batch, objective = pairs_of([0, 1, 1]), MAHDPO()
    heads = objective.modules(scaled_model)
    found = evaluate(objective, batch, scaled_model, heads, FrozenModel(scaled_model))
    assert float(found.loss) == pytest.approx(math.log(2), abs=1e-5)
    moved = perturbed(heads, seed=2)
    found = evaluate(objective, batch, scaled_model, moved, FrozenModel(scaled_model))
    apart = [single(batch, scaled_model, moved, n, FrozenModel(scaled_model)) for n in (0, 1)]
    torch.testing.assert_close(found.loss, sum(apart) / 2, atol=1e-5, rtol=1e-5)


def test_a_model_whose_logits_are_more_than_a_layer_is_refused(tiny_llama):
    twin = copy.deepcopy(tiny_llama)
    twin.forward = lambda **inputs: _shifted(tiny_llama(**inputs))
    with pytest.raises(ModelError, match="logits of LlamaForCausalLM are not those of its output"):
        MAHDPO().modules(twin)


def _shifted(output):
    output.logits = output.logits + torch.arange(64)
    return output


def test_the_loss_is_the_mean_of_the_present_objectives_means(case):
    policy, heads, reference = case
    batch = pairs_of([0, 2, 0, 0])
    found = evaluate(MAHDPO(objectives=3), batch, policy, heads, reference)
    means = [single(batch, policy, heads, d, reference) for d in (0, 2)]
    torch.testing.assert_close(found.loss, sum(means) / 2)
    torch.testing.assert_close(found.metrics["loss"].mean(), found.loss.detach())
    plain = found.metrics["loss"] * torch.tensor([3.0, 1, 3, 3]) * 2 / 4
    assert abs(float(plain.mean() - found.loss.detach())) > 1e-4  # not the mean over the four pairs


def test_a_head_learns_from_its_own_pairs_only_and_the_trunk_from_all(case):
    policy, heads, reference = case
    objective = MAHDPO(objectives=3)

    def gradients(batch):
        policy.zero_grad(set_to_none=True)
        heads.zero_grad(set_to_none=True)
        evaluate(objective, batch, policy, heads, reference).loss.backward()
        return [None if h.weight.grad is None else h.weight.grad.clone() for h in heads.heads]

    batch = pairs_of([0, 2, 0])
    found = gradients(batch)
    assert found[1] is None or not found[1].any()
    trunk = policy.model.layers[0].mlp.up_proj.weight.grad.clone()
    only = batch.select(torch.tensor([1, 4]))
    alone = gradients(only)
    torch.testing.assert_close(found[2], alone[2] / 2)
    assert (trunk - policy.model.layers[0].mlp.up_proj.weight.grad / 2).abs().max() > 1e-5


def test_gradient_of_a_head_is_the_finite_difference(case):
    policy, heads, reference = case
    policy, heads = policy.double(), heads.double()
    frozen = FrozenModel(copy.deepcopy(reference.model).double())
    objective, batch = MAHDPO(beta=0.5, objectives=3, label_smoothing=0.1), pairs_of([0, 2, 0])
    weight = heads.heads[2].weight
    (gradient,) = torch.autograd.grad(
        evaluate(objective, batch, policy, heads, frozen).loss, weight
    )
    direction = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)).double()
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            weight += sign * 1e-6 * direction
            values.append(evaluate(objective, batch, policy, heads, frozen).loss.detach())
            weight -= sign * 1e-6 * direction
    numeric = (values[0] - values[1]) / 2e-6
    torch.testing.assert_close((gradient * direction).sum(), numeric, rtol=1e-5, atol=1e-8)


def test_at_the_start_all_heads_agree_and_the_loss_is_ln_2(tiny_model):
    objective = MAHDPO(objectives=3)
    heads = objective.modules(tiny_model)
    for head in heads.heads:
        assert torch.equal(head.weight, tiny_model.get_output_embeddings().weight)
    found = evaluate(objective, pairs_of([2, 0, 1]), tiny_model, heads, FrozenModel(tiny_model))
    assert float(found.loss.detach()) == pytest.approx(math.log(2), abs=1e-6)


def test_noise_differs_by_head_and_has_the_given_size(tiny_llama):
    heads = MAHDPO(objectives=2, noise=1e-3).modules(tiny_llama)
    first, second = (head.weight - tiny_llama.lm_head.weight for head in heads.heads)
    assert float(first.detach().std()) == pytest.approx(1e-3, rel=0.1)
    assert (first - second).abs().max() > 1e-3


def test_training_a_head_leaves_tied_input_embeddings_alone(tiny_llama):
    assert tiny_llama.lm_head.weight is tiny_llama.model.embed_tokens.weight
    heads = MAHDPO().modules(tiny_llama)
    before = tiny_llama.model.embed_tokens.weight.detach().clone()
    with torch.no_grad():
        heads.heads[0].weight += 1.0
    assert torch.equal(tiny_llama.model.embed_tokens.weight, before)
    mixed = mixed_model(tiny_llama, heads, [1, 0])
    assert torch.equal(mixed.get_input_embeddings().weight, before)
    assert torch.equal(tiny_llama.lm_head.weight, before)


@torch.no_grad()
def test_the_mixed_model_has_the_mixed_logits_and_generates(case):
    policy, heads, _ = case
    ids = pairs_of([0, 1]).ids
    hidden = policy.model(ids).last_hidden_state
    logits = torch.stack([head(hidden) for head in heads.heads])  # [H, B, T, V]
    for alpha in ([0.2, 0.5, 0.3], [2.0, 0.0, 6.0], [0.0, 1.0, 0.0]):
        mixed = mixed_model(policy, heads, alpha)
        weights = torch.tensor(alpha) / sum(alpha)
        expected = (weights[:, None, None, None] * logits).sum(0)
        torch.testing.assert_close(mixed(ids).logits, expected, rtol=1e-5, atol=1e-5)
        written = mixed.generate(ids[:1, :3], max_new_tokens=1, do_sample=False)
        assert int(written[0, -1]) == int(mixed(ids[:1, :3]).logits[0, -1].argmax())
    assert mixed.model is policy.model


def test_a_mixed_model_can_be_saved_and_loaded(case, tmp_path):
    from transformers import AutoModelForCausalLM

    policy, heads, _ = case
    mixed = mixed_model(policy, heads, [1, 2, 3])
    mixed.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    ids = torch.tensor([[3, 9, 4]])
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, mixed(ids).logits)


def test_guided_decoding_runs_on_the_mixed_model(case):
    policy, heads, _ = case
    found = stepwise_beam_search(
        mixed_model(policy, heads, [1, 1, 0]),
        [5, 6],
        lambda prompt, completions: [ids.count(7) - ids.count(8) for ids in completions],
        step_end=lambda ids: len(ids) % 3 == 0,
        max_steps=3,
    )
    assert len(found.best) == 9


def test_rows_carry_their_objective_to_both_sides():
    rows = MAHDPO().precompute([{"objective": 1}, {"chosen_objective": 0}], None)
    assert rows[0]["chosen_objective"] == rows[0]["rejected_objective"] == 1
    assert rows[1] == {"chosen_objective": 0}
    with pytest.raises(InputError, match=r'line 7: the field "objective" is missing'):
        MAHDPO().precompute([{"place": "data.jsonl, line 7"}], None)


def test_bad_objectives_heads_and_weights_are_named(case):
    policy, heads, reference = case
    with pytest.raises(InputError, match="numbered 0 to 1, got 2"):
        evaluate(MAHDPO(objectives=2), pairs_of([0, 2]), policy, heads, reference)
    with pytest.raises(InputError, match=r"got 0\.5"):
        evaluate(MAHDPO(), pairs_of([0, 0.5]), policy, heads, reference)
    batch = pairs_of([0, 1])
    batch = batch.with_columns(objective=torch.tensor([0.0, 1, 1, 0]))
    with pytest.raises(InputError, match="other objectives"):
        evaluate(MAHDPO(), batch, policy, heads, reference)
    with pytest.raises(InputError, match="modules"):
        compute_loss(MAHDPO(), pairs_of([0, 1]), policy, reference)
    with pytest.raises(InputError, match="3 weights"):
        heads.merged([1.0, 1.0])
    with pytest.raises(InputError, match="not all of them 0"):
        heads.merged([0.0, 0.0, 0.0])
    with pytest.raises(ModelError, match="linear"):
        ObjectiveHeads(torch.nn.Bilinear(2, 2, 2), 2)


def test_is_filed_under_its_paper():
    assert objective["mah-dpo"] is MAHDPO
    assert {entry.key: entry.paper for entry in objective}["mah-dpo"] == 137
