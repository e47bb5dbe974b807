"""Training runs: settings, output folder, record, and resuming after a kill."""

import copy
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tokenry.core.errors import InputError, UnknownNameError
from tokenry.learn.preference.tdpo import TDPO
from tokenry.learn.run import last_checkpoint, train
from tokenry.learn.settings import read_config

PAIRS = [
    {"prompt": f"the {noun}", "chosen": " sat there", "rejected": " gathered" * (1 + i % 2)}
    for i, noun in enumerate(("cat", "dog", "mat", "theory", "father", "feather", "age", "name"))
]
QUIET = {"disable_tqdm": True, "use_cpu": True, "learning_rate": 1e-3}


@pytest.fixture
def loaded(tiny_llama_text, tiny_tokenizer):
    return lambda: (copy.deepcopy(tiny_llama_text), tiny_tokenizer)


def losses(record):
    return {entry["step"]: entry["loss"] for entry in record["history"] if "loss" in entry}


def test_leaves_a_model_a_tokenizer_and_a_record(loaded, tmp_path):
    data = tmp_path / "pairs.jsonl"
    data.write_text("\n".join(map(json.dumps, PAIRS)))
    config = tmp_path / "config.yaml"
    config.write_text("beta: 0.3\nlearning_rate: 1e-3\nmax_length: 64\nnum_train_epochs: 2\n")
    run = train(
        "tdpo",
        data,
        loaded(),
        tmp_path / "out",
        config=config,
        eval_data=data,
        disable_tqdm=True,
        alpha=0.25,
    )
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["state"] == "finished"
    assert record["hyperparameters"] == {"beta": 0.3, "alpha": 0.25, "variant": "tdpo2"}
    assert record["training"]["learning_rate"] == 1e-3
    assert record["data"]["pairs"] == 8
    assert record["steps"] == 4
    assert "eval_rewards/margin" in record["evaluation"]

    from transformers import AutoModelForCausalLM, AutoTokenizer

    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(again.model.embed_tokens.weight, run.model.model.embed_tokens.weight)
    assert AutoTokenizer.from_pretrained(tmp_path / "out").eos_token == "</s>"


def test_lora_leaves_an_adapter(loaded, tmp_path):
    train("dpo", PAIRS, loaded(), tmp_path / "out", lora={"r": 2}, max_steps=1, **QUIET)
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["r"] == 2
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_an_output_folder_in_use_is_refused(loaded, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="not empty"):
        train("tdpo", PAIRS, loaded(), tmp_path / "out")
    with pytest.raises(InputError, match="is a file"):
        train("tdpo", PAIRS, loaded(), tmp_path / "out" / "thesis.txt")


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"learning_rte": 1e-4}, UnknownNameError, "did you mean learning_rate"),
        ({"betta": 0.1}, UnknownNameError, "did you mean beta"),
        ({"xyzzy": 1}, InputError, "unknown setting 'xyzzy'"),
        ({"beta": "strong"}, InputError, "beta must be a number, got 'strong'"),
        ({"variant": "tdpo9"}, InputError, "tdpo9"),
        ({"truncate": "middle"}, InputError, "truncate is .middle.; it must be one of"),
        ({"lora": {"rnak": 4}}, UnknownNameError, "LoRA setting 'rnak'"),
        ({"lora": 4}, InputError, "lora must be a mapping"),
        ({"eval_strategy": "sometimes"}, InputError, "training settings"),
    ],
)
def test_bad_settings_are_named(loaded, tmp_path, settings, error, message):
    with pytest.raises(error, match=message):
        train("tdpo", PAIRS, loaded(), tmp_path / "out", config=settings)
    assert not (tmp_path / "out" / "run.json").exists()


def test_unknown_objectives_and_bad_config_files_are_errors(loaded, tmp_path):
    with pytest.raises(UnknownNameError, match=r"did you mean.*tdpo"):
        train("tpdo", PAIRS, loaded(), tmp_path / "out")
    (tmp_path / "bad.yaml").write_text("a: [1")
    with pytest.raises(InputError, match="not YAML"):
        read_config(tmp_path / "bad.yaml")
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(InputError, match="must be a mapping"):
        read_config(tmp_path / "list.yaml")
    with pytest.raises(InputError, match="no such file"):
        read_config(tmp_path / "none.yaml")


SCRIPT = """
import os, sys, json, signal
sys.path.insert(0, {tests!r})
import torch
torch.set_num_threads(1)
from transformers import TrainerCallback
import conftest
from tokenry.learn.run import train

class Kill(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 5:
            os.kill(os.getpid(), signal.SIGKILL)

tokenizer = conftest.tiny_tokenizer._get_wrapped_function()()
model = conftest.build_llama(vocab_size=len(tokenizer))
train("tdpo", json.loads({pairs!r}), (model, tokenizer), {output!r},
      callbacks=[Kill()], **{settings!r})
"""


def test_a_killed_run_resumes_with_the_same_losses_and_weights(loaded, tmp_path, tiny_tokenizer):
    """SIGKILL in step 5, with checkpoints every 2 steps in the middle of epochs."""
    settings = QUIET | {
        "num_train_epochs": 3,
        "per_device_train_batch_size": 3,
        "save_steps": 2,
        "seed": 7,
        "lora": {"r": 4, "lora_dropout": 0.1},
        "dropout": True,
    }
    script = SCRIPT.format(
        tests=str(Path(__file__).parents[1]),
        pairs=json.dumps(PAIRS),
        output=str(tmp_path / "killed"),
        settings=settings,
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=200,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    half = tmp_path / "killed" / "checkpoint-6"  # a checkpoint whose writing was cut off
    half.mkdir()
    (half / "trainer_state.json").write_text('{"global_')
    assert str(last_checkpoint(tmp_path / "killed")).endswith("checkpoint-4")

    whole = train("tdpo", PAIRS, loaded(), tmp_path / "whole", **settings)
    resumed = train("tdpo", PAIRS, loaded(), tmp_path / "killed", resume=True, **settings)
    assert losses(resumed.record) == pytest.approx(losses(whole.record), abs=1e-6)
    for ours, wanted in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-5, atol=1e-7)


