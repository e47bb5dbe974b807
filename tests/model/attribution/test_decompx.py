"""The parts sum to the state in every layer and to the logit, and are what autograd says."""

import copy

import pytest
import torch
from torch import nn

from tokenry.core.errors import InputError, ModelError, ShapeError
from tokenry.model.attribution.blocks import activated, observe
from tokenry.model.attribution.decompx import (
    DecompX,
    decomposed_logits,
    decomposed_states,
    layer_parts,
)

T = 9


def ids_of(length=T, seed=0):
    return torch.randint(2, 64, (length,), generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def encoder():
    return build_encoder()


def build_encoder(kind="Bert", **options):
    import transformers

    config = getattr(transformers, f"{kind}Config")(
        vocab_size=64,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=64,
        initializer_range=0.3,
        num_labels=3,
        **options,
    )
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}ForSequenceClassification")(config).eval()
    for name, weight in model.named_parameters():
        if name.endswith("bias"):  # they start at 0, where nothing would be tested
            nn.init.normal_(weight)
    return model


class Detached(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, states):
        return self.inner(states).detach()


class FrozenNorm(nn.Module):
    def __init__(self, inner, plus_one):
        super().__init__()
        self.inner, self.plus_one = inner, plus_one

    def forward(self, states):
        epsilon = getattr(self.inner, "eps", None) or self.inner.variance_epsilon
        scale = (states.square().mean(-1, keepdim=True) + epsilon).rsqrt().detach()
        return states * scale * (self.inner.weight + self.plus_one)


def frozen_gradient(model, ids, target):
    """grad(logit) · input of a copy whose gates, norms and attention let no gradient through: for
    a model without biases, the parts of the logit, by another way."""
    twin = copy.deepcopy(model)
    gemma = type(model).__name__.startswith("Gemma")
    for layer in twin.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        attention.q_proj, attention.k_proj = Detached(attention.q_proj), Detached(attention.k_proj)
        mlp.act_fn = Detached(mlp.act_fn)
        for name, child in list(layer.named_children()):
            if name.endswith("layernorm"):
                setattr(layer, name, FrozenNorm(child, gemma))
    twin.model.norm = FrozenNorm(twin.model.norm, gemma)
    embedded = twin.get_input_embeddings()(ids)[None].detach().requires_grad_()
    twin(inputs_embeds=embedded).logits[0, -1, target].backward()
    return (embedded.grad * embedded).sum(-1)[0].detach()


def test_every_layers_parts_sum_to_its_state(tiny_model):
    seen = observe(tiny_model, ids_of())
    found = list(layer_parts(tiny_model, seen))
    assert len(found) == len(seen.states)
    for parts, state in zip(found, seen.states, strict=True):
        assert parts.shape == (T + 1, T, 32)
        torch.testing.assert_close(parts.sum(0), state, rtol=1e-4, atol=1e-4)
        future = torch.ones(T, T, dtype=torch.bool).tril(-1)  # part k of a position before k
        assert not parts[:-1][future].any()


@pytest.mark.parametrize("target", [None, 7])
def test_the_logits_parts_sum_to_it_and_are_the_frozen_gradients(tiny_model, target):
    ids = ids_of()
    logits = tiny_model(ids[None]).logits[0, -1].detach()
    found = decomposed_logits(tiny_model, ids, target=target)
    target = int(logits.argmax()) if target is None else target
    assert found.bias == 0
    assert float(found.tokens.sum()) == pytest.approx(float(logits[target]), rel=1e-4, abs=1e-5)
    expected = frozen_gradient(tiny_model, ids, target)
    torch.testing.assert_close(found.tokens, expected, rtol=1e-3, atol=1e-4)


def test_an_earlier_position_is_asked_without_those_behind_it(tiny_model):
    ids = ids_of()
    early = decomposed_logits(tiny_model, ids, position=4, target=3)
    alone = decomposed_logits(tiny_model, ids[:5], target=3)
    torch.testing.assert_close(early.tokens[:5], alone.tokens, rtol=1e-3, atol=1e-4)
    assert not early.tokens[5:].any()


@pytest.mark.parametrize("kind", ["Bert", "Electra"])
def test_an_encoders_states_sum_with_the_biases_part(kind):
    model = build_encoder(kind, **({"embedding_size": 32} if kind == "Electra" else {}))
    ids = ids_of()
    parts = decomposed_states(model, ids)
    expected = model(ids[None], output_hidden_states=True).hidden_states[-1][0].detach()
    torch.testing.assert_close(parts.sum(0), expected, rtol=1e-4, atol=1e-4)
    assert parts[-1].norm() > 0.1  # the biases, which are not small here
    assert parts[:-1].norm() > 0.1


