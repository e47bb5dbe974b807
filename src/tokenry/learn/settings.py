"""Settings of a training run: every key to its owner, with the type that the owner's default has.

One flat mapping (YAML or keyword arguments) holds hyper-parameters of the objective, fields of
transformers' TrainingArguments, how the data are read and how completions are sampled, and the
mappings `lora` and `frozen` and the list `rewards`.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, get_args

import torch

from tokenry.core.errors import InputError, UnknownNameError
from tokenry.learn.data import BadRows, Truncate
from tokenry.learn.policy.rollouts import RolloutSettings

DATA_KEYS = {"max_length": None, "truncate": "error", "as_chat": False, "bad_rows": "error"}
ROLLOUT_KEYS = {field.name: field.default for field in dataclasses.fields(RolloutSettings)}
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


def read_config(config: str | Path | dict[str, Any] | None) -> dict[str, Any]:
    """A YAML mapping, or InputError saying what is wrong with the file."""
    if config is None or isinstance(config, dict):
        return dict(config or {})
    import yaml

    if not Path(config).is_file():
        raise InputError(f"no such file: {config}")
    try:
        found = yaml.safe_load(Path(config).read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{config} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(found, dict):
        raise InputError(f"{config} must be a mapping of settings, got {type(found).__name__}")
    return found


def sort_settings(settings: dict[str, Any], kind: Any) -> dict[str, dict[str, Any]]:
    """Every setting to its owner, with the type that the owner's default has."""
    from transformers import TrainingArguments

    own = {f.name: f.default for f in dataclasses.fields(kind) if f.init}
    training = {
        f.name: f.default
        for f in dataclasses.fields(TrainingArguments)
        if f.init and f.name not in ("output_dir", "remove_unused_columns", "seed")
    }
    owners = {
        "objective": own,
        "data": DATA_KEYS,
        "rollout": ROLLOUT_KEYS,
        "training": training,
    }
    sorted_: dict[str, Any] = {name: {} for name in (*owners, *MAPPINGS)}
    for key, value in settings.items():
        if key in MAPPINGS:
            wanted = list if key == "rewards" else dict
            if not isinstance(value, wanted):
                raise InputError(f"{key} must be a {_KINDS[wanted]}, got {value!r}")
            sorted_[key] = value
            continue
        owner = next((name for name, keys in owners.items() if key in keys), None)
        if owner is None:
            known = [*MAPPINGS, *(name for keys in owners.values() for name in keys)]
            raise _unknown_setting(key, known)
        sorted_[owner][key] = _typed(key, value, owners[owner][key])
    for key, allowed in (("truncate", Truncate), ("bad_rows", BadRows)):
        value = sorted_["data"].get(key, "error")
        if value not in get_args(allowed):
            raise InputError(f"{key} must be one of {get_args(allowed)}, got {value!r}")
    return sorted_


_KINDS = {dict: "mapping", list: "list"}


def _unknown_setting(key: Any, known: list[str]) -> Exception:
    error = UnknownNameError("setting", str(key), known)
    if "did you mean" in str(error):
        return error
    return InputError(
        f"unknown setting {key!r}: neither a hyper-parameter of the objective, nor a field of "
        "transformers.TrainingArguments, nor one of "
        + ", ".join((*DATA_KEYS, *ROLLOUT_KEYS, *MAPPINGS))
    )


def _typed(key: str, value: Any, default: Any) -> Any:
    """YAML reads 1e-4 as a text; a number that is not one is an error that names its key."""
    if isinstance(default, bool) or not isinstance(default, int | float):
        return value
    wanted = type(default)
    number = value
    if isinstance(value, str):
        try:
            number = float(value)
        except ValueError:
            number = None
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise InputError(f"{key} must be a number, got {value!r}")
    if wanted is int and number == int(number):
        return int(number)
    return float(number) if wanted is float else number


def build_objective(kind: Any, values: dict[str, Any]) -> Any:
    """The objective with these hyper-parameters, or an InputError about the wrong one."""
    try:
        return kind(**values)
    except TypeError as error:
        raise InputError(f"{kind.__name__}: {error}") from None


def training_arguments(
    output: Path, training: dict[str, Any], adapter: bool, seed: int, evaluates: bool
) -> Any:
    """transformers' TrainingArguments with our defaults under the given fields."""
    from transformers import TrainingArguments

    rate = LEARNING_RATES["lora" if adapter else "full"]
    values = {**TRAINING_DEFAULTS, "learning_rate": rate, **training}
    values.setdefault("dataloader_pin_memory", torch.cuda.is_available())
    if evaluates:
        values.setdefault("eval_strategy", "epoch")
    try:
        return TrainingArguments(output_dir=str(output), seed=seed, **values)
    except (TypeError, ValueError) as error:
        raise InputError(f"training settings: {error}") from None


def lora_config(adapter: dict[str, Any]) -> Any:
    """peft's LoraConfig with our defaults under the given fields."""
    from peft import LoraConfig

    known = [f.name for f in dataclasses.fields(LoraConfig)]
    for key in adapter:
        if key not in known:
            raise UnknownNameError("LoRA setting", str(key), known)
    return LoraConfig(task_type="CAUSAL_LM", **LORA_DEFAULTS | adapter)
