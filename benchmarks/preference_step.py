"""One optimizer step of DPO and of TDPO here, beside a step of TRL's DPOTrainer.

SmolLM2, four pairs of 512 tokens (128 of them prompt), float32, full fine-tuning with AdamW, the
reference a second model in memory. Each way runs in a process of its own; time is the fastest of
the steps after the first, memory the process's highest resident memory, model loading included.

  ours dpo, ours tdpo     ObjectiveTrainer with its defaults
  trl                     DPOTrainer without activation checkpointing
  trl, checkpointing      DPOTrainer as it comes: activations are computed twice to save memory

    python benchmarks/preference_step.py [--steps 3] [--pairs 4] [--length 512] [--json]
"""

import json
import resource
import sys
import tempfile
import time

from side_by_side import arguments, compare, report, run_apart

WAYS = ("dpo", "tdpo", "trl", "trl-checkpointing")


def measure(way: str, steps: int, pairs: int, length: int) -> dict:
    import torch
    from datasets import Dataset
    from transformers import TrainerCallback

    import tokenry

    model, tokenizer = tokenry.load("smollm2")
    model.train()
    generator = torch.Generator().manual_seed(0)

    def ids(count: int) -> list[int]:
        return torch.randint(1000, 40000, (count,), generator=generator).tolist()

    prompt = length // 4
    rows = [
        {
            "prompt_ids": ids(prompt),
            "chosen_ids": ids(length - prompt),
            "rejected_ids": ids(length - prompt),
        }
        for _ in range(pairs * steps)
    ]

    class Clock(TrainerCallback):
        seconds: list[float] = []  # noqa: RUF012
        losses: list[float] = []  # noqa: RUF012

        def on_step_begin(self, *_: object, **__: object) -> None:
            self.start = time.perf_counter()

        def on_step_end(self, *_: object, **__: object) -> None:
            self.seconds.append(time.perf_counter() - self.start)

        def on_log(self, args, state, control, logs=None, **__: object) -> None:
            if logs and "loss" in logs:
                self.losses.append(float(logs["loss"]))

    clock = Clock()
    shared = {
        "per_device_train_batch_size": pairs,
        "max_steps": steps,
        "learning_rate": 1e-6,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "seed": 0,
    }
    with tempfile.TemporaryDirectory() as folder:
        if way.startswith("trl"):
            from trl import DPOConfig, DPOTrainer
            from trl.trainer.dpo_trainer import DataCollatorForPreference

            class Prepared(DPOTrainer):
                def _prepare_dataset(self, dataset, *_: object, **__: object):
                    return dataset  # token ids, as ours gets them

            reference, _ = tokenry.load("smollm2")
            config = DPOConfig(
                output_dir=folder,
                bf16=False,
                beta=0.1,
                gradient_checkpointing=way == "trl-checkpointing",
                **shared,
            )
            trainer = Prepared(
                model=model,
                ref_model=reference,
                args=config,
                train_dataset=Dataset.from_list(rows),
                processing_class=tokenizer,
                data_collator=DataCollatorForPreference(tokenizer.pad_token_id or 0),
                callbacks=[clock],
            )
        else:
            from transformers import TrainingArguments

            from tokenry.learn.data import PreferenceCollator
            from tokenry.learn.objective import objective
            from tokenry.learn.trainer import ObjectiveTrainer

            trainer = ObjectiveTrainer(
                model,
                objective[way](),
                reference="copy",
                args=TrainingArguments(output_dir=folder, **shared),
                train_dataset=Dataset.from_list(rows),
                data_collator=PreferenceCollator.of(tokenizer),
                processing_class=tokenizer,
                callbacks=[clock],
            )
        trainer.train()
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    later = clock.seconds[1:] or clock.seconds
    return {"seconds": min(later), "all": clock.seconds, "peak": peak, "losses": clock.losses}


def main() -> None:
    parser = arguments("a DPO and a TDPO step against TRL's DPOTrainer")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--pairs", type=int, default=4)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--way", choices=WAYS, help="measure just this one, in this process")
    options = parser.parse_args()
    sizes = (options.steps, options.pairs, options.length)
    if options.way:
        print(json.dumps(measure(options.way, *sizes)))
        return
    words = [f"--{n}={getattr(options, n)}" for n in ("steps", "pairs", "length")]
    found = {way: run_apart(sys.argv[0], f"--way={way}", *words) for way in WAYS}
    rows = []
    for ours in ("dpo", "tdpo"):
        for peer in ("trl", "trl-checkpointing"):
            mine, theirs = found[ours], found[peer]
            rows.append(compare(f"{ours} / {peer}: time", mine["seconds"], theirs["seconds"], "s"))
            rows.append(
                compare(
                    f"{ours} / {peer}: peak memory", mine["peak"] / 1e9, theirs["peak"] / 1e9, "GB"
                )
            )
    first = [found[way]["losses"][0] for way in ("dpo", "trl")]
    rows.append(compare("loss of the first step, dpo / trl", first[0], first[1], "nats"))
    report(rows, options.json, "one optimizer step, SmolLM2, float32, AdamW")


if __name__ == "__main__":
    main()
