"""What every constraint must keep: one checker, applied to all that are registered."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from role_cases import cases
from tokenry.core.errors import ConstraintError, VocabularyError
from tokenry.decode.constraints.base import Anything, Constraint, Example
from tokenry.decode.constraints.base import constraint as registered
from tokenry.decode.constraints.contains import Contains
from tokenry.decode.constraints.grammar import Grammar
from tokenry.decode.constraints.predicate import Predicate
from tokenry.decode.constraints.stop import Stop
from tokenry.text.vocabulary import token_bytes

DIGITS, SUM = "[0-9]+", 'start: term ("+" term)*\nterm: /[0-9]+/ | "(" start ")"'


def even_number(tokenizer):
    return Predicate(
        lambda text: text == "" or text.isdecimal(),
        lambda text: text.isdecimal() and int(text) % 2 == 0,
        tokenizer,
    )


COMBINED = {
    "anything": Example(lambda t: Anything(len(t), [t.eos_token_id]), ["the 東"]),
    "stop and contains": Example(
        lambda t: Stop(["mat"], t) & Contains(["the", "em"], t), ["them on a mat"], ["the mat"]
    ),
    "and": Example(lambda t: Grammar.regex(DIGITS, t) & even_number(t), ["1234"], ["123"]),
    "or": Example(
        lambda t: Grammar.regex("(the|cat)+", t) | even_number(t), ["thecat", "36"], ["cat7"]
    ),
    "not": Example(lambda t: ~Grammar.regex(DIGITS, t), ["36a", "cat"], ["367"]),
    "nested": Example(
        lambda t: (
            (Grammar.regex("[0-9]*", t) | Grammar.lark(SUM, t))
            & Grammar.regex("[0-9+()]{0,8}", t)
            & Anything(len(t), [t.eos_token_id])
        ),
        ["1+(2)"],
        ["1+1+1+1+1"],
    ),
}
EXAMPLES = {case.id: case.values[0]() for case in cases(registered)} | COMBINED


@pytest.fixture(scope="module")
def built(tiny_tokenizer):
    return {name: example.make(tiny_tokenizer) for name, example in EXAMPLES.items()}


def check_constraint(constraint: Constraint, seed: int, steps: int = 6) -> None:
    """Walk a random text and hold every state on the way to the protocol."""
    chance = random.Random(seed)
    V, eos = constraint.vocab_size, constraint.eos
    state = constraint.initial()
    for _ in range(steps):
        mask = state.mask()
        one_by_one = [state.allows(token) for token in range(V)]
        assert mask.shape == (V,)
        assert mask.dtype == torch.bool
        assert mask.tolist() == one_by_one
        assert not state.allows(-1)
        assert not state.allows(V)
        assert all(state.allows(token) == state.complete for token in eos)
        assert state.mask_cost > 0
        assert not state.finished
        allowed = [token for token in range(V) if one_by_one[token] and token not in eos]
        refused = [token for token in range(V) if not one_by_one[token]]
        if refused:
            with pytest.raises(ConstraintError):
                state.advance(chance.choice(refused))
        if state.complete:
            check_end(state.advance(min(eos)), V)
        if not allowed:
            return
        complete = state.complete
        children = [state.advance(token) for token in chance.sample(allowed, min(3, len(allowed)))]
        for child in children:
            child.allows(chance.choice(allowed))
        assert state.complete == complete
        assert [state.allows(token) for token in range(V)] == one_by_one  # no child changed it
        assert torch.equal(state.mask(), mask)
        # two ways to the same place agree, whatever was done in between
        token = chance.choice(allowed)
        state, again = state.advance(token), state.advance(token)
        assert torch.equal(state.mask(), again.mask())
        assert state.complete == again.complete


def check_end(state, V: int) -> None:
    assert state.finished
    assert not state.complete
    assert not state.mask().any()
    assert not any(state.allows(token) for token in range(V))
    with pytest.raises(ConstraintError):
        state.advance(0)


@pytest.mark.parametrize("name", EXAMPLES)
@settings(max_examples=12)
@given(seed=st.integers(0, 2**32))
def test_keeps_the_protocol(built, name, seed):
    check_constraint(built[name], seed)


def texts(kind):
    """Parameters (name, text) of the texts that the examples accept or refuse."""
    return [(name, text) for name, example in EXAMPLES.items() for text in getattr(example, kind)]


@pytest.mark.parametrize(("name", "text"), texts("accepts"))
@settings(max_examples=8)
@given(seed=st.integers(0, 2**32))
def test_accepts_any_tokenization_of_its_texts(tiny_tokenizer, built, name, text, seed):
    state = built[name].initial()
    for token in random_tokenization(tiny_tokenizer, text.encode(), random.Random(seed)):
        assert state.allows(token)
        state = state.advance(token)
    assert state.complete


@pytest.mark.parametrize(("name", "text"), texts("refuses"))
def test_refuses_other_texts_somewhere(tiny_tokenizer, built, name, text):
    state = built[name].initial()
    for token in tiny_tokenizer.encode(text):
        if not state.allows(token):
            return
        state = state.advance(token)
    assert not state.complete


def test_different_vocabularies_do_not_combine(tiny_tokenizer):
    V, end = len(tiny_tokenizer), tiny_tokenizer.eos_token_id
    with pytest.raises(VocabularyError, match=str(V + 1)):
        _ = Anything(V, [end]) & Anything(V + 1, [end])
    with pytest.raises(VocabularyError):
        _ = Anything(V, [end]) | Anything(V, [end, 0])


def random_tokenization(tokenizer, text: bytes, chance: random.Random) -> list[int]:
    spelling = token_bytes(tokenizer)
    found, at = [], 0
    while at < len(text):
        fits = [i for i, piece in enumerate(spelling) if piece and text.startswith(piece, at)]
        found.append(chance.choice(fits))
        at += len(spelling[found[-1]])
    return found
