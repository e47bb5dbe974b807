"""Every registered tokenization, by what it says that it can do.

All of them: called like the tokenizer, ids of its vocabulary, special tokens kept. `lossless` ones
give every text back; `random` ones obey `generator=` (a seed or a torch.Generator), the others give
the same ids always. Those that rewrite ordinary ids have `expand(ids, generator)`.
"""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from role_cases import cases
from tokenry.text.tokenizers.base import tokenizer as registered

TEXTS = st.text(max_size=60) | st.lists(
    st.sampled_from(["the ", "theory ", "there ", "</s>", "é", "🙂", "東", "\n", "add(a, b)"]),
    max_size=12,
).map("".join)
LONG = "there is a theory that their father gathered feathers"


@pytest.fixture(scope="module", params=cases(registered))
def method(request):
    return request.param()


@pytest.fixture(scope="module")
def wrapped(method, tiny_tokenizer):
    return method.wrap(tiny_tokenizer)


@given(text=TEXTS, seed=st.integers(0, 2**31))
def test_decoding_gives_the_text_if_it_says_so(method, wrapped, text, seed):
    draws = {"generator": seed} if method.random else {}
    found = wrapped.decode(wrapped(text, **draws)["input_ids"])
    if method.lossless:
        assert found == text
    else:  # what is lost is lost once
        assert wrapped.decode(wrapped(found, **draws)["input_ids"]) == found


@given(text=TEXTS, seed=st.integers(0, 2**31))
def test_ids_are_in_the_vocabulary_and_special_tokens_are_those_of_the_text(
    method, wrapped, tiny_tokenizer, text, seed
):
    ids = wrapped(text, **({"generator": seed} if method.random else {}))["input_ids"]
    assert all(0 <= v < len(wrapped) for v in ids)
    special = set(wrapped.all_special_ids)
    ordinary = tiny_tokenizer(text)["input_ids"]
    assert [v for v in ids if v in special] == [v for v in ordinary if v in special]


@given(text=TEXTS, seed=st.integers(0, 2**31))
def test_expanding_ordinary_ids_is_tokenizing(method, wrapped, tiny_tokenizer, text, seed):
    if not hasattr(wrapped, "expand"):
        pytest.skip("does not rewrite ordinary ids")
    ids, draws = tiny_tokenizer(text)["input_ids"], (seed,) if method.random else ()
    called = wrapped(text, **({"generator": seed} if method.random else {}))["input_ids"]
    assert wrapped.expand(ids, *draws) == called


@given(text=TEXTS, seed=st.integers(0, 2**31))
def test_a_seed_decides_the_ids_of_a_random_one_and_nothing_those_of_the_others(
    method, wrapped, text, seed
):
    if not method.random:
        assert wrapped(text)["input_ids"] == wrapped(text)["input_ids"]
        return
    first = wrapped(text, generator=seed)["input_ids"]
    assert wrapped(text, generator=torch.Generator().manual_seed(seed))["input_ids"] == first


def test_two_wraps_of_one_method_give_the_same_stream(method, tiny_tokenizer):
    again = [method.wrap(tiny_tokenizer) for _ in range(2)]
    streams = [[one(LONG)["input_ids"] for _ in range(40)] for one in again]
    assert streams[0] == streams[1]
    assert (len({tuple(ids) for ids in streams[0]}) > 1) == method.random


def test_it_changes_something(wrapped, tiny_tokenizer):
    texts = [LONG] * 40
    assert wrapped(texts)["input_ids"] != tiny_tokenizer(texts)["input_ids"]


def test_an_empty_text_stays_empty(wrapped):
    assert wrapped("")["input_ids"] == []
    assert wrapped(["", "the"])["input_ids"][0] == []


def test_attention_covers_every_token_and_no_padding(wrapped):
    batch = wrapped(["the theory", ""], padding=True, return_tensors="pt")
    assert batch["attention_mask"].sum(1).tolist()[1] == 0
    assert batch["attention_mask"][0].all()
