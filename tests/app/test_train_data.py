"""`tokenry train` takes data from wherever they are, reads them once, and says what it read."""

import gzip
import json
import os
import threading

import pytest

PAIRS = [
    {"prompt": "the cat ", "chosen": "sat there", "rejected": "(x"},
    {"prompt": "the dog", "chosen": " sat there", "rejected": " is a theory"},
]
LINES = "\n".join(map(json.dumps, PAIRS)) + "\n"


def folder(path):
    from datasets import Dataset

    Dataset.from_list(PAIRS).save_to_disk(str(path))


@pytest.mark.parametrize("form", ["gzip", "array", "folder", "pipe"])
def test_training_reads_every_form_once_and_records_it(run, model, tmp_path, form):
    data = tmp_path / "data"
    if form == "gzip":
        data.write_bytes(gzip.compress(LINES.encode()))
    elif form == "array":
        data.write_text(json.dumps(PAIRS))
    elif form == "folder":
        folder(data)
    else:
        os.mkfifo(data)
        threading.Thread(target=lambda: data.write_text(LINES), daemon=True).start()
    config = tmp_path / "settings.yaml"
    config.write_text("max_steps: 1\n")
    base = ("train", "--objective", "dpo", "-m", model, "-c", config)
    code, out, _ = run(*base, "-d", data, "-o", tmp_path / "out", "--json")
    assert code == 0
    record = json.loads(out)["data"]
    assert record["read_as"] == "preference"
    assert record["pairs"] == 2
    assert record["crossing"] > 0  # "the cat " ends in a space
    assert record["form"].startswith(
        {"gzip": "JSON lines, gzip", "array": "JSON array", "folder": "datasets"}.get(form, "JSON")
    )
    assert record["file"] == (None if form == "pipe" else str(data))
    plain = tmp_path / "plain.jsonl"
    plain.write_text(LINES)
    code, out, _ = run(*base, "-d", plain, "-o", tmp_path / "plain")
    assert "2 preference pairs (JSON lines)" in " ".join(out.split())
    assert "tokens reach from the prompt into the completion" in " ".join(out.split())
    other = json.loads((tmp_path / "plain" / "run.json").read_text())["data"]
    assert other["tokens"] == record["tokens"]
    if form == "folder":
        code, out, _ = run("inspect", "--against", tmp_path / "out", "--json")
        assert code == 0
        assert len(json.loads(out)["pairs"]) == 2


def test_data_of_another_kind_are_named_before_training(refused, model, tmp_path):
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps({"messages": [{"role": "user", "content": "hi"}]}))
    message = refused("train", "-d", data, "-o", tmp_path / "out", "-m", model)
    assert 'line 1: the field "chosen" is missing; the row has "messages"' in message
    data.write_text(json.dumps({"instruction": "hi", "output": "hello"}))
    message = refused("train", "-d", data, "-o", tmp_path / "out", "-m", model)
    assert 'rename "instruction"' in message
    data.write_bytes(b"\x00\x01\x02")
    assert "is not text" in refused("train", "-d", data, "-o", tmp_path / "out", "-m", model)
    assert not (tmp_path / "out").exists()
