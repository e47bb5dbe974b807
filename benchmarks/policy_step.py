"""One optimizer step of policy objectives here, beside a step of TRL's GRPOTrainer.

SmolLM2, 4 prompts of 32 tokens, 8 completions each of up to 64 new tokens, float32, AdamW, all
weights or LoRA of rank 16. Each way runs in a process of its own. Of the fastest step after the
first: seconds of sampling, and of all the rest (scores, loss, backward, optimizer). Memory is the
process's highest resident memory above that with the model loaded.

  ours grpo, hapo, dhpo, balanced     ObjectiveTrainer with its defaults
  trl                                 GRPOTrainer without activation checkpointing
  trl-checkpointing                   GRPOTrainer as it comes

    python benchmarks/policy_step.py [--steps 3] [--lora] [--device cpu] [--json]
"""

import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

from side_by_side import Row, arguments, compare, report, resident, run_apart

PROMPTS, SAMPLES, PROMPT, NEW = 4, 8, 32, 64
OURS = ("grpo", "hapo", "dhpo", "balanced")
TRL = ("trl", "trl-checkpointing")


def timed(action: Callable[..., Any], spent: list[float]) -> Callable[..., Any]:
    """The action, which adds its seconds to a list."""

    def run(*given: Any, **options: Any) -> Any:
        start = time.perf_counter()
        result = action(*given, **options)
        spent.append(time.perf_counter() - start)
        return result

    return run


def reward(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
    """Something that differs within a group: the share of vowels."""
    return [sum(letter in "aeiou" for letter in text) / max(1, len(text)) for text in completions]


def measure(way: str, steps: int, lora: bool, device: str) -> dict[str, Any]:
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import TrainerCallback

    import tokenry

    model, tokenizer = tokenry.load("smollm2")
    model.train()
    before = resident()
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1000, 40000, (PROMPTS * steps, PROMPT), generator=generator).tolist()
    sampling: list[float] = []
    ends: list[float] = []

    class Clock(TrainerCallback):
        def on_train_begin(self, *_: object, **__: object) -> None:
            ends.append(time.perf_counter())

        def on_step_end(self, *_: object, **__: object) -> None:
            ends.append(time.perf_counter())

    shared: dict[str, Any] = {
        "max_steps": steps,
        "learning_rate": 1e-6,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "use_cpu": device == "cpu",
        "seed": 0,
    }
    adapter = LoraConfig(r=16, lora_alpha=32, task_type="CAUSAL_LM") if lora else None
    with tempfile.TemporaryDirectory() as folder:
        if way in TRL:
            from trl import GRPOConfig, GRPOTrainer

            config = GRPOConfig(
                output_dir=folder,
                bf16=False,
                beta=0.0,
                loss_type="grpo",
                num_generations=SAMPLES,
                max_completion_length=NEW,
                per_device_train_batch_size=PROMPTS * SAMPLES,
                gradient_checkpointing=way == "trl-checkpointing",
                **shared,
            )
            texts = [{"prompt": text} for text in tokenizer.batch_decode(ids)]
            trainer: Any = GRPOTrainer(
                model=model,
                reward_funcs=reward,
                args=config,
                train_dataset=Dataset.from_list(texts),
                processing_class=tokenizer,
                peft_config=adapter,
                callbacks=[Clock()],
            )
            trainer._generate_single_turn = timed(trainer._generate_single_turn, sampling)
        else:
            from transformers import TrainingArguments

            from tokenry.learn.data import PreferenceCollator
            from tokenry.learn.objective import objective
            from tokenry.learn.policy.rollouts import RolloutSettings
            from tokenry.learn.trainer import ObjectiveTrainer

            trainer = ObjectiveTrainer(
                model,
                objective[way](),
                lora=adapter,
                rewards=[reward],
                rollout=RolloutSettings(SAMPLES, NEW, reward_timeout=None),
                args=TrainingArguments(
                    output_dir=folder, per_device_train_batch_size=PROMPTS, **shared
                ),
                train_dataset=Dataset.from_list([{"prompt_ids": row} for row in ids]),
                data_collator=PreferenceCollator.of(tokenizer, completions=()),
                processing_class=tokenizer,
                callbacks=[Clock()],
            )
            trainer.source = timed(trainer.source, sampling)
        trainer.train()
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    if device != "cpu":
        peak, before = torch.cuda.max_memory_allocated(), 0
    whole = [after - start for start, after in pairwise(ends)]
    rest = [step - own for step, own in zip(whole, sampling, strict=True)]
    return {"sampling": min(sampling[1:]), "rest": min(rest[1:]), "memory": peak - before}


def main() -> None:
    parser = arguments("steps of policy objectives against TRL's GRPOTrainer")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--lora", action="store_true")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--way", choices=(*OURS, *TRL), help="measure just this one, here")
    options = parser.parse_args()
    if options.way:
        print(json.dumps(measure(options.way, options.steps, options.lora, options.device)))
        return
    words = [f"--steps={options.steps}", f"--device={options.device}"]
    words += ["--lora"] if options.lora else []
    found = {way: run_apart(sys.argv[0], f"--way={way}", *words) for way in (*OURS, *TRL)}
    rows: list[Row] = []
    for peer in TRL:
        for name, unit in (("sampling", "s"), ("rest", "s"), ("memory", "GB")):
            scale = 1e9 if name == "memory" else 1
            mine, theirs = found["grpo"][name] / scale, found[peer][name] / scale
            rows.append(compare(f"grpo / {peer}: {name}", mine, theirs, unit))
    for ours in OURS[1:]:
        rows.append(
            compare(f"{ours} / grpo: rest", found[ours]["rest"], found["grpo"]["rest"], "s")
        )
    report(rows, options.json, f"one step, SmolLM2, {'LoRA' if options.lora else 'all weights'}")


if __name__ == "__main__":
    main()
