"""What a run starts from: float32 weights, and the adapter that a model comes with."""

import copy
import json

import pytest
import torch

from tokenry.core.errors import InputError
from tokenry.learn.run import train

PAIRS = [
    {"prompt": f"the {noun}", "chosen": " sat there", "rejected": " gathered" * (1 + i % 2)}
    for i, noun in enumerate(("cat", "dog", "mat", "theory", "father", "feather", "age", "name"))
]
QUIET = {"disable_tqdm": True, "use_cpu": True, "save_strategy": "no", "warmup_steps": 0}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_full_training_of_a_half_precision_checkpoint_moves_every_weight(
    tiny_llama_text, tiny_tokenizer, tmp_path, dtype
):
    """At 1e-6 a bfloat16 weight near 0.3 would not move at all, a float16 one by 2e-4 or not."""
    model = copy.deepcopy(tiny_llama_text).to(dtype)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    run = train(
        "dpo", PAIRS, (model, tiny_tokenizer), tmp_path / "out", learning_rate=1e-6, **QUIET
    )
    moved = still = 0
    for name, weight in run.model.named_parameters():
        assert weight.dtype == torch.float32
        change = (weight.detach() - before[name].float()).abs()
        assert float(change.max()) < 1e-5, name
        learned = change > 0
        if name == "model.embed_tokens.weight":  # tied: the head gives all of its rows a gradient
            learned = learned[2:]
        moved, still = moved + int(learned.sum()), still + int((~learned).sum())
    assert moved / (moved + still) > 0.99
    assert run.record["dtype"]["trained"] == run.record["dtype"]["saved"] == "float32"
    assert run.record["dtype"]["loaded"] == str(dtype).removeprefix("torch.")
    saved = json.loads((tmp_path / "out" / "config.json").read_text())
    assert saved["dtype"] == "float32"


def test_autocast_computes_in_half_precision_and_keeps_float32_weights(
    tiny_llama_text, tiny_tokenizer, tmp_path
):
    model = copy.deepcopy(tiny_llama_text).bfloat16()
    seen = set()
    model.model.layers[0].mlp.up_proj.register_forward_hook(lambda *a: seen.add(a[2].dtype))
    run = train(
        "dpo", PAIRS, (model, tiny_tokenizer), tmp_path / "out", bf16=True, max_steps=1, **QUIET
    )
    assert torch.bfloat16 in seen
    assert {weight.dtype for weight in run.model.parameters()} == {torch.float32}
    assert run.record["dtype"]["autocast"] == "bfloat16"


def test_lora_keeps_the_frozen_base_in_its_precision(tiny_llama_text, tiny_tokenizer, tmp_path):
    model = copy.deepcopy(tiny_llama_text).bfloat16()
    run = train(
        "dpo", PAIRS, (model, tiny_tokenizer), tmp_path / "out", lora={"r": 2}, max_steps=1, **QUIET
    )
    kinds = {weight.requires_grad: weight.dtype for weight in run.model.parameters()}
    assert kinds == {False: torch.bfloat16, True: torch.float32}
    assert run.record["dtype"]["loaded"] == "bfloat16"
    assert run.record["dtype"]["trained"] == "float32"


# --- a model that comes with an adapter -----------------------------------------------------------


@pytest.fixture(scope="module")
def adapted(tiny_llama_text, tiny_tokenizer, tmp_path_factory):
    """Folders of a base and of an adapter on it that moves it: rank 3, two projections."""
    from peft import LoraConfig, get_peft_model

    folder = tmp_path_factory.mktemp("adapted")
    tiny_llama_text.save_pretrained(folder / "base")
    tiny_tokenizer.save_pretrained(folder / "base")
    model = copy.deepcopy(tiny_llama_text)
    model.name_or_path = str(folder / "base")
    config = LoraConfig(
        task_type="CAUSAL_LM", r=3, lora_alpha=5, target_modules=["q_proj", "up_proj"]
    )
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = get_peft_model(model, config)
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.3)
    model.save_pretrained(folder / "adapter")
    tiny_tokenizer.save_pretrained(folder / "adapter")
    return folder


