"""The dictionary constraint against brute force over every token sequence."""

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenry.core.errors import ConstraintError
from tokenry.decode.constraints.dictionary import Dictionary, can_spell
from tokenry.text.phrase_dictionary import PhraseDictionary
from tokenry.text.vocabulary import token_bytes
from tokenry.text.word_boundaries import boundaries

EOS = 0
PIECES = [b"", b"a", b"b", b"ab", b" ", b"A", b"b a", b"\xc3", b"\xa9", b"\xa9 b", b"\xcc\x81"]


def holds(text, candidate, *, whole_words=True, fold_case=True):
    """An independent reading: compare at every place."""
    edges = boundaries(text)
    if fold_case:
        text, candidate = text.lower(), candidate.lower()
    return any(
        text.startswith(candidate, start)
        and (not whole_words or (edges[start] and edges[start + len(candidate)]))
        for start in range(len(text) - len(candidate) + 1)
    )


def finished_like_brute_force(built, length, prompt=b""):
    """Every sequence of at most `length` tokens is complete exactly if it should be."""
    options = {"whole_words": built.whole_words, "fold_case": built.fold_case}
    states = {(): built.begin([PIECES.index(prompt)] if prompt else [])}
    count = 0
    for size in range(length + 1):
        for tokens in product(range(1, len(PIECES)), repeat=size):
            if size:
                before = states.get(tokens[:-1])
                allowed = before is not None and before.allows(tokens[-1])
                states[tokens] = before.advance(tokens[-1]) if allowed else None
            state = states[tokens]
            data = b"".join(PIECES[token] for token in tokens)
            try:
                text = data.decode()
                good = all(
                    any(holds(text, one, **options) for one in phrase) for phrase in built.phrases
                )
            except UnicodeDecodeError:
                good = False
            assert (state is not None and state.complete) == good, data
            count += good
    return count


@pytest.mark.parametrize("whole_words", [True, False])
@pytest.mark.parametrize("fold_case", [True, False])
def test_the_finished_texts_are_exactly_those_that_cover_every_phrase(whole_words, fold_case):
    phrases = [["ab", "b a"], ["é", "A"]]
    built = Dictionary(phrases, PIECES, whole_words=whole_words, fold_case=fold_case, eos=[EOS])
    assert finished_like_brute_force(built, 4) > 10


def test_candidates_that_contain_each_other_or_serve_several_phrases():
    built = Dictionary([["a"], ["a b", "ab"], ["b"], ["a"]], PIECES, eos=[EOS])
    assert finished_like_brute_force(built, 4) > 5


def test_no_phrases_leave_every_text_free():
    built = Dictionary([], PIECES, eos=[EOS])
    assert built.initial().complete
    assert finished_like_brute_force(built, 2) > 20


def test_a_word_that_the_prompt_began_is_not_a_word_of_its_own():
    built = Dictionary([["ab"]], PIECES, eos=[EOS])
    token = PIECES.index(b"ab")
    inside = built.begin([PIECES.index(b"a")]).advance(token)
    assert not inside.complete
    assert built.begin([PIECES.index(b" ")]).advance(token).complete
    assert built.begin([PIECES.index(b"a"), EOS]).advance(token).complete
    assert inside.advance(PIECES.index(b" ")).advance(token).complete


def test_there_is_no_dead_end():
    built = Dictionary([["ab", "b a"], ["é"]], PIECES, eos=[EOS])
    graph, todo = {}, [built.initial()]
    while todo:
        state = todo.pop()
        if state not in graph:
            mask = state.mask()
            assert mask.tolist() == [state.allows(t) for t in range(built.vocab_size)]
            graph[state] = [state.advance(token) for token in mask.nonzero()[:, 0].tolist()]
            todo.extend(graph[state])
    alive = {state for state in graph if state.finished}
    while more := {s for s, after in graph.items() if not alive.isdisjoint(after)} - alive:
        alive |= more
    assert alive == set(graph)
    assert len(graph) > 20


