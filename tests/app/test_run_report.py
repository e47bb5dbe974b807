"""The report on a run: read as the run read its data, against what the run was held to."""

import json
import re
import shutil

import pytest

PAIRS = [
    {"prompt": "the cat", "chosen": " sat there", "rejected": " gathered feathers"},
    {"prompt": "the dog sat on the mat", "chosen": " there", "rejected": " gathered" * 4},
    {"prompt": "their father", "chosen": " sat there and there", "rejected": " is a mat"},
]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    file = tmp_path_factory.mktemp("data") / "pairs.jsonl"
    file.write_text("\n".join(map(json.dumps, PAIRS)))
    return file


@pytest.fixture
def trained(run, model, pairs, tmp_path):
    """A run's folder and record, whose evaluation is on the pairs that it was trained on."""

    def trained(name="out", settings="", *options):
        config = tmp_path / f"{name}.yaml"
        config.write_text(f"learning_rate: 0.01\nnum_train_epochs: 3\nbeta: 0.5\n{settings}")
        base = ("--objective", "dpo", "-d", pairs, "-m", model, "--eval-data", pairs)
        if "-m" in options:
            base = base[:4]
        code, out, err = run(
            "train", *base, "-c", config, "-o", tmp_path / name, "--json", *options
        )
        assert code == 0, err
        return tmp_path / name, json.loads(out)

    return trained


@pytest.mark.parametrize(
    "settings",
    [
        "as_chat: true\n",
        "max_length: 12\ntruncate: completion\n",
        "as_chat: true\nmax_length: 24\ntruncate: prompt\n",
    ],
)
def test_the_margin_is_the_runs_own(run, trained, settings):
    folder, record = trained("out", settings)
    code, out, _ = run("inspect", "--against", folder, "--json")
    assert code == 0
    report = json.loads(out)
    wanted = record["evaluation"]["eval_rewards/margin"]
    assert abs(wanted) > 0.05
    assert report["margin"] == pytest.approx(wanted, abs=1e-4)
    assert report["kl"] == pytest.approx(record["evaluation"]["eval_kl"], abs=1e-4)
    assert report["reference"] == record["model"]


def test_the_reference_is_the_runs_own(run, trained, model):
    first, _ = trained("first")
    folder, record = trained("second", "", "--reference", first)
    code, out, _ = run("inspect", "--against", folder, "--json")
    report = json.loads(out)
    assert code == 0
    assert report["reference"] == str(first)
    assert report["margin"] == pytest.approx(record["evaluation"]["eval_rewards/margin"], abs=1e-4)


def test_a_run_on_an_adapter_is_compared_with_the_adapter(run, trained, pairs):
    first, _ = trained("first", "", "--lora")
    again = ("-m", first, "--eval-data", pairs)
    for mode in ((), ("--adapter", "stack"), ("--adapter", "merge")):
        folder, record = trained("".join(mode) or "continued", "", *again, *mode)
        assert record["adapter"] == (mode[1] if mode else "continue")
        report = json.loads(run("inspect", "--against", folder, "--json")[1])
        wanted = record["evaluation"]["eval_rewards/margin"]
        assert report["margin"] == pytest.approx(wanted, abs=1e-4)