def logprobs(model):
    ids = torch.tensor([[5, 9, 30, 41, 17, 60, 33, 8]])
    with torch.no_grad():
        return model.eval()(ids).logits.log_softmax(-1)


def reloaded(folder):
    """The result as plain peft reads it, from the base that its configuration names."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    named = json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"]
    return named, PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(named), folder)


def trained(adapted, output, **options):
    settings = QUIET | {"learning_rate": 1e-2, "per_device_train_batch_size": 4} | options
    return train("dpo", PAIRS, adapted / "adapter", output, **settings)


MODES = [
    ({}, "continue", "base"),
    ({"lora": True}, "continue", "base"),
    ({"adapter": "continue"}, "continue", "base"),
    ({"adapter": "stack"}, "stack", "base"),
    (
        {"adapter": "stack", "lora": {"r": 2, "target_modules": ["q_proj", "o_proj"]}},
        "stack",
        "base",
    ),
    ({"adapter": "merge", "lora": {"r": 2}}, "merge", "out/base"),
]


@pytest.mark.parametrize(("options", "mode", "base"), MODES, ids=lambda value: str(value)[:40])
def test_a_run_on_an_adapter_begins_with_it_and_loads_in_plain_peft(
    adapted, tmp_path, options, mode, base
):
    import tokenry

    before = logprobs(tokenry.load(adapted / "adapter").model)
    bare = logprobs(tokenry.load(adapted / "base").model)
    run = trained(adapted, tmp_path / "out", **options)
    assert run.record["adapter"] == mode
    first = run.record["history"][0]
    assert first["loss"] == pytest.approx(0.693147, abs=1e-5)  # the start is the reference
    assert first["log_ratio/chosen"] == pytest.approx(0.0, abs=1e-4)
    after = logprobs(run.model)
    assert (before - bare).abs().max() > 0.1
    assert (after - before).abs().max() > 0.01
    named, result = reloaded(tmp_path / "out")
    assert named == str((adapted if base == "base" else tmp_path) / base)
    torch.testing.assert_close(logprobs(result), after, atol=2e-4, rtol=0)
    assert logprobs(tokenry.load(tmp_path / "out").model).allclose(after, atol=2e-4)


@pytest.mark.parametrize("options", [{}, {"adapter": "stack"}, {"adapter": "merge"}], ids=str)
def test_nothing_but_the_adapter_is_the_start(adapted, tmp_path, options):
    """At a learning rate that moves nothing, the result is the adapter's own distribution."""
    import tokenry

    before = logprobs(tokenry.load(adapted / "adapter").model)
    trained(adapted, tmp_path / "out", learning_rate=1e-12, **options)
    after = logprobs(tokenry.load(tmp_path / "out").model)
    torch.testing.assert_close(after, before, atol=2e-4, rtol=0)


def test_merged_without_lora_all_weights_are_trained(adapted, tmp_path):
    from transformers import AutoModelForCausalLM

    run = trained(adapted, tmp_path / "out", adapter="merge")
    assert all(weight.requires_grad for weight in run.model.parameters())
    assert run.record["history"][0]["loss"] == pytest.approx(0.693147, abs=1e-5)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(logprobs(again), logprobs(run.model), atol=1e-5, rtol=0)
    assert not (tmp_path / "out" / "adapter_config.json").exists()


@pytest.mark.parametrize("reference", ["copy", "precomputed", "auto"])
def test_every_reference_of_a_continued_adapter_is_its_start(adapted, tmp_path, reference):
    run = trained(adapted, tmp_path / "out", reference=reference, max_steps=2)
    assert run.record["history"][0]["loss"] == pytest.approx(0.693147, abs=1e-5)
    second = run.record["history"][1]["rewards/margin"]
    assert second == pytest.approx(
        trained(adapted, tmp_path / "other", max_steps=2).record["history"][1]["rewards/margin"],
        abs=1e-5,
    )


def test_the_reference_adapter_of_a_continued_run_is_the_bare_base(adapted, tmp_path):
    run = trained(adapted, tmp_path / "out", reference="adapter", max_steps=1)
    assert abs(run.record["history"][0]["log_ratio/chosen"]) > 0.01


