"""Settings of a training run: every key to its owner, with the type that the owner's field has.

One flat mapping (YAML or keyword arguments) holds hyper-parameters of the objective, fields of
transformers' TrainingArguments, how the data are read and how completions are sampled, whether
dropout is on, and the mappings `lora` and `frozen` and the list `rewards`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from contextlib import contextmanager
from numbers import Integral, Real
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_type_hints

import torch

from tokenry.core.checks import in_range, one_of
from tokenry.core.errors import InputError, TokenryError, UnknownNameError
from tokenry.learn.data import BadRows, Truncate
from tokenry.learn.policy.rollouts import RolloutSettings

DATA_DEFAULTS = {
    "data_format": "auto",
    "max_length": None,
    "truncate": "error",
    "as_chat": False,
    "bad_rows": "error",
}
DATA_KINDS = {
    "data_format": str,
    "max_length": int | None,
    "truncate": str,
    "as_chat": bool,
    "bad_rows": str,
}
LOOP_KINDS = {"dropout": bool}
NOT_SET = ("output_dir", "remove_unused_columns", "seed", "resume_from_checkpoint")
NO_EFFECT = {
    "label_smoothing_factor": "the objective is the loss, and nothing smooths its labels",
    "label_names": "an objective reads no labels",
}
MAPPINGS = ("lora", "frozen", "rewards")
LORA_DEFAULTS = {"r": 16, "lora_alpha": 32, "lora_dropout": 0.0, "target_modules": "all-linear"}
TRAINING_DEFAULTS = {
    "per_device_train_batch_size": 4,
    "per_device_eval_batch_size": 4,
    "num_train_epochs": 1,
    "lr_scheduler_type": "linear",
    "warmup_steps": 0.1,
    "logging_steps": 1,
    "save_steps": 100,
    "save_total_limit": 2,
    "report_to": "none",
}
LEARNING_RATES = {"full": 1e-6, "lora": 1e-4}
RANGES = {
    "learning_rate": "(0, inf)",
    "num_train_epochs": "(0, inf)",
    "per_device_train_batch_size": "[1, inf)",
    "per_device_eval_batch_size": "[1, inf)",
    "gradient_accumulation_steps": "[1, inf)",
    "weight_decay": "[0, inf)",
    "adam_beta1": "[0, 1)",
    "adam_beta2": "[0, 1)",
    "adam_epsilon": "(0, inf)",
    "max_grad_norm": "[0, inf)",
    "warmup_steps": "[0, inf)",
    "logging_steps": "(0, inf)",
    "save_steps": "(0, inf)",
    "eval_steps": "(0, inf)",
    "save_total_limit": "[1, inf)",
    "neftune_noise_alpha": "(0, inf)",
    "dataloader_num_workers": "[0, inf)",
    "r": "[1, inf)",
    "lora_alpha": "(0, inf)",
    "lora_dropout": "[0, 1)",
    "max_length": "[1, inf)",
}


def read_config(config: str | Path | dict[str, Any] | None) -> dict[str, Any]:
    """A YAML mapping, or InputError saying what is wrong with the file."""
    if config is None or isinstance(config, dict):
        return dict(config or {})
    import yaml

    if not Path(config).is_file():
        raise InputError(f"no such file: {config}")
    try:
        text = Path(config).read_text(encoding="utf-8")
        found = yaml.safe_load(text) or {}
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{config} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(found, dict):
        raise InputError(f"{config} must be a mapping of settings, got {type(found).__name__}")
    keys = [key.value for key, _ in node.value] if found else []
    for place, key in enumerate(keys):
        if key in keys[:place]:  # YAML's reader takes the last one without a word
            raise InputError(f"{config} sets {key} twice")
    return found


def sort_settings(settings: dict[str, Any], kind: Any) -> dict[str, dict[str, Any]]:
    """Every setting to its owner, with the type that the owner's default has."""
    from transformers import TrainingArguments

    training = _kinds(TrainingArguments)
    owners = {
        "objective": _kinds(kind),
        "data": DATA_KINDS,
        "rollout": _kinds(RolloutSettings),
        "loop": LOOP_KINDS,
        "training": {name: kind for name, kind in training.items() if name not in NOT_SET},
    }
    sorted_: dict[str, Any] = {name: {} for name in (*owners, *MAPPINGS)}
    for key, value in settings.items():
        if key in MAPPINGS:
            wanted = list if key == "rewards" else dict
            if not isinstance(value, wanted):
                raise InputError(f"{key} must be a {_KINDS[wanted]}, got {value!r}")
            sorted_[key] = value
            continue
        if key in NO_EFFECT:
            raise InputError(f"{key} would have no effect: {NO_EFFECT[key]}")
        owner = next((name for name, keys in owners.items() if key in keys), None)
        if owner is None:
            known = [*MAPPINGS, *(name for keys in owners.values() for name in keys)]
            raise _unknown_setting(key, known)
        sorted_[owner][key] = typed(key, value, owners[owner][key])
    for key, allowed in (("truncate", Truncate), ("bad_rows", BadRows)):
        one_of(key, sorted_["data"].get(key, "error"), get_args(allowed))
    _check_ranges(sorted_["data"] | sorted_["training"])
    steps = sorted_["training"].get("max_steps", -1)
    if steps != -1 and steps < 1:
        raise InputError(
            f"max_steps is {steps}; it must be at least 1, or -1 for as many steps as "
            "num_train_epochs make"
        )
    return sorted_


