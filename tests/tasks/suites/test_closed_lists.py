"""Closed lists: what counts as an answer, and how many different ones there are so far."""

from tokenry.tasks.suites.closed_lists import (
    CLOSED_LISTS,
    answers_to,
    distinct_so_far,
    right_answers,
)


def test_every_list_has_several_answers_in_single_words():
    assert len(CLOSED_LISTS) == 20
    for question in CLOSED_LISTS:
        right = answers_to(question)
        assert len(right) >= 5
        assert all(word == word.lower() and word.isalpha() for word in right)


def test_an_answer_counts_whatever_its_case_and_marks():
    right = answers_to("Name a day of the week.")
    texts = ["Monday", " tuesday.", "SUNDAY,", "Funday", "", "Monday morning"]
    assert right_answers(texts, right) == ["monday", "tuesday", "sunday", None, None, None]


def test_repeated_answers_count_once():
    assert distinct_so_far(["a", None, "b", "a", "c"]) == [1, 1, 2, 2, 3]
    assert distinct_so_far([None, None]) == [0, 0]
    assert distinct_so_far([]) == []
