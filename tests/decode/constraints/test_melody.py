"""The melody constraint against brute force over every token sequence of small vocabularies."""

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenry.core.errors import ConstraintError, InputError
from tokenry.decode.constraints import melody
from tokenry.decode.constraints.melody import Melody, line_syllables
from tokenry.decode.constraints.spelling import Spelling

EOS = 0
# Syllables are made up, so that a small alphabet has words of several counts.
COUNTS = {"a": {1}, "ab": {2}, "ba": {1, 2}, "abba": {3}, "b'a": {1}, "bb": {2}}
PIECES = [b"", b"a", b"b", b"\n", b" ", b"'", b"ab", b" a", b"a\n", b"b a", b"ba\nb", b"7", b"\xc3"]
PIECES += [b"\xa1", b"\n\n", b"a'b", b" ba ab", b"'a", b"A", b"\xc3\xa1b"]


@pytest.fixture(autouse=True)
def made_up_syllables(monkeypatch):
    monkeypatch.setattr(melody, "syllable_counts", lambda word, unknown: COUNTS.get(word, set()))
    melody.spoken_words.cache_clear()
    yield
    melody.spoken_words.cache_clear()


def build(phrases, words=tuple(COUNTS), pieces=PIECES, **options):
    return Melody(phrases, pieces, lexicon=words, eos=[EOS], **options)


def is_sung(data, built, words):
    """An independent reading of a whole text."""
    try:
        lines = data.decode().split("\n")
    except UnicodeDecodeError:
        return False
    if len(lines) != len(built.phrases) or any(c in b"0123456789" for c in data):
        return False
    for line, notes in zip(lines, built.phrases, strict=True):
        sung = Spelling(fold_accents=False).words(line)  # "é" is in none of the words
        if not all(word in words for word in sung):
            return False
        totals = {sum(choice) for choice in product(*(COUNTS[word] for word in sung))}
        fewest = max(notes - built.melisma, min(notes, 1))
        if not any(fewest <= t <= notes + built.split for t in totals):
            return False
    return True


def reachable(start):
    graph, todo = {}, [start]
    while todo:
        state = todo.pop()
        if state not in graph:
            tokens = state.mask().nonzero()[:, 0].tolist()
            graph[state] = [state.advance(token) for token in tokens]
            todo.extend(graph[state])
    return graph


@pytest.mark.parametrize(
    ("phrases", "options"),
    [
        ([2], {}),
        ([3, 1], {}),
        ([1, 0, 2], {}),
        ([3, 2], {"melisma": 1}),
        ([1, 2], {"split": 1}),
        ([4], {"melisma": 4}),
    ],
)
def test_the_finished_texts_are_exactly_those_that_can_be_sung(phrases, options):
    built = build(phrases, **options)
    states, count = {(): built.initial()}, 0
    for size in range(5):
        for tokens in product(range(1, len(PIECES)), repeat=size):
            if size:
                before = states.get(tokens[:-1])
                if before is None or not before.allows(tokens[-1]):
                    continue
                states[tokens] = before.advance(tokens[-1])
            data = b"".join(PIECES[token] for token in tokens)
            good = is_sung(data, built, COUNTS)
            assert states[tokens].complete == good, data
            count += good
    # nothing that can be sung was refused on the way
    for size in range(4):
        for tokens in product(range(1, len(PIECES)), repeat=size):
            if is_sung(b"".join(PIECES[token] for token in tokens), built, COUNTS):
                assert tokens in states
    assert count > 5


@pytest.mark.parametrize(
    ("phrases", "words", "options"),
    [
        ([3, 2], tuple(COUNTS), {}),
        ([2, 4], ("ab", "bb"), {}),  # even sums alone
        ([5, 4], ("ab", "abba", "b'a"), {}),
        ([5], ("ab", "abba"), {}),
        ([3, 3], ("ab",), {"melisma": 1}),
        ([1, 3], ("ab", "ba"), {"split": 1}),
    ],
)
def test_mask_is_allows_everywhere_and_there_is_no_dead_end(phrases, words, options):
    pieces = [*PIECES, *(bytes([byte]) for byte in range(0x80, 0xC0) if byte != 0xA1)]
    graph = reachable(build(phrases, words, pieces, **options).initial())
    for state in graph:
        assert state.mask().tolist() == [state.allows(t) for t in range(len(pieces))]
    alive = {state for state in graph if state.finished}
    while more := {s for s, after in graph.items() if not alive.isdisjoint(after)} - alive:
        alive |= more
    assert alive == set(graph)
    assert len(graph) > 15


