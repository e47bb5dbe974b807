"""Trouble 11: a run that stops anywhere goes on as if it had not (verl#7401).

Two epochs of three draws, two optimizer steps on each, the last draw of an epoch smaller. Resumed
behind every step: inside a draw, between two, and at the epoch's end.
"""

import json

import pytest
import torch

from policy_trainer import PROMPTS, logged, run

STEPS = 12
SETTINGS = {
    "per_device_train_batch_size": 2,
    "num_train_epochs": 2,
    "minibatches": 2,
    "samples": 3,
    "optim": "adamw_torch",
    "save_strategy": "steps",
    "save_steps": 1,
    "save_total_limit": STEPS,
    "temperature": 0.8,
}


def train(loaded, output, seen, **settings):
    def vowels(prompt, completion):
        seen.append((prompt, completion))
        return sum(letter in "aeiou" for letter in completion) / 4

    found, _ = run("grpo", loaded, output, PROMPTS[:5], rewards=[vowels], **SETTINGS | settings)
    return found


@pytest.fixture(scope="module")
def whole(tiny_llama_text, tiny_tokenizer, tmp_path_factory):
    folder, seen = tmp_path_factory.mktemp("whole"), []
    loaded = tiny_llama_text, tiny_tokenizer
    return loaded, folder / "run", train(loaded, folder / "run", seen), seen


def behind(stop):
    """Completions of the draws that are behind a step: 6, 6 and 3 an epoch."""
    drawn = [6, 6, 3] * 2
    return sum(drawn[: (stop + 1) // 2])


def test_the_whole_run_is_what_is_resumed_here(whole):
    _, folder, found, seen = whole
    assert found.record["steps"] == STEPS
    assert len(seen) == behind(STEPS) == 30
    assert len(set(seen)) > 20
    prompts = [prompt for prompt, _ in seen[:15]]
    assert sorted(prompts) != prompts  # shuffled
    assert sorted(prompts) == sorted(p["prompt"] for p in PROMPTS[:5] for _ in range(3))
    held = [(folder / f"checkpoint-{n}/rollouts-0.safetensors").is_file() for n in range(1, 13)]
    assert held == [True, False] * 6


@pytest.mark.parametrize("stop", range(1, STEPS))
def test_resumed_behind_any_step_it_draws_and_learns_the_same(stop, whole, tmp_path):
    loaded, folder, found, seen = whole
    copied = tmp_path / f"checkpoint-{stop}"
    copied.mkdir()
    for file in (folder / copied.name).iterdir():
        (copied / file.name).hardlink_to(file)
    record = json.loads((folder / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps(record | {"state": "running"}))
    torch.manual_seed(stop)  # whatever state the process is in
    drawn = []
    again = train(loaded, tmp_path, drawn, resume=True)
    assert again.record["resumed_from"] == copied.name
    assert drawn == seen[behind(stop) :]
    assert logged(again, "loss") == logged(found, "loss")
    wanted = found.model.state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in again.model.state_dict().items())
