"""Word constraints against brute force: every token sequence over small vocabularies."""

import random
import re
import unicodedata
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenry.core.errors import ConstraintError, InputError
from tokenry.decode.constraints.base import constraint
from tokenry.decode.constraints.sentence_spans import class_of, classes_after
from tokenry.decode.constraints.spelling import (
    Spelling,
    letters_and_marks,
    span_after,
    spellings_after,
    split_tail,
)
from tokenry.decode.constraints.words import WordConstraint, WordState
from tokenry.decode.steering.word_filters import (
    AnyWord,
    EndsWith,
    Length,
    Not,
    OnlyLetters,
    StartsWith,
    Where,
    WithLetters,
    WithoutLetters,
)
from tokenry.decode.steering.word_shapes import (
    Anagram,
    EditDistance,
    Isogram,
    LetterAt,
    Palindrome,
    PartialAnagram,
)

EOS = 0
PIECES = [b"", b"a", b"b", b"c", b"ab", b" ", b" a", b"b ", b"'", b"a b", b"c.a", b"'b", b"\xc3"]
PIECES += [b"\xa9", b"\xa9c", b"A", b"b\xc3"]
LEXICON = ["".join(letters) for size in (1, 2, 3, 4) for letters in product("abce", repeat=size)]
LEXICON += ["a'b", "ab'c", "b'a'c"]

OPEN = [
    AnyWord(),
    WithoutLetters("b"),
    OnlyLetters("ab"),
    WithLetters("ab"),
    Length(2, 3),
    Length(3),
    StartsWith("ab"),
    EndsWith("b"),
    LetterAt((1, "b")),
    PartialAnagram("abbe"),
    Anagram("abc"),
    WithoutLetters("a") | Length(2, 2),
    WithoutLetters("a") & OnlyLetters("abc"),
    StartsWith("ca") | EndsWith("ab") | Anagram("bb"),
]
LISTED = [
    Palindrome(),
    Isogram(),
    EditDistance("cab"),
    ~WithoutLetters("b"),
    Not(Length(2, 3)),
    WithLetters("a") & Length(2, 3),
    StartsWith("a") & ~EndsWith("b"),
    (Palindrome() | WithoutLetters("a")) & Length(1, 3),
    Where(lambda word: word in ("a", "cab", "a'b", "bec"), "four words"),
]


def spans(text: str, fold: bool = True) -> list[tuple[str, int]]:
    """An independent reading of a text's words, with the place where each ends."""
    plain = text.lower()
    if fold:
        plain = "".join(unicodedata.normalize("NFKD", character)[0] for character in plain)
    pattern = r"[^\W\d_]+(?:'[^\W\d_]+)*"
    return [(match[0], match.end()) for match in re.finditer(pattern, plain.replace("’", "'"))]


def is_good(data: bytes, accepts, prompt: str = "", fold: bool = True) -> bool:
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return False
    return all(accepts(word) for word, end in spans(text, fold) if end > len(prompt))


def run(state: WordState, tokens) -> WordState | None:
    for token in tokens:
        if not state.allows(token):
            return None
        state = state.advance(token)
    return state


def reachable(start: WordState) -> dict[WordState, list[WordState]]:
    """All states on from `start`, with their successors."""
    graph, todo = {}, [start]
    while todo:
        state = todo.pop()
        if state not in graph:
            tokens = [t for t in range(start.constraint.vocab_size) if state.allows(t)]
            graph[state] = [state.advance(token) for token in tokens]
            todo.extend(graph[state])
    return graph


def assert_equals_brute_force(start: WordState, accepts, length: int, prompt: str = "") -> None:
    pieces = start.constraint.vocabulary.pieces
    fold = start.constraint.words is None  # a lexicon's words are written as it writes them
    ids = range(1, len(pieces))
    states = {(): start}
    for size in range(length + 1):
        for tokens in product(ids, repeat=size):
            if size and tokens not in states:
                before = states.get(tokens[:-1])
                states[tokens] = before and run(before, tokens[-1:])
            state = states[tokens]
            data = prompt.encode() + b"".join(pieces[token] for token in tokens)
            finished = state is not None and state.complete
            assert finished == is_good(data, accepts, prompt, fold), (data, finished)


