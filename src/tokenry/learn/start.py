"""What a run starts from: the weights that it trains, their precision, and a model's own adapter.

Trained weights are float32, whatever the checkpoint has: AdamW's step of 1e-6 is smaller than half
the distance between two bfloat16 numbers near 0.3 (2e-3), so in half precision most weights would
never move. `bf16: true` or `fp16: true` in the settings still computes the passes in half precision
(autocast). Adapters are float32 already (peft), above a frozen base that keeps its precision.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from tokenry.core.checks import one_of
from tokenry.core.errors import InputError
from tokenry.learn.checkpoints import removed_on_failure
from tokenry.learn.fit import HALF
from tokenry.learn.settings import refusals

AdapterMode = Literal["continue", "merge", "stack"]
TRAINED_FOLDER = "trained"


def trained_in_float32(model: Any) -> Any:
    """The same model, as float32 when a weight that would be trained is in half precision.

    All of it, not these weights alone: layers of two precisions do not multiply.
    """
    if any(weight.requires_grad and weight.dtype in HALF for weight in model.parameters()):
        model.float()
    return model


def precision(dtype: Any, arguments: Any) -> dict[str, Any]:
    """Of a run that begins with weights of this dtype: what it trains and saves, how it computes.

    loaded: of the checkpoint. trained, saved: of the weights that are trained, adapter or model.
    autocast: of the passes, None when they run in the weights' own precision.
    """
    loaded = str(dtype).removeprefix("torch.")
    trained = "float32" if dtype in HALF else loaded
    half = "bfloat16" if arguments.bf16 else "float16" if arguments.fp16 else None
    return {"loaded": loaded, "trained": trained, "saved": trained, "autocast": half}


@dataclass(frozen=True)
class Start:
    """model: what is trained, before a new adapter is put on it. lora: that adapter's settings, or
    None. adapter: what became of the one that the model came with, or None. below: its updates,
    which the saved adapter of a stack contains. base: where its base came from."""

    model: Any
    lora: Any = None
    adapter: AdapterMode | None = None
    below: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    base: str | None = None


def has_adapter(model: Any) -> bool:
    """Whether the model is one of peft's, with an adapter on."""
    from peft import PeftModel

    return isinstance(model, PeftModel)


def starts_as_its_base(lora: Any) -> bool:
    """Whether a model with this new adapter is, before training, the model without it."""
    return lora is not None and getattr(lora, "init_lora_weights", None) in (True, "gaussian")


def start_from(model: Any, mode: AdapterMode | None, lora: Any, given: Mapping[str, Any]) -> Start:
    """What is trained of a model that may come with an adapter.

    mode: for a model with an adapter only; None is "continue".
        "continue"  the adapter that is there is trained further;
        "merge"     it joins the weights, which are trained or get a new adapter (`lora`);
        "stack"     a new adapter is trained above it, and both are saved as one.
    lora: a new adapter's LoraConfig, or None. given: the fields of it that the user chose.

    Raises InputError for a mode without an adapter, for settings of a new adapter where the old one
    is trained, and for adapters that cannot be merged or stacked.
    """
    if getattr(model, "_hf_peft_config_loaded", False):  # transformers' own loading, without peft
        raise InputError(
            "the adapter was loaded into the model by transformers, which cannot train and save it "
            "as one: load it with tokenry.load or peft.PeftModel.from_pretrained"
        )
    if not has_adapter(model):
        if mode is not None:
            raise InputError(f'adapter is "{mode}", and the model has no adapter: leave it out')
        return Start(model, lora)
    mode = mode or "continue"
    one_of("adapter", mode, get_args(AdapterMode))
    if len(model.active_adapters) != 1:
        raise InputError(f"the model has {len(model.active_adapters)} active adapters, not one")
    name = model.active_adapters[0]
    config = model.peft_config[name]
    if mode == "continue":
        others = {key: value for key, value in given.items() if getattr(config, key, None) != value}
        if others:
            raise InputError(
                f"the model's adapter is trained further, and it has not {others}: leave these "
                'settings out, or train a new adapter with adapter "merge" or "stack"'
            )
        config.inference_mode = False
        model.set_adapter(name)
        return Start(model, None, mode)
    base = config.base_model_name_or_path
    below = low_rank_updates(model) if mode == "stack" else {}
    if any(weight.dtype in HALF for weight in model.parameters()):
        model.float()  # merged in half precision, the adapter would be rounded away
    with refusals(f'adapter "{mode}"'):
        merged = model.merge_and_unload()
    merged.requires_grad_(True)
    return Start(merged, lora, mode, below, base)


