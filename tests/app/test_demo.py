"""The demo's sections on a tiny model, and the page that they make."""

import re
from html.parser import HTMLParser

import pytest

from tokenry.app.demo import aligned, constrained, drafted, inspected
from tokenry.app.demo.page import Report, Section, render
from tokenry.decode.speculation.tree import TokenTree
from tokenry.model.hub import Loaded


@pytest.fixture(scope="module")
def loaded(tiny_llama_text, tiny_tokenizer):
    import copy

    return Loaded(copy.deepcopy(tiny_llama_text), tiny_tokenizer)


@pytest.fixture(scope="module")
def sections(loaded):
    pairs = [
        {"prompt": "the cat", "chosen": " sat on the mat", "rejected": " gathered feathers"},
        {"prompt": "the dog", "chosen": " sat there", "rejected": " is a theory"},
    ]
    return {
        "inspected": inspected.section(loaded, "the cat sat on the mat & <b>there</b>", " sat"),
        "constrained": constrained.section(loaded, ("Lima",), particles=3, max_new_tokens=12),
        "drafted": drafted.section(loaded, {"code": "def add(a, b)"}, max_new_tokens=12),
        # last: it leaves an adapter on the model
        "aligned": aligned.section(loaded, pairs, pairs[:1], max_steps=1, as_chat=False),
    }


@pytest.fixture(scope="module")
def page(sections):
    return render(Report("tiny", list(sections.values()), 1.0, 0, {"torch": "2"}, "a machine"))


class Balanced(HTMLParser):
    """Checks that every element that opens is closed, in order."""

    VOID = ("meta", "br", "wbr", "path", "use")

    def __init__(self):
        super().__init__()
        self.open = []
        self.links = []

    def handle_starttag(self, tag, attrs):
        self.links += [v for n, v in attrs if n in ("src", "href", "xlink:href") and v]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag


def test_the_page_is_whole_and_refers_to_nothing_outside(page):
    parser = Balanced()
    parser.feed(page)
    assert parser.open == []
    assert all(link.startswith("#") for link in parser.links)
    assert "@import" not in page
    assert not re.search(r"url\((?!#)", page)


def test_every_section_has_its_figure_code_and_numbers(sections, page):
    assert page.count("<figure>") == 5
    assert page.count("<pre>") >= 4
    for section in sections.values():
        assert section.title in page
        assert section.numbers
        for label, _ in section.numbers:
            assert label.split(":")[0] in page.replace("&amp;", "&")


def test_figures_take_the_colours_of_the_page(page):
    assert "currentColor" in page
    assert "#010203" not in page
    assert "DejaVu" not in page


def test_texts_are_escaped(page):
    assert "<b>there" not in page
    assert "&lt;b" in page


def test_inspected_numbers_are_those_of_the_inspection(loaded, sections):
    from tokenry.measure.inspect import inspect

    found = inspect(loaded.model, loaded.tokenizer, "the cat sat on the mat & <b>there</b>")
    row = next(row for row in found.table() if row["token"] == " sat")
    assert (
        dict(sections["inspected"].numbers)["surprise at “sat”"] == f"{row['surprisal']:.1f} nats"
    )


def test_only_whole_texts_of_the_schema_count_as_valid(tiny_tokenizer):
    from tokenry.decode.constraints.grammar import Grammar

    schema = Grammar.json_schema({"enum": ["cat"]}, tiny_tokenizer, whitespace="")
    for text, verdict in (('"cat"', True), ('"ca', False), ('"dog"', False), ('"cat"x', False)):
        assert constrained.fits(schema, tiny_tokenizer(text)["input_ids"]) is verdict


def test_drafted_text_is_compared_with_plain_decoding(sections):
    (run,) = sections["drafted"].content["runs"]
    assert run["identical"] is True
    # the first token comes from the prompt's pass
    assert 1 + sum(step["added"] for step in run["steps"]) == run["tokens"]
    text = run["first"] + "".join(
        "".join(step["accepted"] + step["bonus"]) for step in run["steps"]
    )
    assert text.replace("</s>", "").replace("\N{REPLACEMENT CHARACTER}", "") in run["text"] or (
        "\N{REPLACEMENT CHARACTER}" in run["text"]
    )


def test_a_drawn_tree_has_every_node_once_and_the_accepted_path_apart():
    tree = TokenTree((5, 6, 7, 8), (-1, 0, 0, 2))
    found = drafted.drawing(tree, [0, 2, 3])
    assert found["kept_dots"].count("M") == 3
    assert found["dots"].count("M") == 1
    assert found["kept_lines"].count("L") == 2
    assert found["lines"].count("L") == 1
    places = re.findall(r"M(\d+) (\d+)h0", found["kept_dots"] + found["dots"])
    assert len(set(places)) == 4
    assert len({row for _, row in re.findall(r"M(\d+) (\d+)h0", found["kept_dots"])}) == 1


def test_before_training_the_policy_is_its_reference(sections):
    rows = {row["label"]: row for row in sections["aligned"].content["rows"]}
    assert float(rows["implicit reward margin"]["before"]) == pytest.approx(0, abs=1e-3)
    assert float(rows["KL per token, chosen (nats)"]["before"]) == pytest.approx(0, abs=1e-3)


def test_missing_plots_are_told_before_anything_is_measured(monkeypatch, capsys, tmp_path):
    from tokenry.app.cli import main
    from tokenry.core import extras

    real = extras.find_spec
    monkeypatch.setattr(
        extras, "find_spec", lambda name: None if name == "matplotlib" else real(name)
    )
    assert main(["demo", "--output", str(tmp_path / "report.html")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: the demo needs matplotlib")
    assert "tokenry[plots]" in error
    assert not (tmp_path / "report.html").exists()


def test_the_demo_writes_the_page(monkeypatch, sections, loaded, tmp_path, capsys):
    from tokenry.app.cli import main
    from tokenry.app.demo import run

    monkeypatch.setattr(run, "load", lambda name: loaded)
    for module, name in (
        (inspected, "inspected"), (constrained, "constrained"), (drafted, "drafted"),
        (aligned, "aligned"),
    ):  # fmt: skip
        made: Section = sections[name]
        monkeypatch.setattr(module, "section", lambda *_, made=made, **__: made)
    page = tmp_path / "demo" / "report.html"
    assert main(["demo", "--output", str(page)]) == 0
    assert str(page) in capsys.readouterr().out
    assert page.read_text().startswith("<!doctype html>")
