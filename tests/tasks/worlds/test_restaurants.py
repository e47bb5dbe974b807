"""Sentences about restaurants: every sentence tells the attributes of its prompt."""

import random

from tokenry.tasks.worlds.restaurants import (
    FIRST_VALUE,
    IDS,
    PATTERNS,
    PROMPT,
    SENTENCE,
    SLOTS,
    restaurants,
)

NAMES = {number: word for word, number in IDS.items()}


def test_sentences_tell_the_attributes_in_a_pattern():
    batch = restaurants(40, random.Random(0))
    shape = (40, PROMPT + SENTENCE)
    assert {name: part.shape for name, part in batch.items()} == {
        "input_ids": shape, "attention_mask": shape, "labels": shape,
    }  # fmt: skip
    used = set()
    for ids, real, labels in zip(*(part.tolist() for part in batch.values()), strict=True):
        length = sum(real)
        assert real == [1] * length + [0] * (len(real) - length)
        assert labels[:PROMPT] == [-100] * PROMPT
        assert labels[PROMPT:length] == ids[PROMPT:length]
        assert set(labels[length:]) <= {-100}
        told = [NAMES[i] for i in ids[:PROMPT]]
        assert [value.split()[0] for value in told[:-1]] == list(SLOTS)
        assert told[-1] == "="
        sentence = [NAMES[i] for i in ids[PROMPT:length]]
        assert sentence.pop() == "end"
        values = {i for i in ids[PROMPT:length] if i >= FIRST_VALUE}
        assert values == set(ids[: PROMPT - 1])
        pattern = " ".join(f"<{w.split()[0]}>" if w in told else w for w in sentence)
        used.add(PATTERNS.index(pattern))
    assert used == set(range(len(PATTERNS)))


def test_a_seed_repeats_and_goes_on():
    one, other = random.Random(1), random.Random(1)
    assert restaurants(3, one)["input_ids"].equal(restaurants(3, other)["input_ids"])
    assert not restaurants(3, one)["input_ids"].equal(restaurants(3, random.Random(1))["input_ids"])
