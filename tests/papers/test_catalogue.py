"""The catalogue of papers: what is listed, and that results are written whole or not at all."""

import json

import pytest

from tokenry.core.errors import InputError, UnknownNameError
from tokenry.lab.outcome import verdict
from tokenry.lab.table import Table
from tokenry.papers import catalogue
from tokenry.papers.base import Paper


@pytest.fixture
def one_paper(monkeypatch):
    def reproduce(seed, scale):
        table = Table()
        table.add("a", 2.0, "nats", seed)
        return verdict(table, {"a > b": True}, reason="by far")

    record = Paper(5, "demo", "A Title", "2401.00001", "sampler", "control", "a beats b", reproduce)
    monkeypatch.setattr(catalogue, "papers", lambda: {"demo": record})
    return record


def test_a_reproduction_is_written_and_listed(one_paper, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(catalogue, "results_folders", lambda: [tmp_path / "results"])
    assert catalogue.listing()[0]["held"] is None
    result = catalogue.reproduce("demo", seed=3)
    file = catalogue.write_result(result, tmp_path / "results")
    assert result["held"]
    assert result["verdict"] == "held"
    assert json.loads(file.read_text())["measurements"] == [
        {"label": "a", "value": 2.0, "unit": "nats", "seed": 3}
    ]
    row = catalogue.listing(role="sampler")[0]
    assert list(row) == [
        "number", "key", "title", "arxiv", "role", "family", "claim", "held", "verdict", "seconds",
    ]  # fmt: skip
    assert (row["number"], row["held"]) == (5, True)
    assert [path.name for path in (tmp_path / "results").iterdir()] == ["demo.json"]


def test_unknown_keys_and_roles_are_named(one_paper):
    with pytest.raises(UnknownNameError, match="did you mean demo"):
        catalogue.paper("demos")
    with pytest.raises(UnknownNameError, match="unknown role"):
        catalogue.listing(role="samplr")


def test_a_broken_or_unwritable_result_is_an_error(one_paper, tmp_path, monkeypatch):
    monkeypatch.setattr(catalogue, "results_folders", lambda: [tmp_path])
    (tmp_path / "demo.json").write_text("{")
    with pytest.raises(InputError, match="not JSON"):
        catalogue.read_result("demo")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        catalogue.write_result({"key": "demo", "scale": "full"}, tmp_path / "file")


def test_every_paper_is_filed_completely():
    known = catalogue.papers()
    assert {"tdpo", "awrs", "ctgs", "token-recycling", "h2o", "stochastok"} <= set(known)
    numbers = [paper.number for paper in known.values() if paper.number is not None]
    assert len(numbers) == len(set(numbers))
    for key, record in known.items():
        assert record.key == key
        for text in (record.title, record.role, record.family, record.claim):
            assert text.strip()
        assert len(record.arxiv.split(".")) == 2