_KINDS = {dict: "mapping", list: "list"}


def _kinds(owner: Any) -> dict[str, Any]:
    """The fields of a dataclass that can be set, and the types that they are declared with."""
    if not dataclasses.is_dataclass(owner):
        return {}
    fields = {f.name: f.default for f in dataclasses.fields(owner) if f.init}
    try:
        hints = get_type_hints(owner)
    except (NameError, TypeError):  # a user's own file may name types that only a checker imports
        hints = {}
    return {name: hints.get(name, type(default)) for name, default in fields.items()}


def _check_ranges(values: dict[str, Any]) -> None:
    for key, value in values.items():
        if key in RANGES:
            in_range(key, value, RANGES[key], optional=value is None)
        elif isinstance(value, float) and not math.isfinite(value):
            raise InputError(f"{key} is {value}; it must be a finite number")


def _unknown_setting(key: Any, known: list[str]) -> Exception:
    error = UnknownNameError("setting", str(key), known)
    if "did you mean" in str(error):
        return error
    return InputError(
        f"unknown setting {key!r}: neither a hyper-parameter of the objective, nor a field of "
        "transformers.TrainingArguments, nor one of "
        + ", ".join((*DATA_KINDS, *_kinds(RolloutSettings), *LOOP_KINDS, *MAPPINGS))
    )


def typed(key: str, value: Any, kind: Any) -> Any:
    """The value as the type that its field has: YAML reads 1e-4 as a text, and people quote.

    A number that is not one, half a step, or a switch that is neither true nor false is an error
    that names its key. Fields that may hold anything but numbers and switches are left alone.
    """
    kinds = set(get_args(kind)) or {kind}
    wanted = kinds - {NoneType}
    if not wanted or not wanted <= {int, float, bool} or (value is None and NoneType in kinds):
        return value
    also = " or null" if NoneType in kinds else ""
    if wanted == {bool}:
        if not isinstance(value, bool):
            raise InputError(f"{key} must be true or false{also}, got {value!r}")
        return value
    number = _number(value)
    if number is None:
        raise InputError(f"{key} must be a number{also}, got {value!r}")
    if float in wanted:
        return float(number) if isinstance(value, str) or int not in wanted else number
    if number != number or abs(number) == math.inf or number != int(number):
        raise InputError(f"{key} must be a whole number{also}, got {value!r}")
    return int(number)


def _number(value: Any) -> Any:
    if isinstance(value, bool):
        return None
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value)
    if not isinstance(value, str):
        return None
    for read in (int, float):
        try:
            return read(value)
        except ValueError:
            continue
    return None


