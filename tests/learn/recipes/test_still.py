import copy

import pytest
import torch

from tokenry.core.errors import InputError, ModelError
from tokenry.learn.recipes.still import AttentionTransfer, attention_transfer_loss
from tokenry.model.memory.still import Still, StillCache, still_layers


def ids_of(length, batch=2, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(2, 64, (batch, length), generator=generator)


@pytest.fixture
def hybrid(tiny_model):
    return Still(4, 1).convert(copy.deepcopy(tiny_model))


def test_exact_layers_have_no_loss(hybrid, tiny_model):
    assert attention_transfer_loss(hybrid, ids_of(8)) < 1e-10  # two chunks
    exact = Still(4, 4).convert(copy.deepcopy(tiny_model))
    assert attention_transfer_loss(exact, ids_of(24)) < 1e-10
    assert attention_transfer_loss(hybrid, ids_of(24)) > 1e-5


def test_layers_read_what_the_pretrained_model_gives(hybrid, tiny_model):
    """In transfer the model's own output is that of softmax attention."""
    ids, found = ids_of(24), []
    hook = hybrid.register_forward_hook(lambda *call: found.append(call[-1].logits))
    attention_transfer_loss(hybrid, ids)
    hook.remove()
    with torch.no_grad():
        expected = tiny_model(ids, logits_to_keep=1).logits
    torch.testing.assert_close(found[0], expected)
    assert not any(layer.transfer for layer in still_layers(hybrid).values())


def test_padding_does_not_count(hybrid):
    ids = ids_of(24)
    mask = torch.ones_like(ids)
    mask[:, 17:] = 0
    torch.testing.assert_close(
        attention_transfer_loss(hybrid, ids, mask), attention_transfer_loss(hybrid, ids[:, :17])
    )


def test_only_feature_maps_and_gates_move_and_the_loss_falls(hybrid):
    new = {id(weight) for layer in still_layers(hybrid).values() for weight in layer.new_weights()}
    hybrid.lm_head.weight.requires_grad_(False)
    before = {name: weight.detach().clone() for name, weight in hybrid.named_parameters()}
    losses = AttentionTransfer(steps=12).fit(hybrid, [ids_of(24)])
    assert len(losses) == 12
    assert losses[-1] < 0.9 * losses[0]
    for name, weight in hybrid.named_parameters():
        assert torch.equal(weight, before[name]) == (id(weight) not in new)
        assert weight.requires_grad == (weight is not hybrid.lm_head.weight)


def test_the_gradient_is_that_of_the_loss(tiny_llama):
    """Central differences along the gradient of each kind of weight."""
    model, ids = Still(4, 1).convert(copy.deepcopy(tiny_llama)), ids_of(20)
    layer = still_layers(model)[1]
    kinds = (layer.query_map.weight, layer.key_map.normal, layer.gate.weight)
    attention_transfer_loss(model, ids).backward()
    for weight in kinds:
        gradient = weight.grad.clone()
        step = 1e-2 / gradient.norm() * gradient
        values = []
        with torch.no_grad():
            for sign in (1, -2, 1):
                weight += sign * step
                values.append(float(attention_transfer_loss(model, ids)))
        expected = float(gradient.norm()) * 2e-2
        assert values[0] - values[1] == pytest.approx(expected, rel=0.05)


def test_the_second_stage_is_an_ordinary_training_with_lora(tiny_llama, tmp_path):
    from peft import LoraConfig, get_peft_model
    from transformers import Trainer, TrainingArguments

    model = Still(4, 1).convert(copy.deepcopy(tiny_llama))
    AttentionTransfer(steps=2).fit(model, [ids_of(24)])
    model = get_peft_model(model, LoraConfig(target_modules=["q_proj", "v_proj"]))
    rows = [{"input_ids": row, "labels": row} for row in ids_of(24, batch=4)]
    arguments = TrainingArguments(
        str(tmp_path),
        max_steps=2,
        learning_rate=0.05,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
    )
    with torch.no_grad():
        before = model(input_ids=ids_of(24)).logits
    Trainer(model, arguments, train_dataset=rows).train()
    moved = [weight for name, weight in model.named_parameters() if "lora_B" in name]
    assert len(moved) == 6
    assert all(weight.abs().sum() > 0 for weight in moved)
    model.eval()
    with torch.no_grad():
        assert not torch.allclose(model(input_ids=ids_of(24)).logits, before)
    text = model.generate(
        input_ids=ids_of(24),
        past_key_values=StillCache(model),
        max_new_tokens=6,
        do_sample=False,
        eos_token_id=None,
    )
    assert text.shape == (2, 30)


def test_what_cannot_be_trained_is_refused(tiny_llama, hybrid):
    with pytest.raises(ModelError, match="no hybrid attention"):
        attention_transfer_loss(tiny_llama, ids_of(8))
    with pytest.raises(InputError, match="no batches"):
        AttentionTransfer(steps=1).fit(hybrid, [])
    for bad in ({"steps": 0}, {"learning_rate": 0.0}):
        with pytest.raises(InputError):
            AttentionTransfer(**bad)
