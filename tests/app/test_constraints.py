"""tokenry generate: how the options become constraints, and what is refused."""

import json

import pytest

SCHEMA = {"type": "array", "items": {"const": 1}, "minItems": 2, "maxItems": 2}


@pytest.fixture
def schema(tmp_path):
    def write(value):
        path = tmp_path / "schema.json"
        path.write_text(value if isinstance(value, str) else json.dumps(value))
        return path

    return write


def test_white_space_is_as_asked_for(run, model, schema):
    base = ["generate", "x", "-m", model, "--json-schema", schema(SCHEMA), "-n", 60, "--seed", 3]
    for pattern, texts in (("", {"[1,1]"}), (" ", {"[ 1 , 1 ]", "[1 , 1]", "[1, 1]"})):
        code, out, _ = run(*base, "--whitespace", pattern, "--end-when-complete")
        assert code == 0
        assert out.strip() in texts
    assert "regex" in run(*base, "--whitespace", "(")[2]


def test_lenient_reading_says_which_formats_it_leaves_out(run, refused, model, schema):
    given = schema({"type": "string", "format": "colour", "maxLength": 2})
    base = ["generate", "x", "-m", model, "--json-schema", given, "-n", 60, "--end-when-complete"]
    assert "'colour' is not checked" in refused(*base)
    code, out, err = run(*base, "--lenient")
    assert code == 0
    assert "'colour' at #/format" in err
    assert len(json.loads(out)) <= 2


@pytest.mark.parametrize("option", [["--whitespace", ""], ["--lenient"]])
def test_options_for_a_schema_need_one(refused, option):
    assert option[0] in refused("generate", "x", *option)


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