@pytest.mark.parametrize("options", [{}, {"adapter": "stack"}], ids=str)
def test_a_run_on_an_adapter_resumes(adapted, tmp_path, options):
    from transformers import TrainerCallback

    class StoppedError(Exception):
        pass

    class Stop(TrainerCallback):
        def on_step_begin(self, args, state, control, **_):
            if state.global_step == 3:
                raise StoppedError

    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, **options}
    whole = trained(adapted, tmp_path / "whole", **settings)
    with pytest.raises(StoppedError):
        trained(adapted, tmp_path / "part", callbacks=[Stop()], **settings)
    checkpoint = tmp_path / "part" / "checkpoint-2"
    assert reloaded(checkpoint)[0] == str(adapted / "base")
    again = trained(adapted, tmp_path / "part", resume=True, **settings)
    ours = [e["loss"] for e in again.record["history"] if "loss" in e]
    theirs = [e["loss"] for e in whole.record["history"] if "loss" in e]
    assert ours == pytest.approx(theirs, abs=1e-6)
    assert logprobs(again.model).allclose(logprobs(whole.model), atol=1e-5)


def test_an_adapter_inside_a_model_of_transformers_is_refused(adapted, tiny_tokenizer, tmp_path):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(adapted / "adapter")
    with pytest.raises(InputError, match="loaded into the model by transformers"):
        train("dpo", PAIRS, (model, tiny_tokenizer), tmp_path / "out", **QUIET)


def test_modes_that_cannot_be_meant_are_refused(adapted, tmp_path):
    with pytest.raises(InputError, match="the model has no adapter"):
        train("dpo", PAIRS, adapted / "base", tmp_path / "out", adapter="merge", **QUIET)
    with pytest.raises(InputError, match=r"it has not \{'r': 16\}"):
        trained(adapted, tmp_path / "out", lora={"r": 16})
    with pytest.raises(InputError, match="it must be one of"):
        trained(adapted, tmp_path / "out", adapter="glue")
    assert not (tmp_path / "out").exists()
    trained(adapted, tmp_path / "out", lora={"r": 3, "lora_alpha": 5}, max_steps=1)


def test_trainings_of_their_own_refuse_half_precision_weights(tiny_llama_text):
    from tokenry.learn.fit import check_precision

    half = copy.deepcopy(tiny_llama_text).bfloat16()
    with pytest.raises(InputError, match=r'has bfloat16 weights to train.*dtype="float32"'):
        check_precision(half.parameters(), "the model")
    check_precision(half.requires_grad_(False).parameters(), "the model")
    check_precision(tiny_llama_text.parameters(), "the model")


def test_a_trainer_does_not_put_a_new_adapter_in_place_of_another(tiny_llama_text, tmp_path):
    from peft import LoraConfig, get_peft_model
    from transformers import TrainingArguments

    from tokenry.learn.preference.dpo import DPO
    from tokenry.learn.trainer import ObjectiveTrainer

    config = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"])
    model = get_peft_model(copy.deepcopy(tiny_llama_text), config)
    arguments = TrainingArguments(output_dir=str(tmp_path / "out"), use_cpu=True)
    with pytest.raises(InputError, match="the model has an adapter"):
        ObjectiveTrainer(model, DPO(), lora=config, args=arguments)


def test_adapters_that_are_no_plain_low_rank_update_are_not_stacked(tiny_llama_text):
    from peft import LoraConfig, get_peft_model

    from tokenry.learn.start import low_rank_updates

    for extra in ({"use_dora": True}, {"modules_to_save": ["lm_head"]}, {"bias": "lora_only"}):
        config = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"], **extra)
        with pytest.raises(InputError, match=f"adapters with {next(iter(extra))} cannot"):
            low_rank_updates(get_peft_model(copy.deepcopy(tiny_llama_text), config))
    config = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["embed_tokens"])
    with pytest.raises(InputError, match="LORA beyond linear layers cannot"):
        low_rank_updates(get_peft_model(copy.deepcopy(tiny_llama_text), config))