@pytest.mark.parametrize("filter", OPEN, ids=str)
def test_without_lexicon_the_finished_texts_are_exactly_the_good_ones(filter):
    assert filter.exact
    built = WordConstraint(filter, PIECES, eos=[EOS], wordless=True)
    assert built.words is None
    assert_equals_brute_force(built.initial(), filter, length=3)


@pytest.mark.parametrize("filter", [*LISTED, *OPEN[1:12:3]], ids=str)
def test_with_lexicon_the_finished_texts_are_exactly_the_good_ones(filter):
    built = WordConstraint(filter, PIECES, eos=[EOS], wordless=True, lexicon=LEXICON)
    listed = {*LEXICON}
    assert_equals_brute_force(built.initial(), lambda w: w in listed and filter(w), length=3)


def test_long_sequences_of_a_tiny_vocabulary_are_exact():
    pieces = [b"", b"a", b"b ", b"'", b"ba"]
    for filter in (Length(2, 3), EndsWith("a"), Palindrome()):
        built = WordConstraint(filter, pieces, eos=[EOS], wordless=True, lexicon=LEXICON)
        assert_equals_brute_force(
            built.initial(), lambda w, f=filter: w in LEXICON and f(w), length=6
        )


@pytest.mark.parametrize("prompt", ["ab", "ca", "a b'", "bb ", "a'a", "cc''", "xyz", "xyz'", "é"])
@pytest.mark.parametrize("lexicon", [None, LEXICON], ids=["open", "lexicon"])
def test_words_that_a_prompt_holds_are_not_judged_and_those_it_begins_are(prompt, lexicon):
    filter = Length(2, 3)
    built = WordConstraint(filter, PIECES, eos=[EOS], wordless=True, lexicon=lexicon)
    # The prompt's tokens: single bytes, appended to the vocabulary for this purpose.
    pieces = [*PIECES, *(bytes([byte]) for byte in sorted({*prompt.encode()}))]
    built = WordConstraint(filter, pieces, eos=[EOS], wordless=True, lexicon=lexicon)
    start = built.begin([pieces.index(bytes([byte])) for byte in prompt.encode()])

    def accepts(word):
        return filter(word) and (lexicon is None or word in lexicon)

    assert_equals_brute_force(start, accepts, length=2, prompt=prompt)
    for state in reachable(start):
        assert_mask_is_allows(state)


def assert_mask_is_allows(state: WordState) -> None:
    single = [state.allows(token) for token in range(state.constraint.vocab_size)]
    assert state.mask().tolist() == single


@pytest.mark.parametrize("filter", [*OPEN, *LISTED], ids=str)
def test_mask_is_allows_everywhere_and_there_is_no_dead_end(filter):
    lexicon = None if filter.exact else LEXICON
    every = [b"e", *(bytes([byte]) for byte in range(0x80, 0xC0))]  # bytes that end characters
    built = WordConstraint(filter, PIECES + every, eos=[EOS], wordless=True, lexicon=lexicon)
    graph = reachable(built.initial())
    for state in graph:
        assert_mask_is_allows(state)
    alive = {state for state in graph if state.finished}
    grown = True
    while grown:
        more = {state for state, after in graph.items() if not alive.isdisjoint(after)} - alive
        alive |= more
        grown = bool(more)
    assert alive == set(graph)