def build_objective(kind: Any, values: dict[str, Any]) -> Any:
    """The objective with these hyper-parameters, or an InputError about the wrong one."""
    name = getattr(kind, "__name__", "objective")
    with refusals(f"settings of {name}"):
        return kind(**values)


def training_arguments(
    output: Path, training: dict[str, Any], adapter: bool, seed: int, evaluates: bool
) -> Any:
    """transformers' TrainingArguments with our defaults under the given fields.

    Raises InputError for what they refuse, and for an optimizer or a reporter that is unknown or
    not installed: both would show after the data were read and their columns computed.
    """
    from transformers import Trainer, TrainingArguments
    from transformers.integrations.integration_utils import get_reporting_integration_callbacks
    from transformers.trainer_utils import SchedulerType
    from transformers.training_args import OptimizerNames

    rate = LEARNING_RATES["lora" if adapter else "full"]
    values = {**TRAINING_DEFAULTS, "learning_rate": rate, **training}
    values.setdefault("dataloader_pin_memory", torch.cuda.is_available())
    values.setdefault("use_cpu", not torch.accelerator.is_available())  # bf16 asks for it there
    values.setdefault("logging_nan_inf_filter", False)  # it would log a NaN as the mean so far
    if evaluates:
        values.setdefault("eval_strategy", "epoch")
    for key, names in (("optim", OptimizerNames), ("lr_scheduler_type", SchedulerType)):
        known = [name.value for name in names]
        if key in training and getattr(training[key], "value", training[key]) not in known:
            raise UnknownNameError(key, str(training[key]), known)
    with refusals("training settings"):
        arguments = TrainingArguments(output_dir=str(output), seed=seed, **values)
        for callback in get_reporting_integration_callbacks(arguments.report_to):
            callback()
        if arguments.optim_target_modules is None:
            Trainer.get_optimizer_cls_and_kwargs(arguments)
    if not evaluates and arguments.eval_strategy != "no":
        raise InputError(f"eval_strategy is {values['eval_strategy']!r}: there are no eval data")
    return arguments


@contextmanager
def refusals(what: str) -> Iterator[None]:
    """What a library says against a setting, as one InputError that begins with `what`."""
    try:
        yield
    except TokenryError:
        raise
    except (TypeError, ValueError, KeyError, RuntimeError, ImportError, AttributeError) as error:
        text = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{what}: {text}") from error


def lora_config(adapter: dict[str, Any]) -> Any:
    """peft's LoraConfig with our defaults under the given fields."""
    from peft import LoraConfig

    known = [f.name for f in dataclasses.fields(LoraConfig)]
    for key in adapter:
        if key not in known:
            raise UnknownNameError("LoRA setting", str(key), known)
    if adapter.get("task_type", "CAUSAL_LM") != "CAUSAL_LM":
        raise InputError(f"task_type is {adapter['task_type']!r}: here it can only be 'CAUSAL_LM'")
    values = LORA_DEFAULTS | adapter
    numbers = {"r": int, "lora_alpha": int | float, "lora_dropout": float}
    values |= {key: typed(key, values[key], kind) for key, kind in numbers.items()}
    _check_ranges({key: values[key] for key in numbers})
    make: Any = LoraConfig
    with refusals("lora settings"):
        return make(**{"task_type": "CAUSAL_LM"} | values)


def check_lora_targets(config: Any, model: Any) -> None:
    """Raise UnknownNameError, before any work, for a target that no layer of the model has."""
    from peft.tuners.tuners_utils import check_target_module_exists

    targets = config.target_modules
    if not isinstance(targets, str | list | tuple | set) or targets == "all-linear":
        return
    linear = [n for n, layer in model.named_modules() if isinstance(layer, torch.nn.Linear)]
    every = [name for name, _ in model.named_modules()]
    alone = [targets] if isinstance(targets, str) else targets
    for target in alone:
        one = dataclasses.replace(
            config, target_modules=target if isinstance(targets, str) else [target]
        )
        if not any(check_target_module_exists(one, name) for name in every):
            known = sorted({name.rpartition(".")[2] for name in linear})
            raise UnknownNameError("LoRA target module", str(target), [*known, "all-linear"])
