"""Modes: dropout off wherever a model reads it from, training mode and all else as it was."""

import pytest
import torch

from tokenry.model.modes import dropouts, evaluating, switched_off

SMALL = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}


def build(name):
    """Tiny models with all the dropout that their configurations know, each read in another way."""
    import transformers as t

    torch.manual_seed(0)
    if name == "gpt2":  # nn.Dropout modules, and `self.attn_dropout.p`
        config = t.GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=2)
        config.update({"resid_pdrop": 0.4, "embd_pdrop": 0.4, "attn_pdrop": 0.4})
        return t.GPT2LMHeadModel(config)
    if name == "opt":  # numbers on the layers, and layerdrop
        config = t.OPTConfig(
            **SMALL,
            ffn_dim=16,
            word_embed_proj_dim=16,
            dropout=0.4,
            attention_dropout=0.4,
            activation_dropout=0.4,
            layerdrop=0.5,
        )
        return t.OPTForCausalLM(config)
    if name == "falcon":  # read from the configuration at every call
        config = t.FalconConfig(**SMALL, hidden_dropout=0.4, attention_dropout=0.4)
        return t.FalconForCausalLM(config)
    if name == "gpt_neox":
        config = t.GPTNeoXConfig(
            **SMALL, intermediate_size=16, hidden_dropout=0.4, attention_dropout=0.4
        )
        return t.GPTNeoXForCausalLM(config)
    config = t.LlamaConfig(
        **SMALL, num_key_value_heads=2, intermediate_size=16, attention_dropout=0.5
    )
    model = t.LlamaForCausalLM(config)
    if name == "llama":
        return model
    from peft import LoraConfig, get_peft_model

    options = {"r": 2, "lora_dropout": 0.5, "init_lora_weights": False}
    if name == "dora":
        options["use_dora"] = True
    return get_peft_model(
        model, LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", **options)
    )


MODELS = ["gpt2", "opt", "falcon", "gpt_neox", "llama", "lora", "dora"]


@pytest.mark.parametrize("name", MODELS)
def test_without_dropout_training_mode_is_the_function_of_evaluation_mode(name):
    model, ids = build(name).train(), torch.arange(5, 25).view(2, 10)

    def logits():
        with torch.no_grad():
            return model(input_ids=ids).logits

    with evaluating(model):
        expected = logits()
    sites = dropouts(model)
    assert not torch.allclose(logits(), expected, atol=1e-3)  # it is on
    with switched_off(sites):
        assert all(module.training for module in model.modules())
        torch.testing.assert_close(logits(), expected, rtol=1e-5, atol=1e-6)
        assert not dropouts(model)
    assert [site.probability for site in dropouts(model)] == [site.probability for site in sites]
    assert not torch.allclose(logits(), expected, atol=1e-3)


def test_gradient_checkpointing_goes_on_while_dropout_is_off():
    model = build("llama").train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    passes = []
    model.model.layers[0].self_attn.register_forward_pre_hook(lambda *_: passes.append(1))
    with switched_off(dropouts(model)):
        model(input_ids=torch.arange(5, 25).view(2, 10), use_cache=False).logits.sum().backward()
    assert len(passes) == 2  # once more in the backward pass


def test_evaluation_mode_leaves_every_module_in_its_own_mode():
    model = build("gpt2").train()
    model.transformer.h[0].eval()  # a frozen block
    before = [module.training for module in model.modules()]
    with evaluating(model):
        assert not any(module.training for module in model.modules())
        assert not torch.is_grad_enabled()
    assert [module.training for module in model.modules()] == before
    with pytest.raises(ZeroDivisionError), evaluating(model):
        _ = 1 / 0
    assert [module.training for module in model.modules()] == before


def test_probabilities_come_back_after_an_error():
    model = build("opt")
    before = dropouts(model)
    with pytest.raises(ZeroDivisionError), switched_off(before):
        _ = 1 / 0
    assert dropouts(model) == before
    assert model.config.layerdrop == 0.5
