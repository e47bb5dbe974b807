"""Which words are kept, how many, and that nothing of a text is lost or added on the way."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokenry.core.errors import InputError, ShapeError, UnknownNameError
from tokenry.text.compression import (
    join,
    keep_top_percent,
    merge_subwords,
    normalise_by_sentence,
    sentences,
    words,
)

numbers = st.lists(st.integers(-5, 5), max_size=30)
texts = st.text(alphabet="ab. !\n\t東京タ、é\u0301ก", max_size=60)


def test_the_count_is_the_rounded_share():
    assert len(keep_top_percent("abcdefg", [0.0] * 7, 80)) == 6  # 5.6
    assert len(keep_top_percent("abcdefg", [0.0] * 7, 50)) == 4  # 3.5, to the even
    assert len(keep_top_percent("abcde", [0.0] * 5, 50)) == 2  # 2.5, to the even
    assert keep_top_percent("", [], 80) == []


def test_top_and_bottom_on_an_example():
    scores = [0.1, 0.9, 0.3, 0.7, 0.5]
    assert keep_top_percent("abcde", scores, 40) == [1, 3]
    assert keep_top_percent("abcde", scores, 40, "bottom") == [0, 2]


@given(numbers, st.integers(0, 100))
def test_top_and_bottom_share_the_words_out(scores, percent):
    n = len(scores)
    top = keep_top_percent(scores, scores, percent)
    bottom = keep_top_percent(scores, scores, 100 - percent, "bottom")
    assert len(top) == round(n * percent / 100)
    assert top == sorted(set(top))
    if (2 * n * percent) % 200 != 100:  # n·k/100 is no half
        assert sorted(top + bottom) == list(range(n))
    kept, dropped = (
        [scores[i] for i in range(n) if (i in top) is wanted] for wanted in (True, False)
    )
    assert not kept or not dropped or min(kept) >= max(dropped)


def test_random_keeps_the_count_and_repeats_with_its_seed():
    def draw(seed):
        generator = torch.Generator().manual_seed(seed)
        return keep_top_percent(range(40), [0.0] * 40, 50, "random", generator=generator)

    assert len(draw(0)) == 20
    assert draw(0) == draw(0) == sorted(draw(0))
    assert draw(0) != draw(1)


def test_protected_words_stay_within_the_count_and_beyond_it():
    scores = [5.0, 4.0, 3.0, 2.0, 1.0]
    assert keep_top_percent("abcde", scores, 40, protect=[False] * 4 + [True]) == [0, 4]
    assert keep_top_percent("abcde", scores, 20, protect=[False, False, True, True, True]) == [
        2, 3, 4,
    ]  # fmt: skip
    assert keep_top_percent("abcde", scores, 0, protect=[True] + [False] * 4) == [0]


def test_impossible_requests_are_errors():
    with pytest.raises(InputError, match="percent"):
        keep_top_percent("ab", [1.0, 2.0], 101)
    with pytest.raises(InputError, match="percent"):
        keep_top_percent("ab", [1.0, 2.0], float("nan"))
    with pytest.raises(InputError, match="NaN"):
        keep_top_percent("ab", [1.0, float("nan")], 50)
    with pytest.raises(ShapeError, match="2 items"):
        keep_top_percent("ab", [1.0], 50)
    with pytest.raises(ShapeError, match="flags"):
        keep_top_percent("ab", [1.0, 2.0], 50, protect=[True])
    with pytest.raises(UnknownNameError, match="did you mean top"):
        keep_top_percent("ab", [1.0, 2.0], 50, "tops")  # type: ignore[arg-type]
    with pytest.raises(UnknownNameError, match="sum"):
        merge_subwords(torch.ones(1), [0], "summ")  # type: ignore[arg-type]


@given(st.lists(st.tuples(st.floats(-9, 9, width=32), st.integers(0, 5)), min_size=1, max_size=20))
def test_merging_preserves_the_total(pieces):
    scores = torch.tensor([score for score, _ in pieces])
    ids = [word for _, word in pieces]
    merged = merge_subwords(scores, ids)
    assert float(merged.sum()) == pytest.approx(float(scores.sum()), abs=1e-4)
    for word in range(len(merged)):
        own = [score for score, its in pieces if its == word]
        assert float(merged[word]) == pytest.approx(sum(own), abs=1e-4)
        if own:
            assert float(merge_subwords(scores, ids, "max")[word]) == max(own)
            mean = float(merge_subwords(scores, ids, "mean")[word])
            assert mean == pytest.approx(sum(own) / len(own), abs=1e-4)


def test_pieces_of_no_word_are_left_out():
    merged = merge_subwords(torch.tensor([9.0, 1.0, 2.0, 9.0]), [None, 0, 0, None], count=2)
    assert merged.tolist() == [3.0, 0.0]
    assert merge_subwords(torch.ones(1), [None]).tolist() == []


def test_normalisation_is_within_the_sentence():
    scores = torch.tensor([1.0, 3.0, 2.0, 100.0, 300.0, 7.0, 7.0])
    found = normalise_by_sentence(scores, [0, 0, 0, 1, 1, 2, 2])
    assert found.tolist() == [0.0, 1.0, 0.5, 0.0, 1.0, 0.5, 0.5]
    assert normalise_by_sentence(torch.ones(0), []).shape == (0,)
    with pytest.raises(ShapeError, match="2 tokens"):
        normalise_by_sentence(torch.ones(3), [0, 0])


@given(texts)
def test_words_and_sentences_cover_the_text(text):
    spans = words(text)
    outside = set(range(len(text))) - {place for a, b in spans for place in range(a, b)}
    assert all(text[place].isspace() for place in outside)
    assert "".join(text[a:b] for a, b in sentences(text)) == text
    assert all(b > a for a, b in [*spans, *sentences(text)])


@given(texts, st.data())
def test_all_words_give_the_text_and_some_of_them_stay_words(text, data):
    spans = words(text)
    if spans:
        assert join(text, spans, range(len(spans))) == text
    assert join(text, spans, []) == ""
    kept = sorted(data.draw(st.sets(st.sampled_from(range(len(spans)))))) if spans else []
    shorter = join(text, spans, kept)
    # two kept words that space kept apart are still apart, in their order
    pieces = [text[a:b] for a, b in (spans[word] for word in kept)]
    assert "".join(shorter.split()) == "".join(pieces)
    if not any(character in text for character in "東京タก"):
        assert shorter.split() == pieces


def test_line_breaks_survive_the_words_around_them():
    text = "one two.\n\nthree  four\n"
    spans = words(text)
    assert [text[a:b] for a, b in spans] == ["one", "two.", "three", "four"]
    assert join(text, spans, [0, 3]) == "one\n\nfour\n"
    assert join(text, spans, [2, 3]) == "three  four\n"


def test_scripts_without_spaces_are_cut_into_characters():
    text = "東京 is cafe\u0301,本"
    assert [text[a:b] for a, b in words(text)] == ["東", "京", "is", "cafe\u0301,", "本"]


def test_sentences_end_at_marks_before_space_and_at_line_breaks():
    text = 'Pi is 3.14. "Really?" Yes!\nA title\nEnd。次'
    assert [text[a:b] for a, b in sentences(text)] == [
        "Pi is 3.14.", ' "Really?"', " Yes!", "\n", "A title\n", "End。", "次",
    ]  # fmt: skip
