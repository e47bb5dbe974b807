"""Every variant of the policy gradient through the trainer: columns, modules and buffers arrive."""

import copy
import math

import pytest

from tokenry.learn.policy.d3s import D3S
from tokenry.learn.policy.dph_rl import DPHRL
from tokenry.learn.policy.fiberpo import FiberPO
from tokenry.learn.policy.scored_rehearsal import RehearsalBuffer
from tokenry.learn.policy.sources.chain import Chain
from tokenry.learn.policy.sources.mixtures import Mixtures
from tokenry.learn.policy.sources.positions import Positions
from tokenry.learn.policy.sources.tree import Tree
from tokenry.learn.policy.spo import SPO
from tokenry.learn.run import train

ROWS = [([5, 9], [7, 8, 1]), ([6], [10, 1])]
PROMPTS = [{"prompt": f"the {noun}"} for noun in ("cat", "dog", "mat", "theory")]
SETTINGS = {
    "disable_tqdm": True,
    "use_cpu": True,
    "learning_rate": 1e-2,
    "per_device_train_batch_size": 2,
    "max_steps": 4,
    "logging_steps": 1,
    "lr_scheduler_type": "constant",
    "save_strategy": "no",
    "samples": 4,
    "max_new_tokens": 4,
    "updates": 2,
    "seed": 3,
}


def vowels(prompt, completion):
    return sum(letter in "aeiou" for letter in completion) / 4


def rehearsing(model):
    return DPHRL(rehearsal=RehearsalBuffer.scored(ROWS, model, 2))


GOALS = {
    **{
        key: lambda _, key=key: key
        for key in ("balanced", "dhpo", "hapo", "gtpo", "tw-grpo", "thr")
    },
    "d3s": lambda _: D3S(count_start=2, count_end=3),
    "d3s, sequence": lambda _: D3S(count_start=2, count_end=3, ratio="sequence"),
    "fiberpo": lambda _: FiberPO(group_budget=0.3),
    "dph-rl": rehearsing,
    "spo": lambda _: "spo",
    "spo, tree": lambda _: SPO("tree"),
    "cot2": lambda _: "cot2",
    "rmt": lambda _: "rmt",
}
SOURCES = {
    "spo": {"source": Chain(judges=2, interval=2)},
    "spo, tree": {"source": Tree(segment=2)},
    "cot2": {"source": Mixtures(2, 2)},
    "rmt": {"source": Positions(5, start=2), "rewards": [], "max_new_tokens": 12},
}


@pytest.mark.parametrize("name", GOALS)
def test_two_updates_on_each_of_two_draws(name, tiny_llama_text, tiny_tokenizer, tmp_path):
    model = copy.deepcopy(tiny_llama_text)
    goal, settings = GOALS[name](model), {"rewards": [vowels]} | SETTINGS | SOURCES.get(name, {})
    data = [row | {"completion": " sat on it"} for row in PROMPTS] if name == "rmt" else PROMPTS
    run = train(goal, data, (model, tiny_tokenizer), tmp_path, **settings)
    assert run.record["steps"] == 4
    moved = [
        not own.equal(old)
        for own, old in zip(model.parameters(), tiny_llama_text.parameters(), strict=True)
    ]
    assert any(moved)
    assert all(math.isfinite(weight.sum().item()) for weight in model.parameters())