def test_a_long_row_is_skipped_and_counted(run, refused, tiny_tokenizer, tmp_path, pairs):
    """It used to be an IndexError: GPT-2 has 32 positions here, and the row 80 tokens."""
    from transformers import GPT2Config, GPT2LMHeadModel

    size = len(tiny_tokenizer)
    config = GPT2Config(vocab_size=size, n_positions=32, n_embd=16, n_layer=1, n_head=2)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    tiny_tokenizer.save_pretrained(tmp_path / "gpt2")
    folder = tmp_path / "out"
    base = ("train", "--objective", "dpo", "-d", pairs, "-m", tmp_path / "gpt2", "-o", folder)
    assert run(*base)[0] == 0
    more = tmp_path / "more.jsonl"
    long = {"prompt": "the cat", "chosen": " sat there" * 40, "rejected": " is"}
    more.write_text("\n".join(map(json.dumps, [*PAIRS, long])))
    code, out, _ = run("inspect", "--against", folder, "--pairs", more, "--json")
    report = json.loads(out)
    assert code == 0
    assert len(report["pairs"]) == 3
    assert report["skipped"] == 1
    assert "line 4" in report["first_skipped"]
    assert "1 rows skipped" in run("inspect", "--against", folder, "--pairs", more)[1]
    assert "no such file" in refused("inspect", "--against", folder, "--pairs", tmp_path / "gone")


def test_a_run_that_learned_from_no_pairs_is_reported_on_others(
    run, refused, model, pairs, tmp_path
):
    """The rollouts' prompts are the pairs' own, and say nothing about completions."""
    config = tmp_path / "c.yaml"
    config.write_text("samples: 1\nmax_new_tokens: 2\nmax_steps: 1\nlearning_rate: 0.01\n")
    folder = tmp_path / "out"
    base = ("train", "--objective", "ppo", "-d", pairs, "-m", model, "-c", config, "-o", folder)
    assert run(*base)[0] == 0
    assert "did not learn from pairs" in refused("inspect", "--against", folder)
    assert run("inspect", "--against", folder, "--pairs", pairs)[0] == 0


def test_what_is_no_longer_what_it_was_is_refused(run, refused, trained, tmp_path):
    folder, record = trained()
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text() + " ")
    assert "chat template" in refused("inspect", "--against", folder)
    template.write_text(template.read_text()[:-1])
    file = folder / "run.json"
    file.write_text(json.dumps(record | {"fingerprints": {"model": "0"}}))
    assert "other weights" in refused("inspect", "--against", folder)
    file.write_text(json.dumps({k: v for k, v in record.items() if k != "reading"}))
    assert "how it read its data" in refused("inspect", "--against", folder)
    shutil.rmtree(folder)
    assert "run.json" in refused("inspect", "--against", record["model"])


def test_the_page_of_a_report(run, refused, trained, tmp_path):
    folder, _ = trained()
    page = tmp_path / "moved.html"
    code, out, _ = run("inspect", "--against", folder, "--html", page)
    assert code == 0
    assert "reward accuracy" in out
    text = page.read_text()
    assert text.startswith("<!doctype html>")
    assert text.count("<h2>Pair ") == 3
    assert len(re.findall(r'class="t', text)) > 12
    assert "src=" not in text
    assert "http" not in text
    report = json.loads(run("inspect", "--against", folder, "--json")[1])
    assert f"margin {report['pairs'][0]['margin']:+.3f}" in text
    assert "folder" in refused("inspect", "--against", folder, "--html", tmp_path)
    assert "the report is about the run" in refused("inspect", "--against", folder, "-s", "entropy")


def test_data_may_be_compressed_or_a_pipe(run, model, pairs, tmp_path):
    import gzip
    import os

    packed = tmp_path / "pairs.jsonl.gz"
    packed.write_bytes(gzip.compress(pairs.read_bytes()))
    reading, writing = os.pipe()
    os.write(writing, pairs.read_bytes())
    os.close(writing)
    records = []
    for name, data in (("file", packed), ("pipe", f"/dev/fd/{reading}")):
        output = tmp_path / name
        base = ("train", "--objective", "dpo", "-m", model, "-d", data, "-o", output)
        code, out, err = run(*base, "--json")
        assert code == 0, err
        records.append(json.loads(out))
    os.close(reading)
    tokens = {record["data"]["tokens"] for record in records}
    assert len(tokens) == 1
    assert [record["data"]["pairs"] for record in records] == [3, 3]
    assert run("inspect", "--against", tmp_path / "file", "--json")[0] == 0