FILTERS = st.recursive(
    st.one_of(
        st.sets(st.sampled_from("abce"), min_size=1, max_size=2).map(
            lambda letters: WithoutLetters("".join(sorted(letters)))
        ),
        st.sets(st.sampled_from("abce"), min_size=1, max_size=2).map(
            lambda letters: WithLetters("".join(sorted(letters)))
        ),
        st.integers(1, 3).map(lambda size: Length(size, size + 1)),
        st.sampled_from("abce").map(StartsWith),
        st.sampled_from("abce").map(EndsWith),
        st.just(Palindrome()),
        st.just(Isogram()),
    ),
    lambda inner: st.one_of(
        st.tuples(inner, inner).map(lambda pair: pair[0] & pair[1]),
        st.tuples(inner, inner).map(lambda pair: pair[0] | pair[1]),
        inner.map(lambda filter: ~filter),
    ),
    max_leaves=4,
)
TOKENS = st.lists(
    st.text("abceéE' .’-1", min_size=1, max_size=4).map(lambda text: text.encode())
    | st.binary(min_size=1, max_size=2),
    min_size=1,
    max_size=12,
)


@settings(max_examples=150)
@given(FILTERS, TOKENS, st.lists(st.integers(0, 10**6), max_size=12), st.booleans())
def test_random_filters_over_random_vocabularies_only_let_good_texts_end(
    filter, tokens, choices, wordless
):
    pieces = [b"", *dict.fromkeys(tokens)]
    try:
        lexicon = None if filter.exact else LEXICON
        built = WordConstraint(filter, pieces, eos=[EOS], lexicon=lexicon, wordless=wordless)
    except ConstraintError:
        assert not any(map(filter, LEXICON))
        return
    known = built.words
    state, data = built.initial(), b""
    for choice in choices:
        assert_mask_is_allows(state)
        if state.complete:
            words = built.written.words(data.decode())
            assert all(filter(word) and (known is None or word in known) for word in words)
            assert built.accepts(data.decode())
        going = [token for token in state.mask().nonzero()[:, 0].tolist() if token != EOS]
        if not going:
            break
        token = going[choice % len(going)]
        state, data = state.advance(token), data + pieces[token]


@pytest.mark.parametrize(
    "filter",
    [WithoutLetters("e"), Length(2, 4), Palindrome(), WithLetters("t") & ~WithoutLetters("h")],
    ids=str,
)
def test_random_texts_of_a_real_tokenizer_hold_the_filter_in_all_their_words(
    filter, tiny_tokenizer
):
    built = WordConstraint(filter, tiny_tokenizer)
    generator = torch.Generator().manual_seed(3)
    for _ in range(4):
        state, tokens = built.initial(), []
        while len(tokens) < 40 or not state.complete:
            weights = state.mask().float()
            weights[list(built.eos)] = 0.0
            tokens.append(int(torch.multinomial(weights, 1, generator=generator)))
            state = state.advance(tokens[-1])
        text = tiny_tokenizer.decode(tokens, clean_up_tokenization_spaces=False)
        assert Spelling().words(text)
        assert all(filter(word) for word in Spelling().words(text)), text


def test_a_byte_that_only_letters_begin_with_cannot_end_a_word():
    pieces = [b"", *(bytes([byte]) for byte in range(256))]
    word = [1 + byte for byte in "аб".encode()]
    for wordless in (True, False):
        full = run(WordConstraint(Length(2, 2), pieces, eos=[0], wordless=wordless).initial(), word)
        assert not full.allows(1 + 0xD1)  # U+0440 to U+047F: all letters
        assert full.allows(1 + 0xC2)  # U+00A0 is among those that may follow
        assert_mask_is_allows(full)


@pytest.mark.parametrize("tail", [b"\xd1", b"\xf3\xa0\x84", b"\xed", b"\xc2", b"\xf0", b"\xf3"])
def test_what_may_follow_a_tail_is_some_character_that_begins_with_it(tail):
    low, high = span_after(tail)
    others = [
        point
        for point in range(low, high)
        if unicodedata.category(chr(point)) != "Cs"
        and unicodedata.category(chr(point))[0] not in "LM"
    ]
    assert classes_after(tail) == {class_of(chr(point)) for point in others}


