"""Settings: every key gets its type, its range is checked, and what cannot work is named first."""

import dataclasses
from typing import ClassVar

import pytest

from tokenry.core.errors import InputError, TokenryError, UnknownNameError
from tokenry.learn.objective import Objective
from tokenry.learn.preference.tdpo import TDPO
from tokenry.learn.settings import (
    check_lora_targets,
    lora_config,
    read_config,
    sort_settings,
    training_arguments,
)
from tokenry.learn.user_code import user_objective


def test_numbers_that_yaml_reads_as_text_become_numbers(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(
        'max_length: "64"\nsamples: 1e1\nlearning_rate: 1e-3\nbeta: "0.3"\nsave_steps: 1e2\n'
        "data_seed: 7\nmax_steps: 2.0\neval_steps: null\n"
    )
    found = sort_settings(read_config(file), TDPO)
    assert found["data"] == {"max_length": 64}
    assert found["rollout"] == {"samples": 10}
    assert found["objective"] == {"beta": 0.3}
    wanted = {"learning_rate": 1e-3, "save_steps": 100.0, "data_seed": 7, "max_steps": 2}
    assert found["training"] == wanted | {"eval_steps": None}
    whole = found["data"] | found["rollout"] | {"max_steps": found["training"]["max_steps"]}
    assert all(type(value) is int for value in whole.values())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_length": "long"}, "max_length must be a number or null, got 'long'"),
        ({"max_length": 0}, "max_length is 0"),
        ({"max_length": 12.5}, "max_length must be a whole number or null, got 12.5"),
        ({"max_length": float("nan")}, "max_length must be a whole number"),
        ({"as_chat": "yes"}, "as_chat must be true or false, got 'yes'"),
        ({"bf16": "true"}, "bf16 must be true or false"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"learning_rate": float("inf")}, "learning_rate is inf"),
        ({"learning_rate": "1e400"}, "learning_rate is inf"),
        ({"learning_rate": 0}, "learning_rate is 0"),
        ({"learning_rate": None}, "learning_rate must be a number, got None"),
        ({"weight_decay": float("nan")}, "weight_decay is nan"),
        ({"eval_delay": float("inf")}, "eval_delay is inf"),
        ({"max_steps": 0}, "max_steps is 0; it must be at least 1, or -1"),
        ({"max_steps": -2}, "max_steps is -2"),
        ({"num_train_epochs": 0}, "num_train_epochs is 0"),
        ({"per_device_train_batch_size": 0}, "per_device_train_batch_size is 0"),
        ({"per_device_train_batch_size": 2.5}, "must be a whole number, got 2.5"),
        ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps is 0"),
        ({"save_total_limit": 0}, "save_total_limit is 0"),
        ({"beta": True}, "beta must be a number, got True"),
        ({"beta": None}, "beta must be a number, got None"),
        ({"truncate": ["prompt"]}, "truncate is"),
        ({"label_smoothing_factor": 0.1}, "no effect"),
        ({"samples": "many"}, "samples must be a number"),
    ],
)
def test_values_that_cannot_be_meant_are_refused_by_name(settings, message):
    with pytest.raises(InputError) as error:
        sort_settings(settings, TDPO)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"optim": "adamw_torc"}, "did you mean adamw_torch"),
        ({"optim": "adamw_8bit"}, "bitsandbytes"),
        ({"report_to": "tensorbored"}, "tensorbored is not supported"),
        ({"report_to": "wandb"}, "wandb"),
        ({"lr_scheduler_type": "linaer"}, "did you mean linear"),
        ({"eval_strategy": "epoch"}, "no eval data"),
    ],
)
def test_unknown_or_missing_optimizers_and_reporters_are_refused_at_once(
    tmp_path, settings, message
):
    with pytest.raises(TokenryError) as error:
        training_arguments(tmp_path / "out", settings, False, 0, False)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"r": 0}, "r is 0"),
        ({"r": "four"}, "r must be a number"),
        ({"lora_alpha": float("nan")}, "lora_alpha is nan"),
        ({"lora_dropout": 1.0}, "lora_dropout is 1.0"),
        ({"task_type": "SEQ_CLS"}, "task_type is 'SEQ_CLS'"),
    ],
)
def test_lora_settings_have_ranges(settings, message):
    with pytest.raises(TokenryError, match=message):
        lora_config(settings)


def test_lora_targets_that_no_layer_has_are_named_with_the_nearest(tiny_llama):
    with pytest.raises(UnknownNameError, match=r"'q_porj'; did you mean q_proj"):
        check_lora_targets(lora_config({"target_modules": ["v_proj", "q_porj"]}), tiny_llama)
    for good in (["q_proj"], "all-linear", r".*layers\.0.*q_proj", None):
        check_lora_targets(lora_config({"target_modules": good}), tiny_llama)


def test_a_file_that_names_a_function_is_no_objective(tmp_path):
    code = tmp_path / "mine.py"
    code.write_text("def loss(batch, policy, reference):\n    return 0\nnumber = 3\n")
    with pytest.raises(InputError, match=r"is a function, not an objective"):
        user_objective(f"{code}:loss")
    with pytest.raises(InputError, match="is a value of int"):
        user_objective(f"{code}:number")


def test_an_objective_without_fields_takes_no_hyperparameters():
    class Plain(Objective):
        needs: ClassVar = ("policy.logprob",)
        unit: ClassVar = "token"

        def __call__(self, batch, policy, reference, **_): ...

    assert not dataclasses.is_dataclass(Plain)
    assert sort_settings({"max_steps": 3}, Plain)["training"] == {"max_steps": 3}
    with pytest.raises(TokenryError, match="beta"):
        sort_settings({"beta": 0.1}, Plain)


def test_a_key_that_stands_twice_is_no_setting(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("beta: 0.1\nlora: {r: 2}\nbeta: 0.2\n")
    with pytest.raises(InputError, match="sets beta twice"):
        read_config(file)
    file.write_text("")
    assert read_config(file) == {}
