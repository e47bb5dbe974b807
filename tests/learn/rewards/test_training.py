"""Rewards through `train`: columns of the data, the catalogue, rows that nothing scores."""

import copy
import json

import pytest

from tokenry.core.errors import InputError, UnknownNameError
from tokenry.learn.run import train

pytestmark = pytest.mark.workers
DATA = [
    {"prompt": f"the {noun}", "answer": n, "kind": {"a": 1} if n else {"b": 2}}
    for n, noun in enumerate(("cat", "dog", "mat", "age"))
]
QUIET = {"disable_tqdm": True, "use_cpu": True, "samples": 3, "max_new_tokens": 4}
CODE = """
import json

def seen(prompts, completions, answer, **columns):
    with open("{log}", "a") as log:
        log.write(json.dumps([prompts, answer, columns["kind"], columns["groups"]]) + "\\n")
    return [float(len(text)) for text in completions]

def half(prompts, completions, answer):
    return [None if number % 2 else float(len(text)) for number, text in zip(answer, completions)]

def weather(prompts, completions, temperature_outside):
    return [0.0] * len(prompts)

def broken(prompt, completion):
    if "dog" in prompt:
        raise KeyError("sun")
"""


@pytest.fixture
def run(tiny_llama_text, tiny_tokenizer, tmp_path):
    (tmp_path / "rules.py").write_text(CODE.replace("{log}", str(tmp_path / "log")))

    def run(*rewards, out="out", **settings):
        places = [f"{tmp_path}/rules.py:{r}" if "(" not in r else r for r in rewards]
        policy = copy.deepcopy(tiny_llama_text), tiny_tokenizer
        return train("grpo", DATA, policy, tmp_path / out, rewards=places, **QUIET | settings)

    return run


def test_columns_reach_a_function_in_its_worker_as_they_were(run, tmp_path):
    record = run("seen").record
    assert record["rewards"] == ["seen"]
    assert record["reward_counts"] == {"seen": {}}
    by_prompt = {row["prompt"]: row for row in DATA}
    prompts, answers, kinds, groups = json.loads((tmp_path / "log").read_text())
    assert len(prompts) == 12
    for prompt, answer, kind in zip(prompts, answers, kinds, strict=True):
        assert by_prompt[prompt] == {"prompt": prompt, "answer": answer, "kind": kind}
    assert [prompts[group] for group in groups] == prompts


def test_rows_that_nothing_scores_are_counted_and_logged(run):
    record = run("half").record
    assert record["reward_counts"] == {"half": {"unscored": 6}}
    logged = [entry for entry in record["history"] if "rewards/left_out" in entry]
    assert [entry["rewards/left_out"] for entry in logged] == [0.5]


def test_a_reward_that_fails_stops_the_run_or_leaves_its_rows_out(run):
    with pytest.raises(InputError, match=r"broken failed for sample .*the dog.*KeyError: 'sun'"):
        run("broken")
    with pytest.warns(UserWarning, match="broken failed for sample"):
        record = run("broken", on_reward_error="skip").record
    assert record["reward_counts"] == {"broken": {"raised": 3, "unscored": 9}}
    assert record["rollout"]["on_reward_error"] == "skip"


def test_a_missing_column_stops_before_training(run, tmp_path):
    with pytest.raises(InputError, match=r'weather asks for the column "temperature_outside"'):
        run("weather")
    assert not (tmp_path / "out").exists()


def test_rewards_are_named_as_in_the_catalogue(run):
    record = run("exact_answer()", "soft_overlong(longest=4, buffer=2)").record
    assert record["rewards"] == ["ExactAnswer()", "SoftOverlong(longest=4, buffer=2)"]
    with pytest.raises(UnknownNameError, match="unknown reward 'exact_anser'"):
        run("exact_anser()", out="other")
