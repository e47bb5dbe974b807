"""Every objective with one budget: in the toy preference world, and on SmolLM2.

Both worlds go through `tokenry.train`, with the defaults of each objective, the same number of
steps, the same batches and learning rate; nothing is tuned for any of them, so this is a table of
what the methods do out of the box, not of how good they can be.

toy world   letters of a Markov chain with hidden token rewards; 1,000 Bradley-Terry pairs; a small
            transformer that was fitted to the language. Measured on fresh samples: the true reward
            and the exact KL from the reference.
smollm2     48 helpful/evasive pairs with a LoRA adapter; the 12 held-out pairs measured: implicit
            reward accuracy, margin, KL from the reference in nats per token.

Frozen models are made with the same budget: "guide", "dpo" and "positive" by DPO, "reverse" and
"negative" by DPO with the completions swapped. On-policy objectives get as reward the log-ratio of
"guide" to the reference (the true reward stays hidden) and, where they mix two, also brevity.

    python benchmarks/objectives.py [--world toy|smollm2] [--steps N] [--only KEY ...]

writes results/objectives-toy.json and results/objectives-smollm2.json, from which `make docs`
builds the table.
"""

import argparse
import copy
import json
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

import torch

from tokenry.core.files import write_whole
from tokenry.learn.objective import frozen_sources, is_on_policy
from tokenry.learn.objective import objective as objectives
from tokenry.learn.reference import FrozenModel
from tokenry.learn.run import train

RESULTS = Path(__file__).parents[1] / "results"
BUDGET: dict[str, dict[str, Any]] = {
    "toy": {"max_steps": 60, "per_device_train_batch_size": 32, "learning_rate": 1e-3},
    "smollm2": {"max_steps": 3, "per_device_train_batch_size": 2, "learning_rate": 1e-3},
}
QUIET = {
    "disable_tqdm": True,
    "save_strategy": "no",
    "report_to": "none",
    "logging_steps": 1000,
    "lr_scheduler_type": "constant",
    "warmup_steps": 0,
    "per_device_eval_batch_size": 32,
}
# What an objective cannot do without, or what its defaults are too dear for here.
SETTINGS: dict[str, dict[str, Any]] = {
    "d2o": {"anchors": 3},
    "f-dpg": {"weights": (1.0,)},
    "meet": {"length": 4},
}


class ToyWorld:
    """The toy preference world as texts of letters, so that it goes through `tokenry.train`."""

    name = "toy"

    def __init__(self, seed: int):
        from tokenry.lab.preference_world import fit_reference
        from tokenry.tasks.worlds.preference import PreferenceWorld

        self.world = PreferenceWorld(seed=seed)
        self.model = fit_reference(self.world, seed, steps=200)
        self.tokenizer = self._tokenizer()
        generator = torch.Generator().manual_seed(seed + 1)
        pairs = self.world.pairs(1000, generator)
        self.rows = [
            {
                "prompt": "",
                "chosen": self.text(chosen),
                "rejected": self.text(rejected),
                "objective": number % 2,
            }
            for number, (chosen, rejected) in enumerate(
                zip(pairs.chosen.tolist(), pairs.rejected.tolist(), strict=True)
            )
        ]
        self.extra = {"samples": 1, "max_new_tokens": self.world.length}

    def text(self, tokens: list[int]) -> str:
        return "".join(chr(ord("a") + token) for token in tokens)

    def _tokenizer(self) -> Any:
        from tokenizers import Tokenizer, models, pre_tokenizers
        from transformers import PreTrainedTokenizerFast

        letters = {chr(ord("a") + token): token for token in range(self.world.vocabulary)}
        vocabulary = {**letters, "<s>": self.world.start}
        backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<s>"))
        backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
        return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", pad_token="<s>")

    def measure(self, model: Any, prefix: Any = None) -> dict[str, float]:
        from tokenry.core.divergences import REVERSE_KL
        from tokenry.model.score import score

        sequences = self._samples(model, prefix)
        batch = self.world.sequences_batch(sequences)
        frozen = FrozenModel(self.model)(batch, ("hidden",))
        rows = None if prefix is None else prefix.expand(len(sequences), -1, -1)
        with torch.no_grad():
            scores = score(
                model,
                batch,
                needs=("divergence", "entropy"),
                reference=frozen,
                divergence=REVERSE_KL,
                prefix=rows,
            )
        return {
            "reward": float(self.world.reward(sequences).mean()),
            "kl": float(scores.need("divergence").sum(-1).mean()),
            "entropy": float(scores.need("entropy").sum(-1).mean()),
        }

    @torch.no_grad()
    def _samples(self, model: Any, prefix: Any = None, count: int = 2000) -> torch.Tensor:
        """Sequences drawn from the model, behind a soft prompt where there is one."""
        generator = torch.Generator().manual_seed(99)
        embed = model.get_input_embeddings()
        ids = torch.full((count, 1), self.world.start)
        for _ in range(self.world.length):
            inputs = embed(ids)
            if prefix is not None:
                inputs = torch.cat([prefix.expand(count, -1, -1), inputs], 1)
            logits = model(inputs_embeds=inputs, use_cache=False).logits[:, -1]
            logits = logits[:, : self.world.vocabulary].float()
            drawn = torch.multinomial(logits.softmax(-1), 1, generator=generator)
            ids = torch.cat([ids, drawn], 1)
        return ids[:, 1:]