def test_a_text_may_end_only_at_an_accepted_word_and_goes_nowhere_after_its_end():
    built = WordConstraint(Length(2, 2), PIECES, eos=[EOS])
    one = built.initial().advance(PIECES.index(b"a"))
    assert not one.complete
    assert not one.allows(EOS)
    two = one.advance(PIECES.index(b"b"))
    assert two.allows(EOS)
    ended = two.advance(EOS)
    assert ended.finished
    assert not ended.mask().any()
    assert not ended.allows(1)
    with pytest.raises(ConstraintError, match="Length"):
        one.advance(EOS)


@pytest.mark.parametrize(
    ("filter", "refused", "accepted"),
    [
        (LetterAt((-1, "e")), ["pen", "e's"], ["pine", "e"]),
        (LetterAt((0, "p"), (-2, "n")), ["pen", "on", "p"], ["pine", "pne"]),
        (WithoutLetters("E"), ["pen", "Pen", "PEN", "pén"], ["pan"]),
        (WithoutLetters("ｅ"), ["pen"], ["pan"]),
        (WithoutLetters("eé"), ["pen", "pén"], ["pan"]),
        (StartsWith("PE"), ["apple"], ["pen", "Pen"]),
        (EndsWith("Σ"), ["οδο"], ["οδος", "ΟΔΟΣ"]),
        (Anagram("ePn"), ["pine"], ["pen"]),
        (OnlyLetters("ABC"), ["abd"], ["cab"]),
    ],
    ids=str,
)
def test_the_letters_of_a_filter_are_those_of_the_words(filter, refused, accepted):
    pieces = [b"", *(bytes([byte]) for byte in range(256))]
    built = WordConstraint(filter, pieces, eos=[EOS])
    for text, good in [*((t, False) for t in refused), *((t, True) for t in accepted)]:
        state = run(built.initial(), [1 + byte for byte in text.encode()])
        assert (state is not None and state.complete) == good == built.accepts(text), text


@pytest.mark.parametrize(
    ("filter", "said"),
    [
        (WithoutLetters("é"), "write 'e'"),
        (WithoutLetters("e\u0301"), "write 'e'"),
        (WithLetters("aé"), "write 'e'"),
        (StartsWith("é") | AnyWord(), "write 'e'"),
        (~LetterAt((0, "é")), "write 'e'"),
    ],
    ids=str,
)
def test_letters_that_are_folded_away_are_refused(filter, said):
    with pytest.raises(ConstraintError, match=said):
        WordConstraint(filter, PIECES, eos=[EOS], lexicon=LEXICON)
    apart, words = Spelling(fold_accents=False), ["éa", "aé", "ba"]
    WordConstraint(filter, PIECES, eos=[EOS], spelling=apart, lexicon=words)


@pytest.mark.parametrize(
    "build",
    [
        lambda: LetterAt((0, "th")),
        lambda: LetterAt((0, "")),
        lambda: LetterAt((0.5, "t")),
        lambda: LetterAt((0, "a"), (0, "b")),
        lambda: WithoutLetters(""),
        lambda: WithoutLetters("1"),
        lambda: WithLetters("a b"),
        lambda: OnlyLetters("-"),
        lambda: StartsWith("'"),
        lambda: EndsWith("."),
        lambda: Anagram(""),
        lambda: PartialAnagram("4"),
        lambda: EditDistance("c4t"),
        lambda: EditDistance("cat", -1),
        lambda: Isogram(0),
        lambda: Length(float("nan")),
        lambda: Length(1, float("inf")),
    ],
)
def test_filters_that_no_word_or_every_word_would_pass_by_mistake_are_refused(build):
    with pytest.raises((ConstraintError, InputError)):
        build()


