"""Wrappers: in and out again, names in checkpoints, files of their own, adapters of peft."""

import copy
import json

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from tokenry.core.errors import InputError, ModelError
from tokenry.model.adaptive.dual_ffn import DuoLLM
from tokenry.model.adaptive.informed_routing import InformedRouting
from tokenry.model.adaptive.skipdecode import SkipDecode
from tokenry.model.adaptive.wrapping import (
    apply_to_selected,
    attention_flops,
    decoder_layers,
    layer_flops,
    linear_flops,
    load_attached,
    units,
)

IDS = torch.randint(2, 64, (2, 12), generator=torch.Generator().manual_seed(1))


def logits(model, ids=IDS, **options):
    with torch.no_grad():
        return model(ids, use_cache=False, **options).logits


def shuffle_own(attached):
    """Weights that are not those of a fresh attachment, and a setting that uses them."""
    generator = torch.Generator().manual_seed(5)
    for weight in attached.own_parameters():
        weight.data.normal_(std=0.3, generator=generator)


def test_the_models_own_save_pretrained_leaves_the_method_out(tiny_llama, tmp_path):
    model = copy.deepcopy(tiny_llama)
    before = logits(model)
    DuoLLM(inner=4).attach(model)
    model.save_pretrained(tmp_path)
    assert not list(tmp_path.glob("router-*"))
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path).eval()), before)


def test_a_wrong_or_missing_file_is_an_error_and_leaves_the_model_alone(tiny_llama, tmp_path):
    with pytest.raises(InputError, match="no file"):
        load_attached(tmp_path)
    model = copy.deepcopy(tiny_llama)
    attached = DuoLLM(inner=4).attach(model)
    attached.save_pretrained(tmp_path)
    attached.remove()
    smaller = AutoModelForCausalLM.from_config(
        type(model.config)(**{**model.config.to_dict(), "num_hidden_layers": 2})
    )
    before = list(smaller.state_dict())
    with pytest.raises(ModelError, match="does not fit"):
        load_attached(tmp_path, model=smaller)
    assert list(smaller.state_dict()) == before
    file = tmp_path / "router-duo-llm.safetensors"
    from safetensors.torch import save_file

    save_file({}, file, {"method": "duo-llm", "settings": json.dumps({"no": 1})})
    with pytest.raises(InputError, match="was not written by"):
        load_attached(tmp_path, model=model)


def test_methods_stack_and_come_off_in_reverse_order(tiny_model):
    model = copy.deepcopy(tiny_model)
    before, names = logits(model), set(model.state_dict())
    inner = DuoLLM(inner=4).attach(model)
    outer = InformedRouting(rank=3).attach(model)
    depth = SkipDecode(3, 2, 6).attach(model)
    shuffle_own(outer)
    state = {name: weight.clone() for name, weight in model.state_dict().items()}
    assert names <= set(state)
    assert set(state) == names | set(inner.own_state()) | set(outer.own_state())
    model.load_state_dict(state)
    with inner.route("small"):
        assert not torch.equal(logits(model), before)
    with pytest.raises(ModelError, match="remove what was attached last first"):
        inner.remove()
    for attached in (depth, outer, inner):
        attached.remove()
    assert torch.equal(logits(model), before)
    assert set(model.state_dict()) == names


def test_models_of_another_build_are_refused_by_name():
    from transformers import GPT2Config, GPT2LMHeadModel

    gpt2 = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=1, vocab_size=16))
    with pytest.raises(ModelError, match="GPT2Model"):
        decoder_layers(gpt2)
    from transformers import Olmo2Config, Olmo2ForCausalLM

    post = Olmo2ForCausalLM(
        Olmo2Config(
            vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
            num_attention_heads=1, num_key_value_heads=1, pad_token_id=0,
        )
    )  # fmt: skip
    with pytest.raises(ModelError, match=r"layer 0 is a Olmo2DecoderLayer"):
        units(post)


def test_units_are_the_residual_updates(tiny_model):
    """x + after(module(norm(x))) over all units is the decoder's own last state."""
    seen = []
    model = copy.deepcopy(tiny_model)
    model.model.norm.register_forward_hook(lambda module, args, output: seen.append(args[0]))
    with InformedRouting().attach(model) as attached, attached.recording() as records:
        logits(model)
    x = model.get_input_embeddings()(IDS)
    for record in records:
        x = x + record.update
    torch.testing.assert_close(seen[0], x)


def test_flops_count_two_for_each_weight(tiny_llama):
    layer = tiny_llama.model.layers[0]
    weights = 32 * 32 * 2 + 32 * 16 * 2 + 3 * 32 * 64
    assert linear_flops(layer) == 2 * weights
    assert attention_flops(tiny_llama, 10) == 2 * 2 * 10 * 32
    assert layer_flops(tiny_llama, 0, 10) == 2 * weights + 1280


def test_sliding_layers_cost_their_window(tiny_gemma3):
    assert attention_flops(tiny_gemma3, 100, layer=0) == 4 * 8 * 16 * 4
    assert attention_flops(tiny_gemma3, 100, layer=3) == 4 * 100 * 16 * 4


def test_selected_tokens_alone_are_computed():
    x = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    chosen = torch.tensor([[True, False, True], [False, False, True]])
    layer, counted = nn.Linear(4, 4), []
    layer.register_forward_hook(lambda module, args, output: counted.append(output.numel() // 4))
    found = apply_to_selected(layer, x, chosen)
    expected = torch.where(chosen[..., None], layer(x), 0)
    torch.testing.assert_close(found, expected)
    assert counted[0] == 3
    grads = [torch.autograd.grad(y.square().sum(), x)[0] for y in (found, expected)]
    torch.testing.assert_close(*grads)
