"""Markers: rendering and reading back, dropout rates, what an example learns."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenry.core.errors import InputError, UnknownNameError
from tokenry.text.markers import MarkerDropout, MarkerSchema, build_example, length_markers

SCHEMA = MarkerSchema(
    {
        "task": ("copy", "sort"),
        "quality": (1, 2, 3),
        "words": int,
        "tone": str,
        "score": float,
        "level": (0.5, "high", 10),
    }
)
TEXTS = st.text(min_size=1).filter(lambda t: t == t.strip() and not set(t) & set("[]|\n"))
MARKERS = st.fixed_dictionaries(
    {},
    optional={
        "task": st.sampled_from(["copy", "sort"]),
        "quality": st.sampled_from([1, 2, 3]),
        "words": st.integers(-5, 10**6),
        "tone": TEXTS,
        "score": st.floats(allow_nan=False, allow_infinity=False),
        "level": st.sampled_from([0.5, "high", 10]),
    },
)


@given(MARKERS, st.text())
def test_reading_gives_back_what_was_rendered(markers, rest):
    block = SCHEMA.render(markers)
    found, left = SCHEMA.parse(block + rest)
    if markers:
        assert (found, left) == (markers, rest)
    assert (block == "") == (not markers)


def test_equal_markers_are_equal_texts():
    one = SCHEMA.render({"words": 12, "task": "sort"})
    assert one == SCHEMA.render({"task": "sort", "words": 12}) == "[task: sort | words: 12]\n"
    assert SCHEMA.render({}) == ""
    assert SCHEMA.parse("") == ({}, "")


@pytest.mark.parametrize(
    "text", ["no block at all", "[task: sort", "[task: sort] and more", "[a note]\ntext", "[]\nx"]
)
def test_a_text_without_a_complete_block_stays_as_it_is(text):
    assert SCHEMA.parse(text) == ({}, text)


def test_what_a_model_may_write_is_read_as_far_as_it_makes_sense():
    text = " [ task:sort | words: many | hue: red | quality: 9 ] \nThe text"
    assert SCHEMA.parse(text) == ({"task": "sort"}, "The text")


@pytest.mark.parametrize(("dataset", "sample"), [(0.5, 0.5), (0.2, 0.7), (1.0, 0.0), (0.0, 0.0)])
def test_dropout_rates(dataset, sample):
    markers = {"task": "sort", "words": 3}
    dropout = MarkerDropout(dataset, sample, seed=1)
    drawn = [dropout(markers, example) for example in range(10_000)]
    for name, value in markers.items():
        share = sum(one.get(name) == value for one in drawn) / len(drawn)
        assert share == pytest.approx((1 - dataset) * (1 - sample), abs=0.01)
    nothing = dataset + (1 - dataset) * sample**2
    assert sum(not one for one in drawn) / len(drawn) == pytest.approx(nothing, abs=0.015)
    if dataset == 1:
        assert not any(drawn)
    if dataset == sample == 0:
        assert all(one == markers for one in drawn)


def test_a_draw_depends_on_seed_and_example_alone():
    markers = dict.fromkeys("abcdefgh", 1)
    first = [MarkerDropout(seed=3)(markers, n) for n in range(20)]
    assert first == [MarkerDropout(seed=3)(markers, n) for n in reversed(range(20))][::-1]
    assert first != [MarkerDropout(seed=4)(markers, n) for n in range(20)]


def test_exactly_the_completion_and_its_markers_are_learned():
    example = build_example([1, 2], [3, 4], [5], [6, 7])
    assert example.ids == [1, 2, 3, 4, 5, 6, 7]
    assert example.target == [False] * 4 + [True] * 3


def test_length_markers():
    found = length_markers("One. Two! And three", tokens=7)
    assert found == {"length_bucket": "concise", "length_tokens": 7, "length_sentences": 3}
    assert length_markers("v1.2 works.", tokens=60)["length_sentences"] == 1
    assert length_markers("x", tokens=60)["length_bucket"] == "medium"
    assert length_markers("x", tokens=201)["length_bucket"] == "long"


def test_a_schema_of_data():
    schema = MarkerSchema.of_data([{"task": "sort", "words": 3}, {"task": "copy"}, {"ok": True}])
    assert schema.categories == {"ok": (True,), "task": ("copy", "sort"), "words": int}


def test_numbers_come_back_as_numbers_however_a_model_writes_them():
    for text, score in ((".5", 0.5), ("0.50", 0.5), ("-3", -3.0), ("1e-3", 0.001), ("5.", 5.0)):
        found, _ = SCHEMA.parse(f"[score: {text}]\nx")
        assert found == {"score": score}
        assert type(found["score"]) is float
    assert SCHEMA.parse("[level: .5 | words: 1]\nx")[0] == {"level": 0.5, "words": 1}
    for text in ("1e999", "nan", "half", "."):
        assert SCHEMA.parse(f"[score: {text} | words: 1]\nx")[0] == {"words": 1}
    assert SCHEMA.parse(f"[words: {'9' * 5000} | score: 1]\nx")[0] == {"score": 1.0}
    schema = MarkerSchema.of_data([{"x": 1, "y": 0.25}, {"x": 0.5, "y": 0.75}])
    assert schema.categories == {"x": float, "y": float}
    assert schema.parse(schema.render({"x": 2, "y": 0.1}))[0] == {"x": 2.0, "y": 0.1}


def test_values_that_are_written_alike_are_refused():
    """A block that was read could not tell them apart."""
    with pytest.raises(InputError, match="1 and '1' of marker quality are written alike"):
        MarkerSchema({"quality": (1, "1")})
    with pytest.raises(InputError, match="written alike"):
        MarkerSchema.of_data([{"quality": 1}, {"quality": "1"}])
    mixed = MarkerSchema.of_data([{"flag": 1}, {"flag": True}, {"flag": "x"}])
    assert set(map(repr, mixed.categories["flag"])) == {"1", "True", "'x'"}
    for value in (1, True, "x"):
        found = mixed.parse(mixed.render({"flag": value}))[0]["flag"]
        assert (type(found), found) == (type(value), value)
    with pytest.raises(InputError, match="one of copy, sort"):
        SCHEMA.render({"task": 1})
    with pytest.raises(InputError, match="one of 1, 2, 3"):
        SCHEMA.render({"quality": True})
    with pytest.raises(InputError, match="it must be str, int or float"):
        MarkerSchema({"flag": bool})
    for value in (float("nan"), float("inf"), True, "1"):
        with pytest.raises(InputError, match="type float"):
            SCHEMA.render({"score": value})


def test_what_is_no_marker_is_an_error():
    with pytest.raises(UnknownNameError, match="task"):
        SCHEMA.render({"tasks": "sort"})
    with pytest.raises(InputError, match="one of copy, sort"):
        SCHEMA.render({"task": "shift"})
    with pytest.raises(InputError, match="type int"):
        SCHEMA.render({"words": True})
    for value in ("a]b", "two\nlines", " padded", ""):
        with pytest.raises(InputError, match="single lines"):
            SCHEMA.render({"tone": value})
    with pytest.raises(InputError, match="colon"):
        MarkerSchema({"a:b": str})
    with pytest.raises(InputError, match="p_sample is 2"):
        MarkerDropout(p_sample=2)