def test_words_of_a_lexicon_are_written_as_it_writes_them():
    """Accents are folded for the filter, not in the text: "mátt" is no word."""
    pieces = [b"", *(bytes([byte]) for byte in range(256))]
    built = WordConstraint(EndsWith("e"), pieces, eos=[EOS], lexicon=["cafe\u0301", "mate", "cat"])
    assert built.words == ["café", "mate"]
    for text, good in [("café", True), ("Café mate", True), ("cafe", False), ("máte", False)]:
        state = run(built.initial(), [1 + byte for byte in text.encode()])
        assert (state is not None and state.complete) == good == built.accepts(text), text


SENTENCES = [
    ("The cat sat. It sat!", True),
    ("\n\n3.5 cats, 12 mats (1999) sat...\n\nMats?", True),
    ("", True),
    ("...", True),  # the end of the sentence before
    ("123", False),
    ("- * -", False),
    ("a cat. 12 - 13.", False),
    ("\n3. *3.11*\n\na", False),
    ("a" + " - " * 6 + "b", False),
    ("a (1914-1918), b", True),
    ("a" + "÷" * 9 + "b", False),
    ("aᵃ", False),
    ("ｃａｔ", False),
    ("a\x82", False),
    ("\n" * 33 + "a", False),
]


@pytest.mark.parametrize(("text", "good"), SENTENCES)
def test_texts_are_made_of_words_unless_wordless_is_asked_for(text, good):
    pieces = [b"", *(bytes([byte]) for byte in range(256))]
    tokens = [1 + byte for byte in text.encode()]
    state = run(WordConstraint(AnyWord(), pieces, eos=[EOS]).initial(), tokens)
    assert (state is not None and state.complete) == good
    free = WordConstraint(AnyWord(), pieces, eos=[EOS], wordless=True)
    assert run(free.initial(), tokens).complete


def test_where_words_are_due_masks_are_allows_and_a_letter_can_always_come():
    every = [b"e", "—".encode(), *(bytes([byte]) for byte in range(0x80, 0xC0))]
    built = WordConstraint(WithoutLetters("b"), [*PIECES, *every, b"1", b"\n"], eos=[EOS])
    chance = random.Random(0)
    for _ in range(20):
        state = built.initial()
        for _ in range(40):
            mask = state.mask()
            assert mask.tolist() == [state.allows(token) for token in range(built.vocab_size)]
            assert state.tail or mask[PIECES.index(b"a")]
            going = [token for token in mask.nonzero()[:, 0].tolist() if token != EOS]
            state = state.advance(chance.choice(going))


def test_a_prompts_words_count_for_its_last_sentence():
    pieces = [b"", *(bytes([byte]) for byte in range(256))]
    built = WordConstraint(AnyWord(), pieces, eos=[EOS])

    def complete(prompt, text):
        start = built.begin([1 + byte for byte in prompt.encode()])
        state = run(start, [1 + byte for byte in text.encode()])
        return state is not None and state.complete

    assert complete("The year is", " 1999.")
    assert complete("In 19", "99.")
    assert not complete("It was so.", " 1999!")


def test_states_never_change():
    built = WordConstraint(WithoutLetters("b"), PIECES, eos=[EOS])
    state = built.initial()
    before = state.mask().clone()
    state.advance(PIECES.index(b"c")).advance(PIECES.index(b" ")).mask()
    assert torch.equal(state.mask(), before)


def test_evicted_masks_are_computed_again_alike():
    small = WordConstraint(Length(1, 4), PIECES, eos=[EOS], cache_size=1)
    large = WordConstraint(Length(1, 4), PIECES, eos=[EOS])
    for tokens in product(range(1, 8), repeat=2):
        one, two = run(small.initial(), tokens), run(large.initial(), tokens)
        assert (one is None) == (two is None)
        if one and two:
            assert torch.equal(one.mask(), two.mask())


