"""run.json: what decides a run is in it, is compared on resume, and a resumed run goes on."""

import copy
import json
import shutil

import pytest
import torch

from tokenry.core.errors import InputError
from tokenry.learn.record import fingerprint, read_record
from tokenry.learn.run import train

PAIRS = [
    {"prompt": f"the {noun}", "chosen": " sat there", "rejected": " gathered" * (1 + i % 2)}
    for i, noun in enumerate(("cat", "dog", "mat", "theory", "father", "feather", "age", "name"))
]
QUIET = {"disable_tqdm": True, "use_cpu": True, "learning_rate": 1e-3}


@pytest.fixture(scope="module")
def begun(tiny_llama_text, tiny_tokenizer, tmp_path_factory):
    """Two folders of models and a run of two steps on the first, with a checkpoint after one."""
    folder = tmp_path_factory.mktemp("begun")
    other = copy.deepcopy(tiny_llama_text)
    with torch.no_grad():
        other.model.norm.weight += 0.01
    for name, model in (("model", tiny_llama_text), ("other", other)):
        model.save_pretrained(folder / name)
        tiny_tokenizer.save_pretrained(folder / name)
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, PAIRS)))
    (folder / "reward.py").write_text("def length(p, c):\n    return -len(c)\n")
    run = train("dpo", folder / "pairs.jsonl", folder / "model", folder / "run", **OPTIONS)
    return folder, run.record


OPTIONS = QUIET | {
    "save_steps": 1,
    "max_length": 64,
    "max_steps": 2,
    "per_device_train_batch_size": 4,
}


def resume(folder, **changes):
    options = {"model": folder / "model", "data": folder / "pairs.jsonl"} | OPTIONS | changes
    return train("dpo", output=folder / "run", resume=True, **options)


def test_everything_that_decides_a_run_is_in_its_record(begun, tiny_tokenizer):
    folder, record = begun
    assert record == json.loads((folder / "run" / "run.json").read_text())
    assert record["reading"] == {
        "data_format": "auto",
        "max_length": 64, "truncate": "error", "as_chat": False, "bad_rows": "error",
        "template": record["reading"]["template"],
    }  # fmt: skip
    assert len(record["reading"]["template"]) == 64
    assert record["model"] == str(folder / "model")
    assert record["reference"] == "auto"
    assert record["adapter"] is None
    assert record["training"]["seed"] == 0
    assert set(record["fingerprints"]) == {"model"}
    assert {"tokenry", "torch", "transformers", "peft"} <= set(record["versions"])
    assert record["dtype"]["trained"] == "float32"


def test_hyper_parameters_under_their_former_names_are_read(tmp_path):
    former = {"sides": "('chosen',)", "parts_learning_rate": 0.1, "beta": 0.4}
    (tmp_path / "run.json").write_text(json.dumps({"hyperparameters": former}))
    assert read_record(tmp_path)["hyperparameters"] == {
        "completions": "('chosen',)", "modules_learning_rate": 0.1, "beta": 0.4,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_length": 32}, r"with reading \{'max_length': 64\}, not \{'max_length': 32\}"),
        ({"truncate": "prompt"}, "'truncate': 'error'"),
        ({"as_chat": True}, "'as_chat': False"),
        ({"bad_rows": "skip"}, "'bad_rows': 'error'"),
        ({"reference": "copy"}, "with reference auto, not copy"),
        ({"seed": 1}, "'seed': 0"),
        ({"weight_decay": 0.1}, "weight_decay"),
        ({"lora": True}, "with lora None"),
        ({"dropout": True}, "with dropout False, not True"),
        ({"bf16": True}, "with training"),
    ],
    ids=str,
)
def test_resuming_with_anything_else_is_refused(begun, changes, message):
    with pytest.raises(InputError, match=message):
        resume(begun[0], **changes)