class SmolLM2:
    name = "smollm2"

    def __init__(self, seed: int):
        import tokenry
        from tokenry.tasks.preferences import helpful_pairs

        self.model, self.tokenizer = tokenry.load("smollm2")
        self.rows = [
            {**row, "objective": number % 2} for number, row in enumerate(helpful_pairs("train"))
        ]
        self.heldout = helpful_pairs("heldout")
        self.extra = {"lora": {"r": 8}, "as_chat": True, "samples": 1, "max_new_tokens": 32}

    def measure(self, model: Any, prefix: Any = None) -> dict[str, float]:
        from tokenry.learn.report import preference_report

        report = preference_report(
            model, self.tokenizer, self.heldout, FrozenModel(self.model), beta=1.0, as_chat=True
        )
        return {"accuracy": report.accuracy, "margin": report.margin, "kl": report.kl}


def run(key: str, world: Any, others: dict[str, Any], budget: dict[str, Any], seed: int) -> Any:
    """Train a copy of the world's model with an objective; the finished run."""
    kind = objectives[key]
    settings = {**QUIET, **budget, **world.extra}
    own = SETTINGS.get(key, {})
    if key == "d2o":
        own = own | {"max_new_tokens": world.extra["max_new_tokens"]}
    objective = kind(**own)
    if not is_on_policy(objective):
        settings.pop("samples"), settings.pop("max_new_tokens")
    rewards = []
    if is_on_policy(objective):
        guide = others["guide"]
        rewards = [implicit_reward(world, guide), brevity][: objective.num_rewards]
    with tempfile.TemporaryDirectory() as folder:
        return train(
            objective,
            world.rows,
            (copy.deepcopy(world.model).requires_grad_(True), world.tokenizer),
            Path(folder) / "run",
            frozen={name: others[name] for name in frozen_sources(objective)},
            rewards=rewards,
            seed=seed,
            **settings,
        )


def implicit_reward(world: Any, guide: Any) -> Any:
    """log of guide over reference for a completion: what preferences taught the guide."""
    from tokenry.learn.data.precompute import PrecomputeContext

    context, frozen = PrecomputeContext(world.tokenizer), FrozenModel(world.model)
    start = world.tokenizer.bos_token_id

    def guided(prompt: str, completion: str) -> float:
        before = world.tokenizer(prompt, add_special_tokens=False)["input_ids"] or [start]
        ids = world.tokenizer(completion, add_special_tokens=False)["input_ids"]
        if not ids:
            return 0.0
        (ours,) = context.logprobs(guide, [before], [ids])
        (base,) = context.logprobs(frozen, [before], [ids])
        return sum(ours) - sum(base)

    return guided


def brevity(prompt: str, completion: str) -> float:
    return -len(completion) / 100


def prepare(world: Any, budget: dict[str, Any], seed: int) -> dict[str, FrozenModel]:
    """The frozen models that some objectives need, trained with the same budget."""
    guide = run("dpo", world, {}, budget, seed).model
    swapped = copy.copy(world)
    swapped.rows = [
        {**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in world.rows
    ]
    reverse = run("dpo", swapped, {}, budget, seed).model
    guide, reverse = (
        FrozenModel(model.merge_and_unload() if hasattr(model, "merge_and_unload") else model)
        for model in (guide, reverse)
    )
    return dict.fromkeys(("guide", "dpo", "positive"), guide) | dict.fromkeys(
        ("reverse", "negative"), reverse
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--world", choices=("toy", "smollm2"), action="append")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--only", nargs="*", help="just these objectives")
    options = parser.parse_args()
    for name in options.world or ("toy", "smollm2"):
        if name == "toy":
            torch.set_num_threads(1)  # a second thread waits more than it works on small tensors
        world = {"toy": ToyWorld, "smollm2": SmolLM2}[name](options.seed)
        budget = dict(BUDGET[name])
        budget["max_steps"] = options.steps or budget["max_steps"]
        file = RESULTS / f"objectives-{name}.json"
        table = json.loads(file.read_text()) if file.is_file() else {"rows": {}}
        table |= {"budget": budget, "seed": options.seed, "reference": world.measure(world.model)}
        others = prepare(world, budget, options.seed)
        for key in options.only or objectives.names():
            started = time.perf_counter()
            try:
                finished = run(key, world, others, budget, options.seed)
                row = world.measure(finished.model)
            except Exception as error:  # one that fails must not cost the others their figures
                traceback.print_exc()
                row = {"error": f"{type(error).__name__}: {error}"}
            row["seconds"] = round(time.perf_counter() - started, 1)
            table["rows"][key] = row
            print(name, key, row, flush=True, file=sys.stderr)
            write_whole(file, json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
