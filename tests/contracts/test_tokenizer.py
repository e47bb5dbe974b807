"""Every registered tokenization: nothing lost, nothing invented, special tokens kept, seeds obeyed.

A tokenization is a dataclass with `wrap(tokenizer)`; the result is called like the tokenizer, with
`generator=` (a seed or a torch.Generator) for its draws, and has `expand(ids, generator)` from
ordinary ids to its own.
"""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokenry.text.tokenizers.base import tokenizer as registered

KEYS = registered.names()
TEXTS = st.text(max_size=60) | st.lists(
    st.sampled_from(["the ", "theory ", "there ", "</s>", "é", "🙂", "東", "\n", "add(a, b)"]),
    max_size=12,
).map("".join)


@pytest.fixture(scope="module", params=KEYS)
def wrapped(request, tiny_tokenizer):
    return registered[request.param]().wrap(tiny_tokenizer)


@pytest.fixture(scope="module", params=KEYS)
def eager(request, tiny_tokenizer):
    """The method at its strongest, so that short texts are changed too."""
    return registered[request.param](p=2.0).wrap(tiny_tokenizer)


def test_a_strong_setting_changes_the_tokens(eager):
    ids = eager.tokenizer("there is a theory that their father gathered feathers")["input_ids"]
    assert eager.expand(ids, 0) != ids


@given(text=TEXTS, seed=st.integers(0, 2**31))
def test_decoding_gives_the_text_that_ordinary_tokens_give(eager, text, seed):
    ids = eager.tokenizer(text)["input_ids"]
    assert eager.tokenizer.decode(eager.expand(ids, seed)) == eager.tokenizer.decode(ids)
    assert eager.tokenizer.decode(eager(text, generator=seed)["input_ids"]) == text


@given(text=TEXTS, seed=st.integers(0, 2**31))
def test_special_tokens_survive_in_order_and_none_is_invented(eager, text, seed):
    ids = eager.tokenizer(text)["input_ids"]
    special = set(eager.tokenizer.all_special_ids)
    expanded = eager.expand(ids, seed)
    assert [v for v in expanded if v in special] == [v for v in ids if v in special]


@given(text=TEXTS, seed=st.integers(0, 2**31))
def test_produced_ids_are_in_the_vocabulary(eager, text, seed):
    vocabulary = set(eager.tokenizer.get_vocab().values())
    assert set(eager(text, generator=seed)["input_ids"]) <= vocabulary


@given(text=TEXTS, seed=st.integers(0, 2**31))
def test_a_seed_decides_the_tokens(eager, text, seed):
    first = eager(text, generator=seed)["input_ids"]
    assert eager(text, generator=torch.Generator().manual_seed(seed))["input_ids"] == first
    assert eager.expand(eager.tokenizer(text)["input_ids"], seed) == first


def test_two_wraps_of_one_method_give_the_same_stream(eager, tiny_tokenizer):
    text = "there is a theory that their father gathered feathers"
    again = [eager.method.wrap(tiny_tokenizer) for _ in range(2)]
    streams = [[one(text)["input_ids"] for _ in range(5)] for one in again]
    assert streams[0] == streams[1]
    assert len({tuple(ids) for ids in streams[0]}) > 1


def test_an_empty_text_stays_empty(wrapped):
    assert wrapped("")["input_ids"] == []
    assert wrapped.expand([], 0) == []
    assert wrapped(["", "the"])["input_ids"][0] == []


def test_attention_covers_every_token_and_no_padding(wrapped):
    batch = wrapped(["the theory", ""], padding=True, return_tensors="pt", generator=0)
    assert batch["attention_mask"].sum(1).tolist()[1] == 0
    assert batch["attention_mask"][0].all()
