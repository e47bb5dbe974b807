"""The words of an answer: their tokens are found, and what is beside them."""

import pytest

from tokenry.lab.models import language_model
from tokenry.lab.wrong_words import rewards_of_words
from tokenry.tasks.suites.wrong_words import wrong_words


class Lengths:
    """A token's reward is its length; of an end of the text, 0."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    def precompute(self, rows, context):
        for row in rows:
            for side in ("chosen", "rejected"):
                pieces = [self.tokenizer.decode([token]) for token in row[f"{side}_ids"]]
                row[f"{side}_length"] = [float(len(piece)) for piece in pieces]
        return rows


def test_the_tokens_of_a_word_are_told_from_the_others():
    loaded = language_model("smoke")
    words = wrong_words()
    judged = rewards_of_words(Lengths(loaded.tokenizer), "length", loaded, words)
    assert len(judged) == len(words) == 12
    for word, rewards in zip(words, judged, strict=True):
        answer, (start, end) = word.answer(word.wrong)
        assert answer[start:end] == word.wrong
        for kind, text in (("wrong", word.wrong), ("right", word.right)):
            space = not text.isdigit()  # a word's first token has its space
            assert rewards[kind].sum() == len(text) + space
        assert rewards["wrong"].sum() + rewards["other"].sum() == len(answer)


@pytest.mark.parametrize("word", wrong_words(), ids=lambda word: word.wrong)
def test_only_one_word_differs(word):
    right, wrong = (word.answer(text)[0].split() for text in (word.right, word.wrong))
    assert sum(a != b for a, b in zip(right, wrong, strict=True)) == 1
