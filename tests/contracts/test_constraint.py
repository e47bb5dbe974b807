"""What every constraint must keep: one checker, applied to all that are registered."""

import random
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenry.core.errors import ConstraintError, VocabularyError
from tokenry.decode.constraints.base import Anything, Constraint
from tokenry.decode.constraints.base import constraint as registered
from tokenry.decode.constraints.contains import Contains
from tokenry.decode.constraints.dictionary import Dictionary
from tokenry.decode.constraints.grammar import Grammar
from tokenry.decode.constraints.length import Length
from tokenry.decode.constraints.melody import Melody
from tokenry.decode.constraints.predicate import Predicate
from tokenry.decode.constraints.stop import Stop
from tokenry.text.vocabulary import token_bytes

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 6}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
SUM = 'start: term ("+" term)*\nterm: /[0-9]+/ | "(" start ")"'


def short_cafe(tokenizer):
    """(naïve|café|東京|🙂)+ in at most 12 characters, which tokens cut inside characters."""
    words = ("naïve", "café", "東京", "🙂")
    whole = re.compile("(?:" + "|".join(words) + ")+")
    starts = {word[:n] for word in words for n in range(len(word))}

    def prefix(text):
        end = max(m for m in range(len(text) + 1) if not text[:m] or whole.fullmatch(text[:m]))
        return len(text) <= 12 and text[end:] in starts

    return Predicate(prefix, lambda text: bool(whole.fullmatch(text)), tokenizer)


def even_number(tokenizer):
    return Predicate(
        lambda text: text == "" or text.isdecimal(),
        lambda text: text.isdecimal() and int(text) % 2 == 0,
        tokenizer,
    )


def no_letter_e(tokenizer):
    from tokenry.decode.constraints.words import WordConstraint
    from tokenry.decode.steering.word_filters import WithoutLetters

    return WordConstraint(WithoutLetters("e"), tokenizer)


def known_names(tokenizer, **options):
    from tokenry.decode.constraints.completion import Completion
    from tokenry.decode.constraints.completion_engine import NamesEngine

    names = {"": ["cat", "there", "theory", "café"], "cat": ["mat", "sat"]}
    return Completion(NamesEngine(names), tokenizer, **options)


EXAMPLES = {
    "anything": (None, lambda t: Anything(len(t), [t.eos_token_id])),
    "json schema": ("json", lambda t: Grammar.json_schema(PERSON, t)),
    "json schema without spaces": (
        "json",
        lambda t: Grammar.json_schema(PERSON, t, whitespace=""),
    ),
    "regex": ("regex", lambda t: Grammar.regex(r"(the|cat| )*[0-9]{1,3}(é|東)?", t)),
    "lark": ("lark", lambda t: Grammar.lark(SUM, t)),
    "predicate on bytes": ("predicate", short_cafe),
    "predicate on digits": ("predicate", even_number),
    "words": ("words", no_letter_e),
    "stop": ("stop", lambda t: Stop(["the", "e ", "東京"], t)),
    "stop with overshoot": ("stop", lambda t: Stop(["he", "京"], t, overshoot=True, early=True)),
    "contains": ("contains", lambda t: Contains(["the", "eat", "é"], t)),
    "length": ("length", lambda t: Length(2, 4, t)),
    "dictionary": ("dictionary", lambda t: Dictionary([["the cat", "eat"], ["é"]], t)),
    "melody": ("melody", lambda t: Melody([2, 3], t, lexicon=["the", "cat", "gather", "a"])),
    "stop and contains": (None, lambda t: Stop(["mat"], t) & Contains(["the", "em"], t)),
    "completion": ("completion", known_names),
    "whole names": ("completion", lambda t: known_names(t, whole_names=True, suffix="\n")),
    "and": (None, lambda t: Grammar.regex("[0-9]+", t) & even_number(t)),
    "or": (None, lambda t: Grammar.regex("(the|cat)+", t) | even_number(t)),
    "not": (None, lambda t: ~Grammar.regex("[0-9]+", t)),
    "nested": (
        None,
        lambda t: (
            (Grammar.regex("[0-9]*", t) | Grammar.lark(SUM, t))
            & Grammar.regex("[0-9+()]{0,8}", t)
            & Anything(len(t), [t.eos_token_id])
        ),
    ),
}


@pytest.fixture(scope="module")
def built(tiny_tokenizer):
    return {name: build(tiny_tokenizer) for name, (_, build) in EXAMPLES.items()}


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


def test_every_registered_constraint_is_checked():
    checked = {key for key, _ in EXAMPLES.values() if key}
    assert checked >= set(registered.names())


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("json schema", '{"name": "Ada", "age": 36}'),
        ("json schema without spaces", '{"name":"Ada","age":36}'),
        ("regex", "the cat12東"),
        ("lark", "12+(3+4)"),
        ("predicate on bytes", "café東京🙂"),
        ("predicate on digits", "1234"),
        ("words", "a cat on a mat"),
        ("contains", "café, the weather: eat"),
        ("dictionary", "The Cat, É!"),
        ("melody", "The... cat,\ngather the"),
        ("stop and contains", "them on a mat"),
        ("completion", "cat.mat(the"),
        ("whole names", "return cat.sat(café, 12)"),
        ("and", "1234"),
        ("or", "thecat"),
        ("or", "36"),
        ("not", "36a"),
        ("not", "cat"),
        ("nested", "1+(2)"),
    ],
)
@settings(max_examples=8)
@given(seed=st.integers(0, 2**32))
def test_accepts_any_tokenization_of_its_texts(tiny_tokenizer, built, name, text, seed):
    state = built[name].initial()
    for token in random_tokenization(tiny_tokenizer, text.encode(), random.Random(seed)):
        assert state.allows(token)
        state = state.advance(token)
    assert state.complete


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("json schema", '{"name": "Ada"}'),
        ("json schema", '{"name": "Ada", "age": 3.5}'),
        ("json schema without spaces", '{"name": "Ada","age":36}'),
        ("regex", "the cat"),
        ("lark", "12+(3+4"),
        ("predicate on bytes", "cafe"),
        ("predicate on digits", "123"),
        ("words", "the cat"),
        ("stop", "a cat on a ma"),
        ("contains", "café, the"),
        ("dictionary", "the cats é"),
        ("melody", "the cat\na"),
        ("melody", "gather a\ngather a"),
        ("length", "the cat on the mat and on the mat"),
        ("stop and contains", "the mat"),
        ("completion", "cat.dog"),
        ("whole names", "cat.ma(the)"),
        ("and", "123"),
        ("or", "cat7"),
        ("not", "367"),
        ("nested", "1+1+1+1+1"),
    ],
)
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