def test_a_classifiers_logits_are_complete(encoder):
    ids = ids_of()
    logits = encoder(ids[None]).logits[0].detach()
    for target in range(3):
        found = decomposed_logits(encoder, ids, target=target)
        total = float(found.tokens.sum()) + found.bias
        assert total == pytest.approx(float(logits[target]), rel=1e-4, abs=1e-4)


def test_head_and_capped_logits_are_complete():
    from transformers import Gemma2Config, Gemma2ForCausalLM

    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        sliding_window=4,
        initializer_range=0.3,
        final_logit_softcapping=3.0,
        pad_token_id=0,
    )
    model = Gemma2ForCausalLM(config).eval()
    logits = model(ids_of()[None]).logits[0, -1].detach()
    found = decomposed_logits(model, ids_of())
    assert float(found.tokens.sum()) == pytest.approx(float(logits.max()), rel=1e-4)


def test_biased_projections_go_to_the_bias():
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.3,
    )
    model = Qwen2ForCausalLM(config).eval()
    for layer in model.model.layers:
        nn.init.normal_(layer.self_attn.v_proj.bias)
    logits = model(ids_of()[None]).logits[0, -1].detach()
    found = decomposed_logits(model, ids_of())
    assert abs(found.bias) > 1e-3
    assert float(found.tokens.sum()) + found.bias == pytest.approx(float(logits.max()), rel=1e-4)


def test_adapters_and_bfloat16_are_taken_apart(tiny_llama):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    config = LoraConfig(r=4, target_modules=["v_proj", "o_proj", "up_proj", "gate_proj"])
    adapted = get_peft_model(copy.deepcopy(tiny_llama), config)
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(weight, std=0.3)
    adapted.train()
    adapted.eval()
    logits = adapted(input_ids=ids_of()[None]).logits[0, -1].detach()
    plain = tiny_llama(ids_of()[None]).logits[0, -1].detach()
    assert not torch.allclose(logits, plain, atol=0.1)
    found = decomposed_logits(adapted, ids_of())
    assert float(found.tokens.sum()) == pytest.approx(float(logits.max()), rel=1e-4)

    half = copy.deepcopy(tiny_llama).bfloat16()
    found = decomposed_logits(half, ids_of())
    top = float(half(ids_of()[None]).logits[0, -1].max())
    assert float(found.tokens.sum()) == pytest.approx(top, rel=0.05)


def test_the_model_is_left_as_it_was(tiny_llama):
    model = copy.deepcopy(tiny_llama).train()
    before = model.config._attn_implementation
    decomposed_states(model, ids_of(3))
    assert model.training
    assert model.config._attn_implementation == before


def test_scores_are_lengths_of_parts(tiny_model):
    ids = ids_of()
    expected = decomposed_states(tiny_model, ids)[:-1, 3].norm(dim=-1)
    assert torch.equal(DecompX()(tiny_model, ids, 3), expected)
    assert not expected[4:].any()


def test_the_secant_passes_through_zero():
    parts = torch.tensor([[[0.0, 1.0, 2.0]], [[0.0, -1.0, 1.0]]])
    found = activated(nn.functional.gelu, parts)
    torch.testing.assert_close(found.sum(0), nn.functional.gelu(parts.sum(0)))
    assert torch.isfinite(found).all()


def test_what_cannot_be_taken_apart_is_refused(tiny_llama):
    from transformers import GPT2Config, GPT2LMHeadModel

    with pytest.raises(InputError, match=r"limit is 8 tokens.*sentence"):
        DecompX(max_tokens=8)(tiny_llama, ids_of(9))
    with pytest.raises(ShapeError, match="at least one token"):
        decomposed_logits(tiny_llama, ids_of()[None])
    with pytest.raises(InputError, match="no logit 64"):
        decomposed_logits(tiny_llama, ids_of(), target=64)
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=1, n_head=4)).eval()
    with pytest.raises(ModelError, match="layers of Llama"):
        decomposed_states(gpt2, ids_of())


def test_a_model_that_computes_more_is_noticed(tiny_llama):
    model = copy.deepcopy(tiny_llama)
    model.model.layers[1].mlp.down_proj.register_forward_hook(
        lambda module, args, output: (
            output * 1.5 if args[0].ndim == 3 and len(args[0]) == 1 else None
        )
    )
    with pytest.raises(ModelError, match=r"layer 1 sum to something else"):
        decomposed_states(model, ids_of())


@pytest.mark.model
def test_smollm2s_logit_is_complete(smollm2):
    model, tokenizer = smollm2
    ids = tokenizer("The capital of France is", return_tensors="pt")["input_ids"][0]
    with torch.no_grad():
        logits = model(ids[None]).logits[0, -1]
    found = decomposed_logits(model, ids)
    assert found.bias == 0
    assert float(found.tokens.sum()) == pytest.approx(float(logits.max()), rel=1e-4)