def low_rank_updates(model: Any) -> dict[str, tuple[Tensor, Tensor]]:
    """The active LoRA adapter as (down [r, in], up [out, r]) of each layer: W + up @ down.

    Raises InputError for an adapter that is more than that.
    """
    from peft.tuners.lora import LoraLayer

    (name,) = model.active_adapters
    config: Any = model.peft_config[name]
    extras = {"bias": "none", "use_dora": False, "modules_to_save": None, "layer_replication": None}
    more = {key for key, plain in extras.items() if getattr(config, key, plain) not in (plain, [])}
    modules: list[tuple[str, Any]] = list(model.get_base_model().named_modules())
    layers: dict[str, Any] = {n: m for n, m in modules if isinstance(m, LoraLayer)}
    linear = {
        n: m for n, m in layers.items() if name in m.lora_A and m.lora_A[name].weight.ndim == 2
    }
    kind = str(getattr(config.peft_type, "value", config.peft_type))
    if kind != "LORA" or more or len(linear) != len(layers):
        what = ", ".join(sorted(more)) or f"{kind} beyond linear layers"
        raise InputError(
            f'adapters with {what} cannot be stacked: use adapter "continue" or "merge"'
        )
    return {
        layer: (
            module.scaling[name] * module.lora_A[name].weight.detach().float(),
            module.lora_B[name].weight.detach().float().clone(),
        )
        for layer, module in linear.items()
    }


def save_stacked(folder: Path, start: Start, model: Any) -> None:
    """Make the saved adapter one LoRA that is the one below and the trained one together.

        W + u1 d1 + u2 d2 = W + [u1 u2] [d1; d2]

    Ranks add up, and with alpha = r the scale is 1. The trained one by itself, which a resumed run
    goes on with, is kept in a folder beside it.
    """
    from peft import LoraConfig
    from safetensors.torch import save_file

    alone = folder / TRAINED_FOLDER
    alone.mkdir(exist_ok=True)
    for file in folder.glob("adapter_*"):
        file.replace(alone / file.name)
    above = low_rank_updates(model)
    joined = {}
    for name in sorted({*start.below, *above}):
        downs, ups = zip(
            *(part[name] for part in (start.below, above) if name in part), strict=True
        )
        device = ups[0].device
        downs = [down.to(device) for down in downs]
        joined[name] = (torch.cat(downs), torch.cat([up.to(device) for up in ups], 1))
    ranks = {name: len(down) for name, (down, _) in joined.items()}
    highest = max(ranks.values())
    own = model.peft_config[model.active_adapters[0]]
    config = LoraConfig(
        task_type="CAUSAL_LM",
        base_model_name_or_path=start.base,
        r=highest,
        lora_alpha=highest,
        target_modules=sorted(ranks),
        rank_pattern={name: rank for name, rank in ranks.items() if rank != highest},
        alpha_pattern={name: rank for name, rank in ranks.items() if rank != highest},
        fan_in_fan_out=own.fan_in_fan_out,
        inference_mode=True,
    )
    tensors = {}
    for name, (down, up) in joined.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = down.cpu().contiguous()
        tensors[f"base_model.model.{name}.lora_B.weight"] = up.cpu().contiguous()
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    config.save_pretrained(str(folder))


def save_base(folder: Path, model: Any, tokenizer: Any) -> None:
    """Write the merged model under a new adapter, whole or not at all; one that is there stays."""
    if folder.is_dir():
        return
    partial = folder.with_name(f".{folder.name}")
    shutil.rmtree(partial, ignore_errors=True)
    with removed_on_failure(partial):
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        partial.replace(folder)