def test_resuming_with_other_weights_is_refused(begun, tmp_path):
    folder, _ = begun
    with pytest.raises(InputError, match="with model"):
        resume(folder, model=folder / "other")
    other = tmp_path / "pairs.jsonl"
    other.write_text((folder / "pairs.jsonl").read_text() + "\n")
    with pytest.raises(InputError, match="the data are not those"):
        resume(folder, data=other)
    # the same folder, with other weights or another template in it
    shutil.copytree(folder, tmp_path / "moved")
    record = tmp_path / "moved" / "run" / "run.json"
    record.write_text(record.read_text().replace(str(folder), str(tmp_path / "moved")))
    weights = tmp_path / "moved" / "model" / "model.safetensors"
    shutil.copy(folder / "other" / "model.safetensors", weights)
    with pytest.raises(InputError, match="the weights of model are not those"):
        resume(tmp_path / "moved")
    shutil.copy(folder / "model" / "model.safetensors", weights)
    template = tmp_path / "moved" / "model" / "chat_template.jinja"
    template.write_text(template.read_text() + " ")
    with pytest.raises(InputError, match="'template'"):
        resume(tmp_path / "moved")


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("optimizer.pt", "has no optimizer state"),
        ("scheduler.pt", "has no schedule state"),
        ("rng_state.pth", "has no random state"),
    ],
)
def test_a_checkpoint_without_its_states_is_no_fresh_start(begun, tmp_path, file, message):
    shutil.copytree(begun[0], tmp_path / "copy")
    for checkpoint in (tmp_path / "copy" / "run").glob("checkpoint-*"):
        (checkpoint / file).unlink()
    with pytest.raises(InputError, match=message):
        resume(tmp_path / "copy")


def test_a_folder_without_a_run_cannot_be_resumed(begun, tmp_path):
    folder, _ = begun
    options = {"model": folder / "model", "data": PAIRS, "resume": True} | OPTIONS
    for output in (tmp_path / "none", tmp_path):
        with pytest.raises(InputError, match="there is no run to resume in"):
            train("dpo", output=output, **options)
    assert not (tmp_path / "none").exists()
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(InputError, match="is not JSON"):
        train("dpo", output=tmp_path, **options)


def test_other_versions_are_warned_of(begun, tmp_path):
    shutil.copytree(begun[0], tmp_path / "copy")
    file = tmp_path / "copy" / "run" / "run.json"
    record = json.loads(file.read_text())
    record["versions"]["torch"] = "1.0"
    record["model"] = str(tmp_path / "copy" / "model")
    file.write_text(json.dumps(record))
    with pytest.warns(UserWarning, match="begun with {'torch': '1.0'}"):
        resume(tmp_path / "copy")


def test_a_fingerprint_sees_a_trained_model_and_not_a_copy(tiny_llama_text):
    model = copy.deepcopy(tiny_llama_text)
    assert fingerprint(model) == fingerprint(tiny_llama_text)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 1e-4
    assert fingerprint(model) != fingerprint(tiny_llama_text)
    assert fingerprint(tiny_llama_text) != fingerprint(copy.deepcopy(tiny_llama_text).bfloat16())


def test_a_reward_whose_file_changed_is_another_run(begun, tmp_path):
    folder, _ = begun
    code = tmp_path / "rules.py"
    code.write_text("def length(p, c):\n    return -len(c)\n")
    options = {
        "rewards": [f"{code}:length"], "samples": 1, "max_new_tokens": 2, "max_steps": 1,
        "frozen": {"dpo": folder / "model"}, **QUIET,
    }  # fmt: skip
    train("rto", PAIRS, folder / "model", tmp_path / "out", **options)
    code.write_text("def length(p, c):\n    return len(c)\n")
    with pytest.raises(InputError, match="with code"):
        train("rto", PAIRS, folder / "model", tmp_path / "out", resume=True, **options)


def test_a_single_step_is_a_step(begun, tmp_path):
    """The default warm-up, a tenth of the steps, would make the only step one of rate 0."""
    folder, _ = begun
    run = train("dpo", PAIRS, folder / "model", tmp_path / "out", max_steps=1, **QUIET)
    assert run.record["history"][0]["learning_rate"] == pytest.approx(1e-3)
    with pytest.raises(InputError, match="the only step has the learning rate 0"):
        train("dpo", PAIRS, folder / "model", tmp_path / "no", max_steps=1, warmup_steps=1, **QUIET)
    assert not (tmp_path / "no").exists()
