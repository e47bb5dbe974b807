"""Facts: texts state every key twice and answer their questions."""

import pytest
import torch

from tokenry.core.errors import InputError
from tokenry.tasks.worlds.facts import Facts

WORLD = Facts(keys=4, values=3, window=20, chunk=4, chunks=6)


def read(row):
    """The stated values by key, and the questions with their answers."""
    tokens = row.tolist()
    stated = [divmod(token, 3) for token in tokens[:8]]
    asked = [token - 12 for token in tokens[8::2]]
    answers = [token - 16 for token in tokens[9::2]]
    return stated, list(zip(asked, answers, strict=True))


def test_sizes():
    assert WORLD.vocabulary == 4 * 3 + 4 + 3
    assert WORLD.stated == 8
    generator = torch.Generator().manual_seed(0)
    assert WORLD.short_texts(5, generator).shape == (5, 20)
    assert WORLD.long_texts(5, generator).shape == (5, 24)
    assert Facts().short_texts(2, generator).shape == (2, 64)
    assert Facts().long_texts(2, generator).shape == (2, 96)


@pytest.mark.parametrize("kind", ["short_texts", "long_texts"])
def test_every_fact_is_stated_twice_and_questions_are_answered(kind):
    for row in getattr(WORLD, kind)(50, torch.Generator().manual_seed(1)):
        stated, questions = read(row)
        assert sorted(key for key, _ in stated[:4]) == [0, 1, 2, 3]
        assert sorted(stated[:4]) == sorted(stated[4:])
        facts = dict(stated)
        assert all(facts[key] == answer for key, answer in questions)


def test_the_last_chunk_asks_for_the_other_half_of_the_keys():
    for row in WORLD.long_texts(50, torch.Generator().manual_seed(1)):
        keys = [key for key, _ in read(row)[1]]
        before, last = keys[:-2], keys[-2:]
        assert len(set(last)) == 2
        assert not set(before) & set(last)
        assert len(before) == (4 * 5 - 8) // 2


def test_a_world_without_choice_is_refused():
    with pytest.raises(InputError, match="values"):
        Facts(values=1)
