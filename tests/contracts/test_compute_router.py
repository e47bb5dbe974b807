"""Every compute router: on and off without a trace, its weights in a file, adapters beside it.

An example names the contexts in which the method's own weights count; what "routed" compares are
the logits in all of them.
"""

import copy

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from role_cases import cases
from tokenry.core.errors import ModelError
from tokenry.model.adaptive.wrapping import Wrapper, compute_router, load_attached

IDS = torch.randint(2, 64, (2, 12), generator=torch.Generator().manual_seed(1))


@pytest.fixture(params=cases(compute_router))
def example(request):
    return request.param()


@pytest.fixture
def method(example):
    return example.method


def logits(model, ids=IDS, **options):
    with torch.no_grad():
        return model(ids, use_cache=False, **options).logits


def shuffle_own(attached):
    """Weights that are not those of a fresh attachment, and a setting that uses them."""
    generator = torch.Generator().manual_seed(5)
    for weight in attached.own_parameters():
        weight.data.normal_(std=0.3, generator=generator)


def routed(attached, example):
    """Logits that depend on all of the method's own weights."""
    found = []
    for context in example.using:
        with context(attached):
            found.append(logits(attached.model))
    return torch.cat(found)


def lora(model):
    from peft import LoraConfig, get_peft_model

    targets = ["q_proj", "down_proj"]
    torch.manual_seed(0)
    return get_peft_model(
        model, LoraConfig(r=2, target_modules=targets, init_lora_weights=False)
    ).eval()


def test_its_key_is_the_registered_one(method):
    assert type(method) is compute_router[method.key]


def test_removing_restores_modules_names_and_outputs(method, tiny_model):
    model = copy.deepcopy(tiny_model)
    before = logits(model)
    modules, names = list(model.named_modules()), list(model.state_dict())
    attached = method.attach(model)
    shuffle_own(attached)
    assert any(isinstance(module, Wrapper) for module in model.modules())
    attached.remove()
    after = list(model.named_modules())
    assert [name for name, _ in after] == [name for name, _ in modules]
    assert all(a is b for (_, a), (_, b) in zip(after, modules, strict=True))
    assert list(model.state_dict()) == names
    assert torch.equal(logits(model), before)
    assert not model._keys_to_ignore_on_save
    with method.attach(model):
        pass
    assert torch.equal(logits(model), before)


def test_a_state_dict_has_the_bases_names_and_loads_strictly(example, method, tiny_model):
    model = copy.deepcopy(tiny_model)
    names = set(model.state_dict())
    attached = method.attach(model)
    shuffle_own(attached)
    state = {name: weight.clone() for name, weight in model.state_dict().items()}
    own = set(attached.own_state())
    assert set(state) == names | own
    assert not names & own
    assert not any("base." in name for name in state)
    other = copy.deepcopy(tiny_model)
    for weight in other.parameters():
        weight.data.mul_(0.5)
    twin = method.attach(other)
    other.load_state_dict(state)  # strict
    assert torch.equal(routed(twin, example), routed(attached, example))


def test_save_pretrained_writes_base_and_method_apart_and_both_load(
    example, method, tiny_model, tmp_path
):
    model = copy.deepcopy(tiny_model)
    names, before = set(model.state_dict()), logits(model)
    attached = method.attach(model)
    shuffle_own(attached)
    expected = routed(attached, example)
    attached.save_pretrained(tmp_path)
    assert set(load_file(tmp_path / "model.safetensors")) <= names
    own = load_file(tmp_path / f"router-{method.key}.safetensors")
    assert set(own) == set(attached.own_state())
    plain = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(logits(plain), before)
    again = load_attached(tmp_path)
    again.model.eval()
    assert again.method == method
    assert torch.equal(routed(again, example), expected)
    onto = load_attached(tmp_path, model=plain)
    assert torch.equal(routed(onto, example), expected)


@pytest.mark.parametrize("first", ["peft", "router"])
def test_peft_before_or_after_gives_the_same_model(example, method, first, tiny_model):
    reference = lora(copy.deepcopy(tiny_model))
    if first == "peft":
        model = lora(copy.deepcopy(tiny_model))
        attached = method.attach(model)
    else:
        model = copy.deepcopy(tiny_model)
        attached = method.attach(model)
        model = lora(model)
    # targets are found by name, in the base only: the same adapters in both orders
    adapters = {name for name in reference.state_dict() if "lora_" in name}
    assert {name for name in model.state_dict() if "lora_" in name} == adapters
    model.load_state_dict(reference.state_dict(), strict=False)
    shuffle_own(attached)
    attached.model = model
    wrapped = routed(attached, example)
    other = lora(copy.deepcopy(tiny_model))
    other.load_state_dict(reference.state_dict())
    twin = method.attach(other)
    shuffle_own(twin)
    assert torch.equal(wrapped, routed(twin, example))
    attached.remove()
    torch.testing.assert_close(logits(model), logits(reference))


def test_adapters_save_under_their_own_names_with_wrappers_on(
    example, method, tiny_llama, tmp_path
):
    from peft import PeftModel

    model = lora(copy.deepcopy(tiny_llama))
    plain = logits(model)
    attached = method.attach(model)
    shuffle_own(attached)
    expected = routed(attached, example)
    attached.save_pretrained(tmp_path)
    names = load_file(tmp_path / "adapter_model.safetensors")
    assert names
    assert all("lora_" in name and ".base." not in name for name in names)
    again = PeftModel.from_pretrained(copy.deepcopy(tiny_llama), tmp_path).eval()
    torch.testing.assert_close(logits(again), plain)
    torch.testing.assert_close(routed(load_attached(tmp_path, model=again), example), expected)
    merged = PeftModel.from_pretrained(copy.deepcopy(tiny_llama), tmp_path).merge_and_unload()
    torch.testing.assert_close(logits(merged), plain, rtol=1e-3, atol=1e-3)


def test_the_same_method_twice_is_refused(method, tiny_llama):
    model = copy.deepcopy(tiny_llama)
    attached = method.attach(model)
    with pytest.raises(ModelError, match="already"):
        method.attach(model)
    attached.remove()
