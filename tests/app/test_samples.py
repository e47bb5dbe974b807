"""Sample files: listed, copied, and good for the commands they are for."""

import json

from tokenry.tasks.samples import SAMPLES, sample_file


def test_samples_are_listed_and_copied_and_nothing_is_overwritten(run, refused, tmp_path):
    rows = json.loads(run("data", "--json")[1])
    assert [row["name"] for row in rows] == list(SAMPLES)
    assert all(name in run("data")[1] for name in SAMPLES)
    folder = tmp_path / "new" / "samples"
    out = run("data", "copy", "-o", folder)[1]
    assert sorted(file.name for file in folder.iterdir()) == sorted(SAMPLES)
    assert out.splitlines() == [str(folder / name) for name in SAMPLES]
    for name in SAMPLES:
        assert (folder / name).read_bytes() == sample_file(name).read_bytes()
    assert "prefs.jsonl already" in refused("data", "copy", "prefs.jsonl", "-o", folder)
    assert "did you mean prefs.jsonl" in refused("data", "copy", "pref.jsonl", "-o", tmp_path)
    assert "--json has no effect" in refused("data", "--json", "copy")


def test_samples_are_what_they_say():
    from tokenry.learn.data import read_jsonl
    from tokenry.learn.user_code import user_value
    from tokenry.serving.trace import read_trace

    assert len(read_jsonl(sample_file("prompts.jsonl"))) == 16
    assert user_value(f"{sample_file('rules.py')}:brevity")("hi", "one two") == -0.04
    assert 1 < read_trace(str(sample_file("mine.csv"))).rate < 3
    for name in ("person.json", "users.json"):
        assert json.loads(sample_file(name).read_text())["type"] in ("object", "array")
