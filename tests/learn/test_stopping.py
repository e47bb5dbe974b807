"""What stops a run: numbers that are none, a full disk, a failed start. Nothing half is left."""

import copy
import errno
import json
from dataclasses import dataclass

import pytest
import torch

from tokenry.core.errors import InputError, ModelError, NonFiniteError
from tokenry.learn.checkpoints import last_checkpoint
from tokenry.learn.objective import Loss
from tokenry.learn.preference.dpo import DPO
from tokenry.learn.run import train

PAIRS = [
    {"prompt": f"the {noun}", "chosen": " sat there", "rejected": " gathered" * (1 + i % 2)}
    for i, noun in enumerate(("cat", "dog", "mat", "theory", "father", "feather", "age", "name"))
]
QUIET = {
    "disable_tqdm": True,
    "use_cpu": True,
    "learning_rate": 1e-3,
    "per_device_train_batch_size": 2,
    "warmup_steps": 0,
}


@pytest.fixture
def loaded(tiny_llama_text, tiny_tokenizer):
    return lambda: (copy.deepcopy(tiny_llama_text), tiny_tokenizer)


@dataclass(frozen=True)
class Breaks(DPO):
    """DPO whose n-th call has a number that is none: in its loss, its gradient, or a metric."""

    what: str = "loss"
    at: int = 3

    def __post_init__(self):
        object.__setattr__(self, "count", [0])

    def __call__(self, batch, policy, reference, **others):
        result = super().__call__(batch, policy, reference, **others)
        self.count[0] += 1
        if self.count[0] != self.at:
            return result
        loss, metrics = result.loss, dict(result.metrics)
        if self.what == "loss":
            loss = loss * torch.inf
        elif self.what == "gradient":
            loss = loss + (policy.need("logprob").sum() * 0).sqrt()
        else:
            metrics["strange"] = torch.tensor([1.0, torch.nan])
        return Loss(loss, metrics)


@pytest.mark.parametrize(
    ("what", "metric", "value"),
    [("loss", "loss", "inf"), ("gradient", "gradient", "nan"), ("metric", "strange", "nan")],
)
def test_the_first_number_that_is_none_stops_the_run(loaded, tmp_path, what, metric, value):
    """Step 3 fails with the weights of checkpoint-2, so the last good ones are checkpoint-1."""
    with pytest.raises(NonFiniteError, match="in step 3") as error:
        train(Breaks(what=what), PAIRS, loaded(), tmp_path / "out", save_steps=1, **QUIET)
    assert metric in error.value.metric
    assert error.value.step == 3
    assert error.value.checkpoint == str(tmp_path / "out" / "checkpoint-1")
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["state"] == "diverged"
    assert record["stopped"]["step"] == 3
    assert metric in record["stopped"]["metric"]
    assert record["stopped"]["value"] == value
    assert record["stopped"]["last_good_checkpoint"].endswith("checkpoint-1")
    assert record["steps"] == 2
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_a_learning_rate_that_breaks_the_weights_is_seen_in_the_next_step(loaded, tmp_path):
    settings = QUIET | {"learning_rate": 1e38, "lr_scheduler_type": "constant"}
    with pytest.raises(NonFiniteError, match="step 2"):
        train("dpo", PAIRS, loaded(), tmp_path / "out", **settings)
    assert not list((tmp_path / "out").rglob("*.safetensors"))


def test_weights_that_only_the_last_step_broke_are_not_saved(loaded, tmp_path):
    settings = QUIET | {"learning_rate": 1e38, "max_steps": 1}
    with pytest.raises(NonFiniteError, match="after step 1"):
        train("dpo", PAIRS, loaded(), tmp_path / "out", **settings)
    assert not list((tmp_path / "out").rglob("*.safetensors"))
    assert json.loads((tmp_path / "out" / "run.json").read_text())["state"] == "diverged"


def test_evaluation_stops_the_run_too(loaded, tmp_path):
    """Four training calls, then the evaluation's first."""
    with pytest.raises(NonFiniteError, match=r"after step 4: eval_strange is nan"):
        train(
            Breaks(what="metric", at=5),
            PAIRS,
            loaded(),
            tmp_path / "out",
            eval_data=PAIRS[:2],
            **QUIET,
        )
    assert not (tmp_path / "out" / "model.safetensors").exists()


@pytest.mark.parametrize("fails_at", ["model", "optimizer"])
def test_a_full_disk_leaves_the_former_checkpoints_and_nothing_half(
    loaded, tmp_path, monkeypatch, fails_at
):
    """The disk is full in the second checkpoint, half of the file written."""
    written = []

    def full(path, content):
        written.append(path)
        if len(written) == 2:
            with open(path, "wb") as file:
                file.write(b"half")
            raise content

    if fails_at == "model":
        import transformers.modeling_utils as where

        name, error = "safe_save_file", OSError(errno.ENOSPC, "No space left on device")
        former = where.safe_save_file

        def save(tensors, path, *rest, **options):
            full(path, error)
            return former(tensors, path, *rest, **options)
    else:
        where, name, error = torch, "save", RuntimeError("PytorchStreamWriter failed")
        former = torch.save

        def save(value, path, *rest, **options):
            if str(path).endswith("optimizer.pt"):
                full(path, error)
            return former(value, path, *rest, **options)

    monkeypatch.setattr(where, name, save)
    with pytest.raises(ModelError, match="cannot write"):
        train("dpo", PAIRS, loaded(), tmp_path / "out", save_steps=1, **QUIET)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["checkpoint-1", "run.json"]
    assert json.loads((tmp_path / "out" / "run.json").read_text())["state"] == "failed"
    assert last_checkpoint(tmp_path / "out") == str(tmp_path / "out" / "checkpoint-1")


def test_old_checkpoints_still_go_when_new_ones_come(loaded, tmp_path):
    train("dpo", PAIRS, loaded(), tmp_path / "out", save_steps=1, save_total_limit=2, **QUIET)
    folders = sorted(p.name for p in (tmp_path / "out").iterdir() if p.is_dir())
    assert folders == ["checkpoint-3", "checkpoint-4"]


def test_the_best_checkpoint_is_kept_and_loaded(loaded, tmp_path):
    run = train(
        "dpo",
        PAIRS,
        loaded(),
        tmp_path / "out",
        eval_data=PAIRS,
        save_steps=1,
        eval_steps=1,
        eval_strategy="steps",
        load_best_model_at_end=True,
        save_total_limit=1,
        metric_for_best_model="eval_length/chosen",
        **QUIET,
    )
    state = json.loads((tmp_path / "out/checkpoint-1/trainer_state.json").read_text())
    assert state["best_model_checkpoint"] == str(tmp_path / "out" / "checkpoint-1")
    from safetensors.torch import load_file

    best = load_file(tmp_path / "out" / "checkpoint-1" / "model.safetensors")
    weight = run.model.model.norm.weight.detach()
    assert torch.equal(best["model.norm.weight"], weight)


def test_a_start_that_fails_leaves_no_folder(loaded, tmp_path):
    def broken(prompt, completion):
        raise KeyError("weather")

    settings = QUIET | {"samples": 1, "max_new_tokens": 2}
    with pytest.raises(InputError):
        train("ppo", PAIRS, loaded(), tmp_path / "out", rewards=[broken], **settings)
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="lora settings"):
        train("dpo", PAIRS, loaded(), tmp_path / "out", lora={"bias": "much"}, **QUIET)
    assert not (tmp_path / "out").exists()
