from collections import Counter

import pytest

from tokenry.core.errors import InputError
from tokenry.tasks.suites.lang_game import KINDS, LangGame, Question, satisfies, verify

WORDS = [
    "the",
    "a",
    "of",
    "to",
    "and",
    "he",
    "it",
    "sea",
    "tea",
    "eel",
    "letter",
    "better",
    "committee",
    "bookkeeper",
    "banana",
    "sentence",
    "reading",
    "writing",
    "between",
    "another",
    "nothing",
    "theory",
    "there",
    "where",
    "seven",
    "tree",
    "cat",
    "dog",
    "ant",
    "bee",
    "fly",
]


def test_every_question_has_exactly_one_right_option():
    questions = LangGame(WORDS).generate(600, seed=1)
    assert all(verify(question) for question in questions)
    assert all(len(set(question.options)) == 4 for question in questions)


def test_the_verifier_rejects_a_wrong_answer_and_an_ambiguous_one():
    assert verify(Question("", ("tea", "dog", "cat"), 0, "contains", "ea"))
    assert not verify(Question("", ("tea", "dog", "cat"), 1, "contains", "ea"))
    assert not verify(Question("", ("tea", "sea", "cat"), 0, "contains", "ea"))
    assert not verify(Question("", ("sentence", "there", "cat"), 0, "longest"))


@pytest.mark.parametrize(
    ("word", "kind", "letters", "expected"),
    [
        ("letter", "occurrences", "e", (True, False)),
        ("sea", "occurrences", "e", (False, True)),
        ("sea", "contains", "ea", (True, False)),
        ("sea", "starts", "s", (True, False)),
        ("sea", "ends", "s", (False, True)),
        ("sea", "shortest", "", (True, False)),
        ("seven", "shortest", "", (False, False)),
        ("seven", "longest", "", (False, False)),
        ("reading", "longest", "", (True, False)),
        ("tree", "longest", "", (False, True)),
    ],
)
def test_the_rules_of_each_kind(word, kind, letters, expected):
    assert satisfies(word, kind, letters) == expected


def test_kinds_and_places_of_the_right_word_are_uniform():
    """3,000 draws: six standard errors, a false alarm below 1e-7."""
    questions = LangGame(WORDS).generate(3000, seed=2)
    for counts, cells in (
        (Counter(question.kind for question in questions), 6),
        (Counter(question.answer for question in questions), 4),
    ):
        share = 1 / cells
        error = (share * (1 - share) / 3000) ** 0.5
        assert len(counts) == cells
        assert all(abs(count / 3000 - share) < 6 * error for count in counts.values())


def test_the_prompt_shows_the_options_and_ends_with_answer():
    question = LangGame(WORDS, kinds=("starts",)).generate(1, seed=3)[0]
    assert question.prompt.endswith("Answer:")
    assert f"[{', '.join(question.options)}]" in question.prompt
    assert f"'{question.letters}'" in question.prompt


def test_the_same_seed_gives_the_same_questions_and_another_gives_others():
    game = LangGame(WORDS)
    assert game.generate(20, seed=4) == game.generate(20, seed=4)
    assert game.generate(20, seed=4) != game.generate(20, seed=5)
    assert LangGame(list(reversed(WORDS))).generate(20, seed=4) == game.generate(20, seed=4)


def test_words_or_kinds_that_cannot_work_are_refused():
    with pytest.raises(InputError, match="unknown kinds"):
        LangGame(WORDS, kinds=("rhymes",))
    with pytest.raises(InputError, match="cannot fill"):
        LangGame(["one", "two"])
    with pytest.raises(InputError, match="longest"):
        LangGame(["one", "two", "three", "four"], kinds=("longest",)).generate(1, seed=0)
    assert set(KINDS) == {"occurrences", "contains", "starts", "ends", "longest", "shortest"}
