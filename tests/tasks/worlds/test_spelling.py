"""Spelled words: first letters tell words apart, and what follows has its chances."""

from collections import Counter

import pytest
import torch

from tokenry.core.errors import InputError
from tokenry.tasks.worlds.spelling import SpelledWords

WORLD = SpelledWords(seed=2, length=40, words=6)


def test_texts_are_words_that_may_follow_each_other():
    batch = WORLD.batch(300, torch.Generator().manual_seed(0))
    assert batch.ids.shape == (300, 40)
    assert batch.target.sum(1).tolist() == [39] * 300
    numbers = batch.ids[:, ::4]  # the first letter is the word's number
    assert WORLD.letters[numbers].flatten(1).equal(batch.ids)
    counts = Counter()
    for before, after in zip(numbers[:, :-1].flatten(), numbers[:, 1:].flatten(), strict=True):
        counts[WORLD.follow[before].tolist().index(int(after))] += 1
    shares = [counts[rank] / counts.total() for rank in range(3)]
    assert shares == pytest.approx([0.6, 0.3, 0.1], abs=0.03)


def test_a_seed_makes_one_language_and_its_repr_says_which():
    assert SpelledWords(seed=2, length=40, words=6).letters.equal(WORLD.letters)
    assert not SpelledWords(seed=3, length=40, words=6).letters.equal(WORLD.letters)
    assert repr(WORLD) == "SpelledWords(seed=2, length=40, words=6, spelled=4)"
    assert (WORLD.size, WORLD.start) == (26, 4)


def test_further_draws_go_on_behind_the_words():
    generator = torch.Generator().manual_seed(2)
    torch.randint(26, (6, 3), generator=generator)
    torch.rand(6, 6, generator=generator)
    assert SpelledWords(seed=2, words=6).generator.get_state().equal(generator.get_state())


def test_too_few_words_are_refused():
    with pytest.raises(InputError, match="words"):
        SpelledWords(words=2)
