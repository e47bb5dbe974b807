"""Gated LoRA: the gate's tokens feel the change, all others are the model's bit for bit."""

import copy

import pytest
import torch
from torch import nn

from tokenry.core.errors import InputError, ModelError, ShapeError
from tokenry.model.layers.gated_lora import Gate, GatedLoRA, GatedLoRALinear, LowRank, linear_maps


@pytest.fixture
def model(tiny_model):
    return copy.deepcopy(tiny_model)


def changed(lora):
    """An adapter as after training: B is no longer zero."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for change in lora.maps:
            change.B.normal_(0.0, 0.3, generator=generator)
    return lora


def ids(rows=2, length=9):
    return torch.randint(2, 64, (rows, length), generator=torch.Generator().manual_seed(5))


@torch.no_grad()
def logits(model, text):
    return model(input_ids=text, use_cache=False).logits


def test_the_formula_at_the_gates_tokens_and_the_model_elsewhere():
    torch.manual_seed(0)
    linear, change, gate = nn.Linear(6, 5), LowRank(6, 5, 2, scale=1.5), Gate()
    nn.init.normal_(change.B)
    x = torch.randn(2, 4, 6)
    chosen = torch.tensor([[0, 1, 0, 0], [1, 0, 0, 1]], dtype=torch.bool)
    gate.rows, gate.tokens = chosen.flatten().nonzero()[:, 0], 8
    y, plain = GatedLoRALinear(linear, change, gate)(x), linear(x)
    assert torch.equal(y[~chosen], plain[~chosen])
    expected = plain + 1.5 * x @ change.A.T @ change.B.T
    torch.testing.assert_close(y[chosen], expected[chosen])
    y.sum().backward()
    per_token = x[chosen].sum(0)  # d/dB of the sum: what the gate's tokens give, and nothing else
    torch.testing.assert_close(change.B.grad, (1.5 * change.A @ per_token).expand(5, -1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_closed_gate_is_the_model_bit_for_bit(model, dtype):
    model = model.to(dtype)
    lora, text = changed(GatedLoRA.of(model, rank=3)), ids()
    plain = logits(model, text)
    with lora.gate(model, torch.zeros_like(text, dtype=torch.bool)):
        assert torch.equal(logits(model, text), plain)
    with lora.gate(model, torch.ones_like(text, dtype=torch.bool)):
        assert not torch.allclose(logits(model, text), plain, atol=1e-2)
    assert torch.equal(logits(model, text), plain)


def test_tokens_before_the_gates_are_the_model_bit_for_bit(model):
    """They see no changed token, and their own maps are not touched: same shapes, same bits."""
    lora, text = changed(GatedLoRA.of(model, rank=3)), ids()
    chosen = torch.zeros_like(text, dtype=torch.bool)
    chosen[:, 6:] = True
    with lora.gate(model, chosen):
        found = logits(model, text)
    plain = logits(model, text)
    assert torch.equal(found[:, :6], plain[:, :6])
    assert not torch.allclose(found[:, 6:], plain[:, 6:], atol=1e-2)


def test_every_linear_map_but_the_output_layer_is_adapted(model):
    names = {name.rpartition(".")[2] for name in linear_maps(model, None)}
    assert names == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    some = GatedLoRA.of(model, rank=2, targets=("q_proj", "v_proj"))
    assert {name.rpartition(".")[2] for name in some.names} == {"q_proj", "v_proj"}
    sizes = [weight.numel() for weight in some.maps.parameters()]
    assert some.flops(tokens=5) == 2 * 5 * sum(sizes)


def test_the_models_own_file_does_not_change(model, tmp_path):
    from safetensors.torch import load_file

    model.save_pretrained(tmp_path / "before")
    lora = changed(GatedLoRA.of(model, rank=2))
    with lora.gate(model, torch.ones(1, 4, dtype=torch.bool)):
        model.save_pretrained(tmp_path / "inside")  # the wrapped maps are in the model
    model.save_pretrained(tmp_path / "after")
    before, inside, after = (
        load_file(tmp_path / name / "model.safetensors") for name in ("before", "inside", "after")
    )
    assert before.keys() == inside.keys() == after.keys()
    assert all(
        torch.equal(before[k], inside[k]) and torch.equal(before[k], after[k]) for k in before
    )


def test_the_model_is_whole_again_after_an_error(model):
    lora, text = GatedLoRA.of(model, rank=2), ids()
    modules = list(model.modules())
    with pytest.raises(RuntimeError, match="on purpose"), lora.gate(model, text > 0):
        raise RuntimeError("on purpose")
    assert list(model.modules()) == modules


def test_saving_and_loading(model, tmp_path):
    lora, text = changed(GatedLoRA.of(model, rank=3, alpha=5.0)), ids()
    lora.save(tmp_path / "lora.safetensors")
    again = GatedLoRA.load(tmp_path / "lora.safetensors")
    with lora.gate(model, text > 20):
        one = logits(model, text)
    with again.gate(model, text > 20):
        assert torch.equal(logits(model, text), one)
    assert [file.name for file in tmp_path.iterdir()] == ["lora.safetensors"]


def test_no_partial_file_is_left(model, tmp_path, monkeypatch):
    import safetensors.torch

    def broken(tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(safetensors.torch, "save_file", broken)
    with pytest.raises(OSError, match="disk full"):
        GatedLoRA.of(model, rank=2).save(tmp_path / "lora.safetensors")
    assert not list(tmp_path.iterdir())


def test_it_works_on_a_peft_model_and_beside_its_adapters(model):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    adapted = get_peft_model(
        model, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    )
    text = ids()
    plain = logits(adapted, text)
    lora = changed(GatedLoRA.of(adapted, rank=2))
    with lora.gate(adapted, torch.zeros_like(text, dtype=torch.bool)):
        assert torch.equal(logits(adapted, text), plain)
    with lora.gate(adapted, torch.ones_like(text, dtype=torch.bool)):
        assert not torch.allclose(logits(adapted, text), plain, atol=1e-2)


def test_it_follows_a_model_that_is_adapted_later(model):
    """PEFT replaces maps of the model; the wrapped maps must be the new ones."""
    from peft import LoraConfig, get_peft_model

    lora, text = changed(GatedLoRA.of(model, rank=2)), ids()
    nobody = torch.zeros_like(text, dtype=torch.bool)
    with lora.gate(model, nobody):
        pass
    adapted = get_peft_model(
        model, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    )
    plain = logits(adapted, text)
    with lora.gate(adapted, nobody):
        assert torch.equal(logits(adapted, text), plain)
    assert torch.equal(logits(adapted, text), plain)


def test_it_works_with_packed_kernels_and_with_another_adapter(model):
    from tokenry.model.kernels.packed import packed

    one, two, text = changed(GatedLoRA.of(model, rank=2)), GatedLoRA.of(model, rank=3), ids()
    everyone = torch.ones_like(text, dtype=torch.bool)
    changed(two)
    with one.gate(model, everyone):
        alone = logits(model, text)
        with two.gate(model, everyone):
            both = logits(model, text)
    modules = list(model.modules())
    with packed(model):
        assert sorted(linear_maps(model, None)) == sorted(one.names)
    with packed(model), one.gate(model, everyone):
        torch.testing.assert_close(logits(model, text), alone, atol=1e-3, rtol=1e-4)
    with one.gate(model, everyone), packed(model):
        torch.testing.assert_close(logits(model, text), alone, atol=1e-3, rtol=1e-4)
    assert not torch.allclose(both, alone, atol=1e-2)
    assert list(model.modules()) == modules


def test_gpt2s_maps_are_linear_maps_too():
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=16, n_layer=2, n_head=2)).eval()
    lora, text = changed(GatedLoRA.of(model, rank=2)), ids()
    assert {name.rpartition(".")[2] for name in lora.names} == {"c_attn", "c_proj", "c_fc"}
    plain = logits(model, text)
    with lora.gate(model, torch.zeros_like(text, dtype=torch.bool)):
        assert torch.equal(logits(model, text), plain)
    with lora.gate(model, torch.ones_like(text, dtype=torch.bool)):
        assert not torch.allclose(logits(model, text), plain, atol=1e-2)


def test_a_copy_of_the_adapter_does_not_copy_the_models(model):
    lora = GatedLoRA.of(model, rank=2)
    with lora.gate(model, torch.ones(1, 3, dtype=torch.bool)):
        pass
    twin = copy.deepcopy(lora)
    assert not len(twin._wrapped)
    assert all(torch.equal(a, b) for a, b in zip(lora.parameters(), twin.parameters(), strict=True))


def test_wrong_use_is_explained(tiny_llama, tiny_gemma3, tmp_path):
    with pytest.raises(InputError, match="is 0; it must be"):
        GatedLoRA.of(tiny_llama, rank=0)
    with pytest.raises(ModelError, match="no linear map"):
        GatedLoRA.of(tiny_llama, targets=("nothing",))
    lora = GatedLoRA.of(tiny_llama, rank=2)
    with pytest.raises(ModelError, match="belongs to another model"):
        lora.gate(tiny_gemma3, torch.ones(1, 3, dtype=torch.bool)).__enter__()
    with pytest.raises(ShapeError, match="bool"):
        lora.gate(tiny_llama, torch.ones(3)).__enter__()
    with (
        pytest.raises(ModelError, match="4 rows in a pass over 3 tokens"),
        lora.gate(tiny_llama, torch.ones(1, 3, dtype=torch.bool)),
    ):
        logits(tiny_llama, ids(1, 4))
    (tmp_path / "other").write_text("not tensors")
    with pytest.raises(InputError, match="cannot read"):
        GatedLoRA.load(tmp_path / "other")
