import pytest

from tokenry.core.errors import InputError
from tokenry.tasks.suites.letter_reversal import LetterReversal


@pytest.mark.parametrize("separator", ["", " ", "-"])
def test_the_reversed_word_is_right_and_near_misses_are_not(separator):
    made = LetterReversal(separator=separator)
    for item in made.items(40, 2):
        word, right = item.about["word"], item.solution
        assert right.replace(separator, "") == "".join(reversed(word))
        assert f"letters of {word} from" in item.request.prompt
        assert made.score(item, f"\t{right} ") == {"right": 1.0, "letters": 1.0}
        swapped = right[-1] + right[1:-1] + right[0]
        misses = [right + "a", right[:-1], right.upper(), f"{right}.", f'"{right}"', ""]
        misses += [swapped] * (swapped != right) + [f"It is {right}", "\x00", "?" * 10_000]
        misses += [separator.join(word)] * (word != word[::-1])
        assert [made.score(item, miss)["right"] for miss in misses] == [0.0] * len(misses)


def test_the_share_of_right_letters_is_of_the_longer_word():
    made = LetterReversal(words=["abcd"])
    item = made.items(1, 0)[0]
    shares = {"dcba": 1.0, "dcbx": 0.75, "dcb": 0.75, "dcbaz": 0.8, "abcd": 0.0, "": 0.0}
    assert {text: made.score(item, text)["letters"] for text in shares} == shares


def test_words_keep_to_their_settings():
    for item in LetterReversal(3, 5, "xyz").items(100, 4):
        assert 3 <= len(item.about["word"]) <= 5
        assert set(item.about["word"]) <= set("xyz")
    listed = ["paper", "ocean", "anna"]
    made = LetterReversal(words=listed)
    assert sorted(item.about["word"] for item in made.items(3, 0)) == sorted(listed)
    assert len(LetterReversal(2, 2, "ab").items(4, 0)) == 4
    with pytest.raises(InputError, match="5 distinct items"):
        LetterReversal(2, 2, "ab").items(5, 0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"shortest": 1},
        {"shortest": 9},
        {"alphabet": "a"},
        {"alphabet": "aba"},
        {"alphabet": "a b"},
        {"separator": "a"},
        {"words": []},
        {"words": ["a"]},
        {"words": ["two words"]},
    ],
)
def test_settings_are_checked(wrong):
    with pytest.raises(InputError):
        LetterReversal(**wrong)