def test_resuming_another_run_is_refused(loaded, tmp_path):
    train("tdpo", PAIRS, loaded(), tmp_path / "out", max_steps=1, **QUIET)
    with pytest.raises(InputError, match="holds a run with hyperparameters"):
        train(TDPO(beta=0.9), PAIRS, loaded(), tmp_path / "out", resume=True, max_steps=1, **QUIET)
    with pytest.raises(InputError, match="the data are not those"):
        train("tdpo", PAIRS[:4], loaded(), tmp_path / "out", resume=True, max_steps=1, **QUIET)


def test_skipped_rows_are_counted_in_the_record(loaded, tmp_path):
    bad = PAIRS[0] | {"rejected": PAIRS[0]["chosen"]}
    run = train(
        "dpo", [*PAIRS, bad], loaded(), tmp_path / "out", bad_rows="skip", max_steps=1, **QUIET
    )
    assert run.record["data"]["pairs"] == 8
    assert run.record["data"]["skipped"] == 1
    assert "row 8" in run.record["data"]["first_skipped"]


def test_a_users_own_objective_and_reward_come_from_a_file(loaded, tmp_path):
    code = tmp_path / "mine.py"
    code.write_text(
        "from tokenry.learn.preference.tdpo import KLMargin\n"
        "from tokenry.learn.preference.weighted import PreferenceObjective\n"
        "mixed = PreferenceObjective(beta=0.3, margin=KLMargin(0.5), reduction='mean')\n"
    )
    run = train(f"{code}:mixed", PAIRS, loaded(), tmp_path / "out", max_steps=1, **QUIET)
    assert run.record["objective"] == "PreferenceObjective"
    assert run.record["hyperparameters"]["beta"] == 0.3
    with pytest.raises(UnknownNameError, match="mixed"):
        train(f"{code}:mixt", PAIRS, loaded(), tmp_path / "other", **QUIET)
    with pytest.raises(InputError, match="no such file"):
        train("nowhere.py:mixed", PAIRS, loaded(), tmp_path / "other", **QUIET)
    code.write_text("1 / 0\n")
    with pytest.raises(InputError, match="ZeroDivisionError"):
        train(f"{code}:mixed", PAIRS, loaded(), tmp_path / "other", **QUIET)
    assert not (tmp_path / "other").exists()


def test_frozen_models_and_rewards_that_nobody_wants_or_brings_are_errors(loaded, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(InputError, match="no use for a frozen model 'guide'"):
        train("dpo", PAIRS, loaded(), out, frozen={"guide": "somewhere"}, **QUIET)
    with pytest.raises(InputError, match="--frozen guide=FOLDER"):
        train("tgdpo", PAIRS, loaded(), out, **QUIET)
    with pytest.raises(InputError, match="'guide' must be a folder, a name or a reference, got 3"):
        train("tgdpo", PAIRS, loaded(), out, frozen={"guide": 3}, **QUIET)
    with pytest.raises(InputError, match="no use for rewards"):
        train("dpo", PAIRS, loaded(), out, rewards=[len], **QUIET)


def test_objective_modules_resume_with_the_policy(loaded, tmp_path):
    """Two steps, then two more in another process's stead: as four in one go."""
    options = {
        **QUIET,
        "save_steps": 2,
        "per_device_train_batch_size": 2,
        "lr_scheduler_type": "constant",
    }
    whole = train("sparsepo", PAIRS, loaded(), tmp_path / "whole", max_steps=4, **options)

    class StoppedError(Exception):
        pass

    from transformers import TrainerCallback

    class Kill(TrainerCallback):
        def on_step_begin(self, args, state, control, **_):
            if state.global_step == 3:
                raise StoppedError

    with pytest.raises(StoppedError):
        train(
            "sparsepo",
            PAIRS,
            loaded(),
            tmp_path / "part",
            max_steps=4,
            callbacks=[Kill()],
            **options,
        )
    again = train(
        "sparsepo", PAIRS, loaded(), tmp_path / "part", max_steps=4, resume=True, **options
    )
    assert losses(again.record) == losses(whole.record)
    one, two = (
        (tmp_path / name / "objective.safetensors").read_bytes() for name in ("whole", "part")
    )
    assert one == two


@pytest.mark.parametrize(
    ("objective", "side"), [("d2o", "rejected"), ("treasure-markers", "chosen")]
)
def test_data_need_no_completion_that_the_objective_does_not_read(
    loaded, tmp_path, objective, side
):
    rows = [{"prompt": row["prompt"], side: row[side]} for row in PAIRS[:4]]
    settings = {"anchors": 1, "max_new_tokens": 3} if objective == "d2o" else {}
    run = train(objective, rows, loaded(), tmp_path / "out", **QUIET, **settings)
    assert run.record["state"] == "finished"
    with pytest.raises(InputError, match=f'row 0: the field "{side}" is missing'):
        train(objective, [{"prompt": "a"}], loaded(), tmp_path / "other", **QUIET, **settings)
