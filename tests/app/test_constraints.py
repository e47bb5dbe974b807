"""tokenry generate: how the options become constraints, and what is refused."""

import json

import pytest

from tokenry.app.constraints import TextConstraints
from tokenry.decode.steering.word_filters import AllOf, EndsWith, Length, WithoutLetters

SCHEMA = {"type": "array", "items": {"const": 1}, "minItems": 2, "maxItems": 2}


@pytest.fixture
def schema(tmp_path):
    def write(value):
        path = tmp_path / "schema.json"
        path.write_text(value if isinstance(value, str) else json.dumps(value))
        return path

    return write


def test_white_space_is_as_asked_for(run, model, schema):
    base = ["generate", "x", "-m", model, "-n", 60, "--seed", 3, "--steer", "ending"]
    base += ["--constrain", f"json:schema={schema(SCHEMA)},whitespace="]
    for pattern, texts in (("", {"[1,1]"}), (" ", {"[ 1 , 1 ]", "[1 , 1]", "[1, 1]"})):
        code, out, _ = run(*base[:-1], base[-1] + pattern)
        assert code == 0
        assert out.strip() in texts
    assert "regex" in run(*base[:-1], base[-1] + "(")[2]


def test_lenient_reading_says_which_formats_it_leaves_out(run, refused, model, schema):
    given = schema({"type": "string", "format": "colour", "maxLength": 2})
    base = ["generate", "x", "-m", model, "-n", 60, "--steer", "ending"]
    assert "'colour' is not checked" in refused(*base, "--json-schema", given)
    code, out, err = run(*base, "--constrain", f"json:schema={given},lenient=true")
    assert code == 0
    assert "'colour' at #/format" in err
    assert len(json.loads(out)) <= 2


@pytest.mark.parametrize("setting", ["whitespace=", "lenient=true"])
def test_settings_for_a_schema_need_one(refused, setting):
    assert "needs schema" in refused("generate", "x", "--constrain", f"json:{setting}")


def test_a_schema_file_is_read_without_loss(refused, model, schema):
    for text, said in [
        ('{"const": 9007199254740993}', "9007199254740993"),
        ('{"enum": [0.10000000000000000001]}', "0.10000000000000000001"),
        ('{"const": 1, "const": 2}', "twice"),
        ('{"const": NaN}', "NaN"),
    ]:
        line = refused("generate", "x", "-m", model, "--json-schema", schema(text))
        assert said in line


def test_a_letter_that_no_word_has_is_refused(refused, model):
    assert "accents" in refused("generate", "x", "-m", model, "--without-letter", "É")
    assert "takes letters" in refused("generate", "x", "-m", model, "--without-letter", "1")
    assert "takes letters" in refused("generate", "x", "--constrain", "words:rhymes=b4")


def test_the_words_of_all_options_are_judged_by_one_filter():
    """Two constraints on words would each begin words that the other cannot end."""
    options = ["words:ends=s,longest=5,wordless=true", "length:maximum=4", "words:shortest=2"]
    read = TextConstraints.read(options, without_letter=["A", "e"])
    assert [choice.name for choice in read.choices] == ["length", "words"]
    words = read.choices[1].settings
    assert words["wordless"] is True
    parts = (WithoutLetters("ae"), EndsWith("s"), Length(1, 5), Length(2, None))
    assert words["filter"] == AllOf(parts)
    assert TextConstraints.read(["words:shortest=2,longest=5"]).choices[0].settings == {
        "filter": Length(2, 5)
    }


def test_what_the_limit_may_cut_off():
    for option, whole in [
        ("length:maximum=3", False),
        ("words:without=e", False),
        ("completion", False),
        ("regex:pattern=a", True),
        ("contains:strings=a", True),
        ("melody:phrases=3", True),
    ]:
        assert TextConstraints.read([option]).whole is whole, option
    assert TextConstraints.read(regex="a", python=True).whole
    assert not TextConstraints.read().whole


def test_a_lexicon_is_a_file_of_words(run, model, tmp_path):
    words = tmp_path / "words.txt"
    words.write_text("mat\n\ncat \ndog\n")
    _, out, _ = run(
        "generate", "x ", "-m", model, "-n", 12, "--constrain",
        f"words:lexicon={words},without=o", "--constrain", "regex:pattern=[a-z]{3}( [a-z]{3}){0,2}",
        "--steer", "ending",
    )  # fmt: skip
    assert set(out.split()) <= {"mat", "cat"}
    assert out.split()