def test_always_allowed_tokens_pass_and_the_word_they_spoil_may_only_end():
    bad = PIECES.index(b"b")
    built = WordConstraint(WithoutLetters("b"), PIECES, eos=[EOS], always_allow=[bad])
    state = built.initial().advance(PIECES.index(b"a")).advance(bad)
    assert state.complete
    assert state.allows(PIECES.index(b" "))
    assert not state.allows(PIECES.index(b"c"))
    assert state.allows(bad)
    clean = state.advance(PIECES.index(b" ")).advance(PIECES.index(b"c"))
    assert clean.mask()[bad]
    assert not clean.mask()[PIECES.index(b"ab")]


def test_a_lexicon_without_a_good_word_is_refused_by_name():
    with pytest.raises(ConstraintError, match=r"none of the 2 words.*Length\(minimum=9"):
        WordConstraint(Length(9, 9), PIECES, eos=[EOS], lexicon=["ab", "cab", "a-b"])


def test_spelling_agrees_with_an_independent_reading_on_odd_texts():
    texts = [
        "Don’t—Élan",
        "'quoted' words",
        "rock''n roll",
        "a1b_c",
        "naïve ｅ ﬁn",
        "it's'",
        "’tis",
    ]
    expected = [
        ["don't", "elan"],
        ["quoted", "words"],
        ["rock", "n", "roll"],
        ["a", "b", "c"],
        ["naive", "e", "fin"],
        ["it's"],
        ["tis"],
    ]
    assert [Spelling().words(text) for text in texts] == expected
    assert Spelling(fold_case=False, fold_accents=False).words("Élan e\u0301 \u0301x") == [
        "Élan",
        "e\u0301",
        "x",
    ]


@given(st.text("aé東🙂'’ İßA\u0301-", max_size=12), st.integers(0, 12))
def test_spelling_is_the_concatenation_of_the_spellings_of_its_pieces(text, cut):
    spelling = Spelling()
    symbols = spelling.symbols(text[:cut]) + spelling.symbols(text[cut:])
    assert symbols == spelling.symbols(text)
    assert Spelling().words(text) == Spelling().words(symbols)


@given(st.text(min_size=1, max_size=3), st.integers(0, 8))
def test_a_cut_character_is_kept_as_the_tail_and_its_spelling_is_foreseen(text, cut):
    data = text.encode(errors="ignore")
    cut = min(cut, len(data))
    split = split_tail(data[:cut])
    assert split is not None
    whole, tail = split
    assert whole.encode() + tail == data[:cut]
    if tail:
        character = data.decode()[len(whole)]
        assert Spelling().symbols(character) in spellings_after(tail, Spelling())


def test_accents_and_case_are_told_apart_on_demand():
    strict = Spelling(fold_case=False, fold_accents=False)
    built = WordConstraint(WithoutLetters("e"), PIECES, eos=[EOS], spelling=strict)
    assert run(built.initial(), [PIECES.index(b"\xc3"), PIECES.index(b"\xa9")]) is not None
    folded = WordConstraint(WithoutLetters("e"), PIECES, eos=[EOS])
    assert run(folded.initial(), [PIECES.index(b"\xc3"), PIECES.index(b"\xa9")]) is None


def test_is_in_the_catalogue():
    assert constraint["words"] is WordConstraint


@pytest.mark.parametrize("tail", [b"\xc3", b"\xd0", b"\xe0", b"\xed", b"\xe4\xb8", b"\xf0\x9f"])
def test_spellings_after_a_tail_are_those_of_every_character_that_begins_with_it(tail):
    spelling = Spelling(fold_accents=False)
    characters = (chr(p) for p in range(0x80, 0x110000) if not 0xD800 <= p < 0xE000)
    expected = {spelling.symbols(c) for c in characters if c.encode().startswith(tail)}
    assert spellings_after(tail, spelling) == expected


def test_no_code_point_outside_the_scanned_ranges_is_a_letter_or_a_mark():
    found = [p for p in range(0x110000) if unicodedata.category(chr(p))[0] in "LM"]
    assert letters_and_marks() == found
