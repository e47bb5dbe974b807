"""Reviews and sums in words against counting."""

import torch

from tokenry.tasks.worlds.reviews import (
    BLAME,
    NUMBERS,
    PRAISE,
    VOCABULARY,
    review,
    sum_of_words,
)


def test_a_review_is_what_most_of_its_clauses_say():
    generator = torch.Generator().manual_seed(0)
    answers = []
    for _ in range(100):
        words, answer = review(generator)
        praise, blame = (sum(word in kind for word in words) for kind in (PRAISE, BLAME))
        assert praise + blame == 3
        assert answer == (praise > blame)
        assert set(words) <= set(VOCABULARY)
        assert words.count("and") == words.count("while") == 1
        answers.append(answer)
    assert 20 < sum(answers) < 80


def test_a_sum_is_worked_out_modulo_three():
    generator = torch.Generator().manual_seed(0)
    seen = set()
    for _ in range(100):
        words, answer = sum_of_words(generator)
        total = NUMBERS.index(words[0])
        for sign, term in zip(words[1::2], words[2::2], strict=True):
            total += NUMBERS.index(term) * (1 if sign == "plus" else -1)
        assert len(words) == 5
        assert answer == total % 3
        seen.add((answer, words[1]))
    assert len(seen) == 6
