"""On-policy training in two gloo processes against one, started as `test_trainer.py` starts its."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import json, os, sys
sys.path.insert(0, {tests!r})
import torch
torch.set_num_threads(1)
import conftest
from policy_trainer import PROMPTS, QUIET
from tokenry.decode.sample import sample
from tokenry.learn.policy.gradient import PolicyGradient
from tokenry.learn.policy.presets import DAPO, GRPO
from tokenry.learn.run import train

tokenizer = conftest.tiny_tokenizer._get_wrapped_function()()

def by_prompt(policy, prompts, settings):
    "Completions that depend on their prompt and the policy alone."
    of, rows = [], []
    for number, text in enumerate(prompts.texts()):
        of += [number] * settings.samples
        rows += sample(policy, torch.tensor([text]), of=torch.zeros(settings.samples).long(),
                       max_new_tokens=settings.max_new_tokens, ends=prompts.ends,
                       temperature=settings.temperature, leave=False,
                       generator=torch.Generator().manual_seed(sum(text)))
    return prompts.batch(of, rows)

def vowels(prompt, completion):
    return None if completion.startswith("e") else sum(c in "aeiou" for c in completion)

balanced = PolicyGradient(aggregation="balanced")
goals = {{"grpo": GRPO(beta=0.1), "dapo": DAPO(), "balanced": balanced}}
for name, goal, count, size, options in json.loads({runs!r}):
    model = conftest.build_llama(vocab_size=len(tokenizer))
    train(goals[goal], PROMPTS[:count], (model, tokenizer), {output!r} + "/" + name,
          rewards=[vowels], source=by_prompt, eval_data=PROMPTS[:3],
          per_device_eval_batch_size=2, per_device_train_batch_size=size,
          **QUIET | {{"temperature": 0.7, "updates": 2, "pass_reward": 2.0,
                     "max_new_tokens": 5}} | options)

seen = []
model = conftest.build_llama(vocab_size=len(tokenizer))
train("grpo", [{{"prompt": "the cat"}}] * 4, (model, tokenizer), {output!r} + "/plain",
      rewards=[lambda prompt, completion: seen.append(completion) or 0.0],
      per_device_train_batch_size=2, **QUIET)
with open({output!r} + "/seen-" + os.environ.get("RANK", "0"), "w") as file:
    json.dump(seen, file)
torch.distributed.is_initialized() and torch.distributed.destroy_process_group()
"""
# name, objective, prompts, prompts of a step in one process, options; three prompts in steps of
# eight leave the second process nothing at all
RUNS = [
    ("seven", "dapo", 7, 4, {}),
    ("three", "grpo", 3, 8, {}),
    ("accumulated", "balanced", 7, 4, {"gradient_accumulation_steps": 2}),
]
TWO = "-m torch.distributed.run --nproc_per_node 2 --rdzv_backend c10d --rdzv_endpoint localhost:0"


def histories(folder, name, launcher, processes):
    script, output = folder / f"{name}.py", folder / name
    output.mkdir()
    runs = json.dumps([(*run[:3], run[3] // processes, run[4]) for run in RUNS])
    tests = str(Path(__file__).parents[2])
    script.write_text(SCRIPT.format(tests=tests, output=str(output), runs=runs))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(
        [sys.executable, *launcher, str(script)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return {
        run[0]: json.loads((output / run[0] / "run.json").read_text())["history"] for run in RUNS
    }


@pytest.mark.timeout(900)
def test_two_processes_give_the_updates_and_the_log_of_one(tmp_path):
    two = histories(tmp_path, "two", TWO.split(), 2)
    one = histories(tmp_path, "one", [], 1)
    for run in one:
        assert len(one[run]) == len(two[run])
        for ours, theirs in zip(one[run], two[run], strict=True):
            assert set(ours) == set(theirs)
            for name in ours:
                if not any(word in name for word in ("second", "runtime", "flos")):
                    assert theirs[name] == pytest.approx(ours[name], abs=5e-5, rel=1e-3), (
                        run,
                        name,
                    )
    first = one["three"][0]
    assert {"pass@4", "entropy", "kl/reference", "completions/cut", "rewards/spread"} <= set(first)
    assert max(entry.get("grad_norm", 0.0) for entry in one["seven"]) > 1e-2
    # with the plain source the two processes draw by themselves, though all prompts are the same
    mine, other = (json.loads((tmp_path / "two" / f"seen-{rank}").read_text()) for rank in (0, 1))
    assert len(mine) == len(other) == 8
    assert not set(mine) & set(other)
