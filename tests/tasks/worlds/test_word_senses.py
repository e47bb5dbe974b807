"""The languages with word senses: what their sentences and dictionaries keep."""

import random
from collections import Counter

import pytest

from tokenry.core.errors import InputError
from tokenry.tasks.worlds.word_senses import FIRST, WordSenses

WORLD = WordSenses(seed=1)


def topic_of(target):
    return (target - FIRST - WORLD.topics) // WORLD.words


def test_sentences_are_translated_by_their_topic():
    chance = random.Random(0)
    for sentence in WORLD.training(400, chance):
        assert len(sentence.source) == len(sentence.target) == WORLD.length
        assert FIRST + sentence.topic in sentence.source
        for word, translation in zip(sentence.source, sentence.target, strict=True):
            assert translation == WORLD.translated(word, sentence.topic)
            assert translation < WORLD.target_size
            candidates = WORLD.candidates(word)
            if len(candidates) > 1:
                assert topic_of(translation) == sentence.topic
            assert translation in (candidates or [word])


def test_rare_words_occur_once_and_where_it_is_said():
    made = WORLD.training(400, random.Random(0))
    counts = Counter(word for sentence in made for word in sentence.source)
    assert {counts[word] for word in WORLD.rare_words} == {1}
    for sentence in made:
        assert (sentence.rare is not None) == any(w in WORLD.rare_words for w in sentence.source)
        if sentence.rare is not None:
            assert sentence.source[sentence.rare] in WORLD.rare_words


def test_words_have_the_senses_that_were_asked_for():
    sizes = [len(WORLD.senses[word]) for word in WORLD.frequent]
    assert set(sizes[:20]) == {1}
    assert set(sizes[20:]) == {2, 3}
    assert [len(WORLD.senses[w]) > 1 for w in WORLD.rare_words] == [True] * 40 + [False] * 20
    assert WORLD.candidates(FIRST) == []
    assert max(WORLD.rare_words) + 1 == WORLD.source_size


def test_a_seed_makes_the_languages_and_too_few_sentences_are_refused():
    assert WordSenses(seed=1).senses == WORLD.senses
    assert WordSenses(seed=2).senses != WORLD.senses
    with pytest.raises(InputError, match="60 rare words do not fit into 50 sentences"):
        WORLD.training(50, random.Random(0))
    with pytest.raises(InputError, match="several topics"):
        WordSenses(topics=1)