TEXT = "Am Ufer des Flusses steht eine große Bank, dahinter ein Haus."


@settings(max_examples=30)
@given(st.randoms(use_true_random=False))
def test_holds_for_every_tokenization_of_a_text(tiny_tokenizer, chance):
    phrases = [["Bank", "ufer"], ["große bank"], ["haus", "Heim"]]
    built = Dictionary(phrases, tiny_tokenizer)
    spelling, data = token_bytes(tiny_tokenizer), TEXT.encode()
    state, at = built.initial(), 0
    while at < len(data):
        fits = [i for i, piece in enumerate(spelling) if piece and data.startswith(piece, at)]
        token = chance.choice(fits)
        state, at = state.advance(token), at + len(spelling[token])
        text = data[: at - len(state.tail)].decode()
        missing = [tuple(p) for p in phrases if not any(holds(text, one) for one in p)]
        assert state.missing == missing
        assert state.complete == (not missing and not state.tail)
    assert state.complete


def test_is_made_from_the_phrases_of_a_source(tiny_tokenizer):
    dictionary = PhraseDictionary({"bank": ["Bank", "Ufer"], "river": "Fluss", "sun": "Sonne"})
    built = Dictionary.of(dictionary, "The bank of the river, the bank.", tiny_tokenizer)
    assert built.phrases == (("Bank", "Ufer"), ("Fluss",))
    assert built.initial().missing == [("Bank", "Ufer"), ("Fluss",)]


def test_samples_of_a_model_hold_the_candidates(tiny_llama_text, tiny_tokenizer):
    from tokenry.decode.constraints.length import Length
    from tokenry.decode.generate import generate

    built = Dictionary([["a", "o"], ["e", "i"]], tiny_tokenizer, whole_words=False)
    samples = generate(
        (tiny_llama_text, tiny_tokenizer),
        "the cat",
        built & Length(2, 12, tiny_tokenizer),
        particles=8,
        max_new_tokens=13,
    )
    ended = [text for text, done in zip(samples.texts, samples.finished, strict=True) if done]
    assert ended
    assert all({"a", "o"} & {*t.lower()} and {"e", "i"} & {*t.lower()} for t in ended)


def test_impossible_phrases_are_named():
    with pytest.raises(ConstraintError, match=r"phrase 1 has the candidates \[\]"):
        Dictionary([["a"], []], PIECES, eos=[EOS])
    with pytest.raises(ConstraintError, match="no empty one"):
        Dictionary([["a", ""]], PIECES, eos=[EOS])
    with pytest.raises(ConstraintError, match=r"phrase 0, \['xyz'\], can be spelled"):
        Dictionary([["xyz"]], PIECES, eos=[EOS])
    Dictionary([["xyz", "abba"]], PIECES, eos=[EOS])  # one of two is enough


def test_refusals_say_what_is_missing():
    state = Dictionary([["ab"]], PIECES, eos=[EOS]).initial()
    with pytest.raises(ConstraintError, match="'ab'"):
        state.advance(EOS)
    ended = state.advance(PIECES.index(b"ab")).advance(EOS)
    assert not ended.mask().any()
    assert not ended.allows(1)


@given(st.lists(st.binary(min_size=1, max_size=2), max_size=4), st.binary(max_size=5))
def test_what_can_be_spelled_is_found_by_trying(pieces, data):
    tried = {b""}
    for _ in range(len(data)):
        tried |= {start + piece for start in tried for piece in pieces if len(start) < len(data)}
    assert can_spell(set(pieces), data) == (data in tried)


def test_masks_are_not_shared_with_the_state():
    state = Dictionary([["ab"]], PIECES, eos=[EOS]).initial()
    state.mask().fill_(False)
    assert torch.equal(state.mask(), torch.tensor([state.allows(t) for t in range(len(PIECES))]))
