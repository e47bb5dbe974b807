"""tokenry compress: what is kept and printed, and one line for what cannot be done."""

import io
import json

import pytest

TEXT = "the cat sat on the mat. The dog sat there!\nthere is a theory that 42 is\n"


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


def is_subsequence(some, of):
    rest = iter(of)
    return all(word in rest for word in some)


def test_help_teaches(run):
    code, out, _ = run("compress", "--help")
    assert code == 0
    assert "Example" in out
    assert "tokenry compress" in out
    assert "--seed" in out


@pytest.mark.parametrize("scorer", ["surprisal", "globenc", "decompx", "random"])
def test_the_share_of_words_is_kept_in_order(run, model, file, scorer):
    which = () if scorer == "random" else ("-m", model)
    code, out, err = run("compress", file, "-p", 60, "-s", scorer, *which)
    assert code == 0
    assert len(out.split()) == round(0.6 * len(TEXT.split())) == 10
    assert is_subsequence(out.split(), TEXT.split())
    assert "kept 10 of 17 words" in err
    assert out.count("\n") == 2


def test_all_of_it_is_the_text_and_nothing_is_empty(run, model, file):
    assert run("compress", file, "-p", 100, "-m", model)[1] == TEXT
    assert run("compress", file, "-p", 0, "-m", model, "-k", "nothing")[1].strip() == ""


def test_standard_input_gives_the_same(run, model, file, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO(TEXT))
    assert run("compress", "-", "-m", model)[1] == run("compress", file, "-m", model)[1]


def test_protected_words_stay(run, model, file):
    _, out, _ = run("compress", file, "-p", 10, "-m", model, "--keep", "[0-9]+|dog")
    assert {"42", "dog"} <= set(out.split())
    assert len(out.split()) == 2


def test_json_tells_every_word(run, model, file):
    _, out, _ = run(
        "compress", file, "-p", 50, "-m", model, "--json", "-s", "globenc", "-k", "nothing"
    )
    found = json.loads(out)
    assert [row["word"] for row in found["scores"]] == TEXT.split()
    assert sum(row["kept"] for row in found["scores"]) == found["words_kept"] == 8
    assert found["tokens_kept"] < found["tokens"]
    assert found["text"].split() == [row["word"] for row in found["scores"] if row["kept"]]
    low = max(row["score"] for row in found["scores"] if not row["kept"])
    assert all(row["score"] >= low for row in found["scores"] if row["kept"])


FINDING = (
    "In 2023 sales did not rise by 5 kg in Oslo if prices fell. Ada never said so.\n"
    "The drug doesn't help without 10 mg of water, and it may fail.\n"
)


@pytest.mark.parametrize("scorer", ["surprisal", "random"])
def test_negations_numbers_units_and_names_stay_and_the_rest_that_matters_is_named(
    run, model, tmp_path, scorer
):
    path = tmp_path / "finding.txt"
    path.write_text(FINDING)
    how = ["-s", "random"] if scorer == "random" else ["-s", scorer, "-m", model]
    _, out, err = run("compress", path, "-p", 0, *how)
    assert " ".join(out.split()) == "2023 not 5 kg Oslo Ada never doesn't without 10 mg fail."
    assert "could change the sense: if, may" in err
    found = json.loads(run("compress", path, "-p", 0, *how, "--json")[1])
    assert [(row["word"], row["kind"]) for row in found["dropped"]] == [
        ("if", "conditions"),
        ("may", "modals"),
    ]
    assert all(FINDING[row["start"] :].startswith(row["word"]) for row in found["dropped"])


def test_kinds_replace_the_default_and_patterns_add_to_it(run, tmp_path):
    path = tmp_path / "finding.txt"
    path.write_text(FINDING)

    def kept(*options):
        return run("compress", path, "-p", 0, "-s", "random", *options)[1].split()

    assert kept("-k", "nothing") == []
    assert kept("-k", "modals,conditions") == ["if", "may"]
    assert kept("-k", "numbers", "-k", "wat.r|sales") == ["2023", "sales", "5", "10", "water,"]
    assert {"not", "sales"} <= set(kept("-k", "sales"))
    assert "left out" in run("compress", path, "-p", 0, "-s", "random", "-k", "nothing")[2]


def test_random_follows_the_seed_and_loads_no_model(run, file, monkeypatch):
    monkeypatch.setattr("tokenry.app.commands.compress.load", None)

    def draw(seed):
        return run("compress", file, "-s", "random", "-p", 50, "--seed", seed)[1]

    assert draw(1) == draw(1)
    assert len({draw(seed) for seed in range(5)}) > 1


def test_a_text_longer_than_the_models_window_is_read_in_pieces(run, model, tmp_path):
    path = tmp_path / "long.txt"
    path.write_text("the cat sat on the mat and " * 50)  # one sentence beyond every limit
    for scorer in ("surprisal", "globenc"):
        code, out, _ = run("compress", path, "-s", scorer, "-m", model, "-p", 50)
        assert code == 0
        assert len(out.split()) == 175


def test_bad_input_is_one_line(refused, model, file, tmp_path):
    empty = tmp_path / "empty.txt"
    empty.write_text(" \n")
    assert "[0, 100]" in refused("compress", file, "-p", 101)
    assert "[0, 100]" in refused("compress", file, "-p", "nan")
    assert "[0, 100]" in refused("compress", file, "--percent=-1")
    assert "nothing to compress" in refused("compress", empty)
    assert "no such file" in refused("compress", tmp_path / "gone.txt")
    assert "did you mean globenc" in refused("compress", file, "-s", "globnec")
    assert "regular expression" in refused("compress", file, "-k", "(")
    assert "did you mean smollm2" in refused("compress", file, "-m", "smollm")