TOKENS = st.lists(
    st.text("abAáé' .\n’-1", min_size=1, max_size=4).map(lambda text: text.encode())
    | st.binary(min_size=1, max_size=2),
    min_size=1,
    max_size=14,
)


@settings(max_examples=40)
@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=3),
    st.integers(0, 2),
    TOKENS,
    st.lists(st.integers(0, 10**6), max_size=14),
)
def test_random_vocabularies_only_let_texts_end_that_can_be_sung(phrases, melisma, tokens, choices):
    pieces = [b"", *dict.fromkeys([*tokens, b"a", b" ", b"\n"])]
    built = build(phrases, pieces=pieces, melisma=melisma)
    state, data = built.initial(), b""
    for choice in choices:
        assert state.mask().tolist() == [state.allows(t) for t in range(len(pieces))]
        good = is_sung(data, built, COUNTS)
        assert state.complete == good
        going = [token for token in state.mask().nonzero()[:, 0].tolist() if token != EOS]
        if not going:  # such a vocabulary may lack the bytes that end a character
            break
        token = going[choice % len(going)]
        state, data = state.advance(token), data + pieces[token]


def test_a_word_with_two_pronunciations_may_be_sung_in_either_way():
    pieces = [b"", b"ba", b" "]
    for notes, words in [(1, 1), (2, 1), (3, 2), (4, 2), (2, 2), (6, 3)]:
        state = build([notes], pieces=pieces).initial()
        for token in ([1, 2] * words)[:-1]:
            state = state.advance(token)
        assert state.complete
    assert not build([3], pieces=pieces).initial().advance(1).complete


def test_what_no_lexicon_can_fill_is_refused_by_name():
    with pytest.raises(ConstraintError, match=r"phrase 1, of 3 notes.*\[2\] syllables"):
        build([2, 3], words=("ab", "bb"))
    with pytest.raises(ConstraintError, match="none of the 1 words of the lexicon is known"):
        build([2], words=("xyz",))
    with pytest.raises(InputError, match="phrase 1 is -1"):
        build([2, -1])
    with pytest.raises(ConstraintError, match="at least one phrase"):
        build([])
    with pytest.raises(ConstraintError, match="phrase 1 has 61 notes"):
        build([1, 61])


def test_refusals_name_the_line_and_nothing_comes_after_the_end():
    state = build([1, 2]).initial().advance(PIECES.index(b"a\n"))
    with pytest.raises(ConstraintError, match="line 2, on a phrase of 2 notes"):
        state.advance(EOS)
    ended = state.advance(PIECES.index(b"ab")).advance(EOS)
    assert ended.finished
    assert not ended.mask().any()
    assert not ended.allows(1)


def test_random_lyrics_of_the_pronouncing_dictionary_can_be_sung(tiny_tokenizer, monkeypatch):
    monkeypatch.undo()
    words = ["the", "cat", "sat", "every", "fire", "feather", "gathered", "café", "don't", "oh"]
    built = Melody([5, 3, 4], tiny_tokenizer, lexicon=words, split=1)
    generator = torch.Generator().manual_seed(1)
    for _ in range(2):
        state, tokens = built.initial(), []
        while not state.complete:
            weights = state.mask().float()
            tokens.append(int(torch.multinomial(weights, 1, generator=generator)))
            state = state.advance(tokens[-1])
        text = tiny_tokenizer.decode(tokens, clean_up_tokenization_spaces=False)
        found = line_syllables(text)
        assert len(found) == 3
        for counts, notes in zip(found, (5, 3, 4), strict=True):
            assert {notes, notes + 1} & {*counts}, text


def test_lines_are_counted_with_every_pronunciation(monkeypatch):
    monkeypatch.undo()
    melody.spoken_words.cache_clear()
    assert line_syllables("Twinkle, twinkle, little star\nhow I wonder what you are\n") == [
        [7],
        [7],
        [0],
    ]
    assert line_syllables("fire") == [[1, 2]]
