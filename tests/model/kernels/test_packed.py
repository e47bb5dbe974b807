"""Packed layers: the same model, other kernels."""

import copy
import gc
import weakref

import pytest
import torch

from tokenry.model.kernels import packed as packing
from tokenry.model.kernels.packed import PackedLinear, is_packed, packed


@pytest.fixture(params=["machine code", "oneDNN"])
def model(tiny_model, request, monkeypatch):
    if request.param == "oneDNN":
        monkeypatch.setattr(packing, "_machine_code", lambda: None)
    elif packing._machine_code() is None:
        pytest.skip("numba is not installed")
    return copy.deepcopy(tiny_model)


def ids(rows=2, length=9):
    return torch.randint(0, 64, (rows, length), generator=torch.Generator().manual_seed(1))


def test_it_says_what_the_model_says(model):
    with torch.inference_mode():
        for length in (1, 2, 8, 33):
            expected = model(ids(1, length)).logits
            with packed(model):
                found = model(ids(1, length)).logits
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_it_generates_the_same_text(model):
    options = {"max_new_tokens": 12, "do_sample": False}
    expected = model.generate(ids(), **options)
    with packed(model):
        assert torch.equal(model.generate(ids(), **options), expected)


def test_the_model_is_as_it_was_afterwards_also_after_an_error(model):
    before = {name: id(module) for name, module in model.named_modules()}
    weights = [id(weight) for weight in model.parameters()]

    def fail():
        with packed(model):
            assert is_packed(model)
            assert [id(weight) for weight in model.parameters()] == weights
            with packed(model):
                pass
            assert any(isinstance(module, PackedLinear) for module in model.modules())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert {name: id(module) for name, module in model.named_modules()} == before
    assert not is_packed(model)


def test_a_changed_weight_is_packed_again(model):
    with torch.inference_mode(), packed(model):
        before = model(ids()).logits
    with torch.no_grad():
        model.lm_head.weight.mul_(1.5)
        model.model.layers[0].mlp.up_proj.weight.add_(0.1)
    with torch.inference_mode():
        expected = model(ids()).logits
        with packed(model):
            found = model(ids()).logits
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert (found - before).abs().max() > 1e-3


def test_gradients_go_the_plain_way(model):
    other = copy.deepcopy(model)
    with packed(model):
        model(ids()).logits.sum().backward()
    other(ids()).logits.sum().backward()
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert (mine.grad is None) == (theirs.grad is None)
        if mine.grad is not None:
            torch.testing.assert_close(mine.grad, theirs.grad)


def test_other_precisions_stay_as_they_are(model):
    double = model.to(torch.float64)
    with torch.inference_mode():
        expected = double(ids()).logits
        with packed(double):
            assert torch.equal(double(ids()).logits, expected)


def test_bfloat16_says_what_the_model_says(model):
    half = model.to(torch.bfloat16)
    with torch.inference_mode():
        expected = half(ids()).logits
        with packed(half):
            found = half(ids()).logits
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, expected, atol=0.1, rtol=0.05)


def test_many_rows_go_the_plain_way(model):
    many = ids(2, packing.MOST_ROWS)
    with torch.inference_mode():
        expected = model.lm_head(model.model.embed_tokens(many))
        with packed(model):
            assert torch.equal(model.lm_head(model.model.embed_tokens(many)), expected)


def test_a_bias_is_added(model):
    model.lm_head.bias = torch.nn.Parameter(torch.arange(64.0))
    with torch.inference_mode():
        expected = model(ids()).logits
        with packed(model):
            torch.testing.assert_close(model(ids()).logits, expected, atol=1e-4, rtol=1e-4)


def test_adapters_are_seen_and_switched(model):
    from peft import LoraConfig, get_peft_model

    with torch.inference_mode(), packed(model):
        plain = model(ids()).logits
    adapted = get_peft_model(model, LoraConfig(target_modules=["q_proj", "v_proj"], r=2))
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.2)
    with torch.inference_mode():
        expected = adapted(ids()).logits
        with packed(adapted):
            torch.testing.assert_close(adapted(ids()).logits, expected, atol=1e-4, rtol=1e-4)
            with adapted.disable_adapter():
                torch.testing.assert_close(adapted(ids()).logits, plain, atol=1e-4, rtol=1e-4)


def test_layouts_go_with_their_model(tiny_llama):
    model = copy.deepcopy(tiny_llama)
    with packed(model):
        pass
    alive = weakref.ref(packing._LAYOUTS[model]["lm_head"])
    del model
    gc.collect()
    assert alive() is None
