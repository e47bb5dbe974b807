"""Every reward: one value for each row, of that row's content, here and in a process of its own."""

import math
import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from role_cases import cases
from tokenry.core.extras import EXTRAS
from tokenry.learn.rewards.base import Reward, reward
from tokenry.learn.rewards.worker import signature_of

EACH = pytest.mark.parametrize("made", cases(reward))
TEXTS = st.text(max_size=30) | st.sampled_from(
    ["{}", '{"a": 1', "[1, 2, 3, 4]", "<answer>A</answer>", "1e999", "\\boxed{", "-", "\0", "A,,"]
)


def columns_of(example):
    count = len(example.completions)
    columns = {"completion_ids": [[1, 2]] * count, "groups": [0] * count}
    return columns | dict(example.columns)


def values(example, completions=None, order=None):
    completions = list(example.completions if completions is None else completions)
    order = range(len(completions)) if order is None else order
    columns = {name: [column[n] for n in order] for name, column in columns_of(example).items()}
    texts = [completions[n] for n in order]
    return example.reward(prompts=["x"] * len(texts), completions=texts, **columns)


@pytest.fixture(autouse=True)
def installed(made):
    if type(made().reward).__name__ == "NumericAnswer":
        for module in EXTRAS["rewards"]:
            pytest.importorskip(module)


@EACH
def test_its_rows_are_valued_as_they_say(made):
    example = made()
    given = values(example)
    assert isinstance(example.reward, Reward)
    assert len(given) == len(example.completions)
    assert all(isinstance(value, int | float) and math.isfinite(value) for value in given)
    assert example.better
    assert all(given[worse] < given[better] for worse, better in example.better)


@EACH
@settings(max_examples=25, deadline=None)
@given(texts=st.lists(TEXTS, min_size=4, max_size=4))
def test_any_text_has_a_finite_value_and_always_the_same(made, texts):
    example = made()
    texts = texts[: len(example.completions)]
    given = values(example, (texts * 4)[: len(example.completions)])
    assert all(value is not None and math.isfinite(value) for value in given)
    assert values(made(), (texts * 4)[: len(example.completions)]) == given


@EACH
def test_permuting_rows_permutes_values(made):
    example = made()
    order = list(reversed(range(len(example.completions))))
    assert values(example, order=order) == list(reversed(values(example)))


@EACH
def test_it_can_be_sent_and_says_which_columns_it_needs(made):
    example = made()
    sent = example._replace(reward=pickle.loads(pickle.dumps(example.reward)))
    assert values(sent) == values(example)
    signature = signature_of(example.reward)
    assert signature.batched
    known = {"prompts", "completions", *columns_of(example)}
    assert set(signature.required) <= known
