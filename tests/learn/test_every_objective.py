"""Every objective of the catalogue through `train`, as `tokenry train --objective KEY` does it.

From the same rows of TRL's preference format, on a tiny model: all weights and with LoRA, with an
evaluation at the end.
"""

import copy
import math

import pytest
import torch

from tokenry.learn.objective import frozen_sources, is_on_policy
from tokenry.learn.objective import objective as objectives
from tokenry.learn.reference import FrozenModel
from tokenry.learn.run import train

PAIRS = [
    {
        "prompt": f"the {noun}",
        "chosen": " sat there",
        "rejected": " gathered" * (1 + i % 2),
        "objective": i % 2,  # which of MAH-DPO's heads the pair is for
    }
    for i, noun in enumerate(("cat", "dog", "mat", "theory", "father", "feather", "age", "name"))
]
READING = ("known-answers", "positions")  # sources that read the data's completions
OWN = {"positions": "positions(2)", "mixtures": "mixtures(thoughts=2)"}
QUIET = {
    "disable_tqdm": True,
    "use_cpu": True,
    "learning_rate": 1e-2,
    "max_steps": 2,
    "per_device_train_batch_size": 2,
    "per_device_eval_batch_size": 4,
    "save_strategy": "no",
}


def brevity(prompt, completion):
    return -float(len(completion))


def vowels(prompt, completion):
    return sum(letter in "aeiou" for letter in completion) / 10


def settings_of(key, model):
    """What a user of the objective has to bring."""
    kind = objectives[key]
    found = {}
    names = frozen_sources(kind())
    if names:
        generator = torch.Generator().manual_seed(1)
        others = {}
        for name in names:
            other = copy.deepcopy(model)
            with torch.no_grad():
                for weight in other.parameters():
                    weight.add_(0.05 * torch.randn(weight.shape, generator=generator))
            others[name] = FrozenModel(other)
        found["frozen"] = others
    if is_on_policy(kind):
        found |= {
            "rewards": [vowels, brevity][: kind().num_rewards],
            "samples": 2,
            "max_new_tokens": 6,
        }
        source = kind().rollout_source
        found |= {"source": OWN[source]} if source in OWN else {}
    return found


@pytest.mark.parametrize("adapter", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("key", objectives.names())
def test_trains_evaluates_and_saves(key, adapter, tiny_llama_text, tiny_tokenizer, tmp_path):
    model = copy.deepcopy(tiny_llama_text)
    before = copy.deepcopy(model.state_dict())
    rows = PAIRS
    if objectives[key].supervised or objectives[key]().rollout_source in READING:
        rows = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in PAIRS]
    run = train(
        key,
        rows,
        (model, tiny_tokenizer),
        tmp_path / "out",
        lora={"r": 2} if adapter else False,
        eval_data=rows[:4],
        **settings_of(key, tiny_llama_text),
        **QUIET,
    )
    assert run.record["objective"] == key
    losses = [entry["loss"] for entry in run.record["history"] if "loss" in entry]
    assert len(losses) == 2
    assert all(map(math.isfinite, losses))
    assert math.isfinite(run.record["evaluation"]["eval_loss"])
    assert "eval_entropy" in run.record["evaluation"]
    trained = objectives[key]().trains_policy
    name = "adapter_model.safetensors" if adapter and trained else None
    if name:
        assert (tmp_path / "out" / name).is_file()
    if not adapter:
        moved = any(
            not torch.equal(value, before[name]) for name, value in run.model.state_dict().items()
        )
        assert moved == trained
    if objectives[key]().modules(run.model) is not None:
        assert (tmp_path / "out" / "objective.safetensors").is_file()
