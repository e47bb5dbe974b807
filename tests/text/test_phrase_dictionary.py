"""The phrase dictionary: against a slow reading, and its files."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenry.core.errors import InputError
from tokenry.text.phrase_dictionary import PhraseDictionary
from tokenry.text.word_boundaries import boundaries

DICTIONARY = PhraseDictionary(
    {
        "bank": ["Bank", "Ufer"],
        "River Bank": ["Flussufer"],
        "river": "Fluss",
        "C++": "C++",
        "東": ["east"],
    }
)


def phrases(text):
    return [(match.phrase, text[match.start : match.end]) for match in DICTIONARY(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Near the River Bank.", [("river bank", "River Bank")]),
        ("bank, river", [("bank", "bank"), ("river", "river")]),
        ("banks of riverbanks", []),
        ("river \n\t bank!", [("river bank", "river \n\t bank")]),
        ("  river", [("river", "river")]),
        ("river bank river", [("river bank", "river bank"), ("river", "river")]),
        ("C++ or c++", [("c++", "C++"), ("c++", "c++")]),
        ("東京", [("東", "東")]),
        ("İbank bank", [("bank", "bank")]),
        ("", []),
    ],
)
def test_examples(text, expected):
    assert phrases(text) == expected


def test_candidates_keep_their_order_and_their_case():
    assert DICTIONARY("the bank")[0].candidates == ("Bank", "Ufer")
    assert len(DICTIONARY) == 5


WORD = st.text("abAB", min_size=1, max_size=2)
PHRASE = st.lists(WORD, min_size=1, max_size=3).map(" ".join)


@given(st.lists(PHRASE, max_size=6), st.text("abAB .", max_size=14))
def test_takes_the_longest_phrase_at_each_place_and_goes_on_behind_it(entries, text):
    dictionary = PhraseDictionary(dict.fromkeys(entries, "x"))
    known = {entry.lower() for entry in entries}
    edges = boundaries(text)
    expected, place = [], 0
    while place < len(text):
        spans = [
            (end, phrase)
            for end in range(place + 1, len(text) + 1)
            if edges[place]
            and edges[end]
            and not (text[place].isspace() or text[end - 1].isspace())
            and (phrase := " ".join(text[place:end].lower().split())) in known
        ]
        if spans:
            end, phrase = max(spans)
            expected.append((place, end, phrase))
            place = end
        else:
            place += 1
    assert [(m.start, m.end, m.phrase) for m in dictionary(text)] == expected


def test_reads_tab_separated_lines_that_add_up(tmp_path):
    file = tmp_path / "words.tsv"
    file.write_text("# comment\nbank\tBank\tUfer\n\nBANK\tBank\tSitzbank\n", encoding="utf-8")
    assert PhraseDictionary.read(file).entries == {"bank": ("Bank", "Ufer", "Sitzbank")}


def test_reads_json(tmp_path):
    file = tmp_path / "words.json"
    file.write_text(json.dumps({"river  bank": ["Flussufer"], "river": "Fluss"}))
    assert PhraseDictionary.read(str(file)).entries == {
        "river bank": ("Flussufer",),
        "river": ("Fluss",),
    }


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.tsv", "bank\tBank\nriver Fluss\n", r"a\.tsv, line 2: 'river Fluss' has no tab"),
        ("a.tsv", "bank\t\n", r"a\.tsv, line 1: neither a phrase nor a candidate may be empty"),
        ("a.tsv", "\tBank\n", "line 1"),
        ("a.json", "{", "not JSON"),
        ("a.json", "[1]", "must be an object"),
        ("a.json", '{"bank": 3}', "phrase 'bank'.*not 3"),
        ("a.json", '{"bank": [3]}', "phrase 'bank': a phrase and its candidates are texts"),
        ("a.json", '{"bank": []}', "phrase 'bank': neither"),
    ],
)
def test_says_what_is_wrong_with_a_file(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=message):
        PhraseDictionary.read(tmp_path / name)


def test_a_missing_or_binary_file_is_an_error(tmp_path):
    with pytest.raises(InputError, match=r"none\.tsv cannot be read"):
        PhraseDictionary.read(tmp_path / "none.tsv")
    (tmp_path / "b.tsv").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="UTF-8"):
        PhraseDictionary.read(tmp_path / "b.tsv")
