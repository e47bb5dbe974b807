"""The lists of papers, objectives and tokens: quick, whole, and readable at 80 columns."""

import dataclasses
import importlib
import json
import os
import subprocess
import sys

import pytest

from tokenry.app import remembered as remembered_module
from tokenry.app.remembered import fingerprint, remembered
from tokenry.core.registry import import_modules
from tokenry.model.hub import load_tokenizer
from tokenry.papers import catalogue
from tokenry.papers.base import Paper
from tokenry.text.tokenizer_file import TokenizerFile
from tokenry.text.vocabulary import token_bytes


def loaded_modules(*arguments):
    """Which of the heavy libraries a command line imports."""
    script = (
        "import sys; from tokenry.app.cli import main; code = main(sys.argv[1:]);"
        "heavy = [name for name in ('torch', 'transformers') if name in sys.modules];"
        "sys.exit(code or ' '.join(heavy))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    found = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return found.stderr.strip()


# --- papers ---------------------------------------------------------------------------------------


def test_the_records_that_are_read_are_those_that_are_imported():
    modules = import_modules("tokenry.papers")
    imported = {module.PAPER.key: module.PAPER for module in modules if hasattr(module, "PAPER")}
    read = catalogue.papers()
    assert set(read) == set(imported)
    for key, record in imported.items():
        for field in dataclasses.fields(Paper):
            if field.name != "reproduce":
                assert getattr(read[key], field.name) == getattr(record, field.name), key


def test_a_record_with_a_computed_field_is_imported(monkeypatch):
    record = Paper(1, "key", "A title", "0", "role", "family", "claim", lambda seed, scale: seed)
    module = type("module", (), {"PAPER": record})
    monkeypatch.setattr(importlib, "import_module", lambda name: module)
    plain = 'x = 1\nPAPER = Paper(1, "key", title="A " "title", arxiv="0", role="role",\n'
    plain += 'family="family", claim="claim", reproduce=run)\n'
    found = catalogue.declared("module", plain)
    assert found.title == "A title"
    assert found.reproduce is not record.reproduce
    assert found.reproduce(7, "full") == 7
    assert catalogue.declared("module", plain.replace('"claim"', "CLAIM")) is record
    assert catalogue.declared("module", "PAPERS = 1") is None


def test_every_paper_has_one_line_at_80_columns(run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    lines = run("papers")[1].splitlines()
    assert max(map(len, lines)) <= 80
    for key, paper in catalogue.papers().items():
        (line,) = [line for line in lines if key in line.split()]
        start = line.rstrip().split("  ")[-1].strip().removesuffix("…")
        assert paper.title.startswith(start)
        assert len(start) > 20 or start == paper.title


def test_one_paper_is_shown_whole(run, refused):
    out = " ".join(run("papers", "tdpo")[1].split())
    result = catalogue.read_result("tdpo")
    paper = catalogue.paper("tdpo")
    checks = [check["text"] for check in result["checks"]]
    assert len(checks) > 2
    for text in (paper.title, paper.arxiv, paper.claim, *checks):
        assert " ".join(text.split()) in out
    for row in result["measurements"]:
        assert row["label"] in out
    found = json.loads(run("papers", "tdpo", "--json")[1])
    assert found["result"] == result
    assert found["claim"] == paper.claim
    assert "did you mean tdpo" in refused("papers", "tdop")
    assert "no paper has" in refused("papers", "--role", "sampler", "--family", "preference")


# --- quick ----------------------------------------------------------------------------------------


def test_papers_and_tokens_take_neither_torch_nor_transformers(model):
    assert loaded_modules("papers") == ""
    assert loaded_modules("papers", "tdpo") == ""
    assert loaded_modules("tokenize", "the cat", "-m", model) == ""


def test_objectives_take_them_once(tmp_path, monkeypatch):
    monkeypatch.setenv("TOKENRY_HOME", str(tmp_path))
    assert "torch" in loaded_modules("objectives")
    assert loaded_modules("objectives", "t*dpo") == ""


def test_a_list_is_made_anew_when_a_file_has_changed(tmp_path, monkeypatch):
    package, home = tmp_path / "package", tmp_path / "home"
    (package / "sub").mkdir(parents=True)
    source = package / "sub" / "method.py"
    source.write_text("a = 1")
    monkeypatch.setattr(remembered_module, "PACKAGE", package)
    monkeypatch.setenv("TOKENRY_HOME", str(home))
    made = []
    make = lambda: made.append(1) or [len(made)]  # noqa: E731
    assert remembered("things", make) == remembered("things", make) == [1]
    before = fingerprint(package)
    source.write_text("a = 12")
    assert fingerprint(package) != before
    assert remembered("things", make) == [2]
    assert len(list((home / "lists").iterdir())) == 1  # the former list is gone
    next((home / "lists").iterdir()).write_text("{")
    assert remembered("things", make) == [3]
    monkeypatch.setenv("TOKENRY_HOME", str(source))  # no folder can be made there
    assert remembered("things", make) == [4]


def test_numbers_of_objectives_are_numbers(run):
    for row in json.loads(run("objectives", "--json")[1]):
        for value in row["hyperparameters"].values():
            with pytest.raises(ValueError, match="could not convert"):
                float(value if isinstance(value, str) else "a word")


# --- tokens ---------------------------------------------------------------------------------------


def same_tokenizer(light, full, texts):
    assert isinstance(light, TokenizerFile)
    assert len(light) == len(full)
    assert set(full.all_special_ids) >= set(light.all_special_ids)
    assert token_bytes(light) == token_bytes(full)
    for text in texts:
        want = full(text, add_special_tokens=False)["input_ids"]
        assert light(text, add_special_tokens=False)["input_ids"] == want


TEXTS = ("the cat, naïve café", " 東京 🙂\n\n\tdef f(x):", "</s> <s> <|im_end|><bos>", "a\u0301 ﬁ")


def test_the_tokenizers_file_alone_says_what_transformers_does(model, tiny_tokenizer):
    same_tokenizer(load_tokenizer(model), tiny_tokenizer, TEXTS)


@pytest.mark.model
@pytest.mark.parametrize("name", ["smollm2", "gemma3"])
def test_so_do_those_of_the_named_models(request, name):
    full = request.getfixturevalue(name).tokenizer
    same_tokenizer(load_tokenizer({"gemma3": "gemma3-270m"}.get(name, name)), full, TEXTS)


def test_a_class_that_may_change_its_file_is_read_by_transformers(model, tmp_path, tiny_tokenizer):
    import shutil

    folder = tmp_path / "other"
    shutil.copytree(model, folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["tokenizer_class"] = "LlamaTokenizer"
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    assert TokenizerFile.read(folder) is None
    assert not isinstance(load_tokenizer(folder), TokenizerFile)
