"""Word filters, and the processor that keeps a generated text within them."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokenry.core.errors import ConstraintError, ShapeError
from tokenry.decode.constraints.spelling import Spelling
from tokenry.decode.constraints.words import WordConstraint
from tokenry.decode.steering.ctgs import (
    VocabFilterProcessor,
    filtered_logprob,
    token_mask,
    vocab_strings,
)
from tokenry.decode.steering.phonetics import (
    Meter,
    RhymesWith,
    Syllables,
    guessed_rhyme,
    guessed_syllables,
)
from tokenry.decode.steering.word_filters import (
    AllOf,
    AnyOf,
    AnyWord,
    EndsWith,
    Length,
    OnlyLetters,
    StartsWith,
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


@pytest.fixture(autouse=True)
def _one_thread():
    """Tiny models are slower, not faster, on several threads of a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


EOS = 0
PIECES = [b"", b"a", b"b", b"c", b" ", b" a", b"ab", b"c b"]


@pytest.mark.parametrize(
    ("filter", "accepted", "rejected"),
    [
        (Palindrome(), ["level", "noon", "a"], ["apple", "ab"]),
        (PartialAnagram("listens"), ["tinsel", "ss", "listen's"], ["eel", "sss"]),
        (Anagram("listen"), ["silent", "enlist"], ["listens", "list", "tinselt"]),
        (Isogram(), ["lumberjack", "don't"], ["letter"]),
        (Isogram(2), ["letter"], ["assess"]),
        (EditDistance("house", 1), ["house", "mouse", "houses", "hose"], ["mice", "hoses"]),
        (LetterAt((0, "b"), (2, "g")), ["bag", "bugle"], ["bat", "ba", "cog"]),
        (WithoutLetters("eo"), ["brisk"], ["brisker", "to"]),
        (~OnlyLetters("ab"), ["abc"], ["abba"]),
        (~WithoutLetters("xy"), ["toy"], ["ton"]),
        (WithLetters("ae"), ["tea"], ["tee", "tar"]),
        (Length(3, 4), ["don't", "cat"], ["at", "mouse"]),
        (StartsWith("re"), ["return"], ["are"]),
        (EndsWith("ing"), ["sing"], ["ingot"]),
        (Syllables(3), ["elephant", "banana"], ["cat"]),
        (Syllables(1), ["cat", "strengths"], ["water"]),
        (Syllables(2), ["fire"], []),  # the dictionary has it with one and with two
        (RhymesWith("light"), ["night", "white"], ["light", "lit"]),
        (Meter("010"), ["banana"], ["elephant"]),
    ],
    ids=lambda value: str(value)[:50],
)
def test_filters_accept_and_reject(filter, accepted, rejected):
    assert [word for word in accepted if not filter(word)] == []
    assert [word for word in rejected if filter(word)] == []
    assert all((~filter)(word) for word in rejected)


def test_words_that_the_dictionary_lacks_are_guessed_or_rejected():
    assert [guessed_syllables(word) for word in ("brimble", "snarked", "gloove", "zazzy")] == [
        2,
        1,
        1,
        2,
    ]
    assert guessed_rhyme("flarnight") == "ight"
    assert Syllables(2)("brimbelt")
    assert not Syllables(2, unknown="reject")("brimbelt")
    assert RhymesWith("light")("flarnight")
    assert not RhymesWith("light", unknown="reject")("flarnight")
    with pytest.raises(ConstraintError, match="flarnight"):
        RhymesWith("flarnight", unknown="reject")


SIMPLE = st.one_of(
    st.sets(st.sampled_from("abc"), min_size=1).map(lambda s: WithoutLetters("".join(sorted(s)))),
    st.sets(st.sampled_from("abc"), min_size=1).map(lambda s: WithLetters("".join(sorted(s)))),
    st.tuples(st.integers(1, 3), st.integers(0, 2)).map(lambda p: Length(p[0], p[0] + p[1])),
    st.text("abc", min_size=1, max_size=2).map(StartsWith),
    st.text("abc", min_size=1, max_size=2).map(EndsWith),
    st.text("abc", min_size=1, max_size=3).map(Anagram),
    st.text("abc", min_size=1, max_size=3).map(PartialAnagram),
    st.text("abc", min_size=1, max_size=3).map(EditDistance),
    st.just(LetterAt((1, "b"))),
    st.just(Palindrome()),
    st.just(Isogram()),
)
WORD = st.text("abcd", min_size=1, max_size=4) | st.just("a'b")


@given(SIMPLE, SIMPLE, WORD, st.text("abcd'", max_size=3))
def test_prefix_safe_residual_and_letters_keep_their_promises(one, two, word, ending):
    for filter in (one, one & two, one | two, ~one):
        grown = word + ending
        if filter(grown):
            assert filter.prefix(word)
            assert not filter.safe or filter(word)
        if filter.exact and filter.letters() is not None and filter.prefix(word):
            blind = "xyz"  # letters that none of these filters names
            assert filter(word.replace("d", "x")) == filter(word.replace("d", blind[1]))


@given(SIMPLE, SIMPLE, WORD, WORD, st.text("abcd", max_size=3))
def test_equal_residuals_accept_the_same_endings(one, two, first, second, ending):
    for filter in (one, one & two, one | two):
        alive = filter.prefix(first) and filter.prefix(second)
        if alive and filter.residual(first) == filter.residual(second):
            assert filter(first + ending) == filter(second + ending)
            assert filter.prefix(first + ending) == filter.prefix(second + ending)


@given(SIMPLE, SIMPLE, SIMPLE, WORD)
def test_the_order_of_a_conjunction_or_disjunction_is_irrelevant(one, two, three, word):
    assert (one & two & three)(word) == (three & (two & one))(word)
    assert (one | two | three)(word) == (three | (two | one))(word)
    assert (~(one & two))(word) == (~one | ~two)(word)


@pytest.mark.parametrize("filter", [None, AnyWord(), AllOf(())], ids=str)
def test_an_empty_filter_leaves_logits_untouched(filter, tiny_tokenizer):
    scores = torch.randn(2, len(tiny_tokenizer))
    assert VocabFilterProcessor(filter, tiny_tokenizer)(torch.ones(2, 3).long(), scores) is scores


def test_a_disjunction_of_nothing_accepts_nothing():
    assert not AnyOf(())("word")


def generated(model, tokenizer, processor, prompts, **options):
    tokenizer.padding_side = "left"
    inputs = tokenizer(prompts, return_tensors="pt", padding=True, return_token_type_ids=False)
    outputs = model.generate(
        **inputs,
        logits_processor=[processor],
        pad_token_id=tokenizer.pad_token_id,
        **{"max_new_tokens": 16, **options},
    )
    return outputs[:, inputs["input_ids"].shape[1] :]


PROMPTS = ["the cat sat on the", "there", "def add(a, "]
DECODING = [
    {"do_sample": False},
    {"do_sample": True, "top_k": 5},
    {"do_sample": True, "top_p": 0.9, "temperature": 0.7, "num_return_sequences": 2},
    {"num_beams": 3, "do_sample": False},
    {"num_beams": 3, "num_return_sequences": 3, "do_sample": False},
]


@pytest.mark.parametrize("options", DECODING, ids=str)
@pytest.mark.parametrize(
    "filter", [WithoutLetters("eé"), Length(2, 4), WithLetters("a") & Length(1, 5)], ids=str
)
def test_generated_words_hold_the_filter_on_every_decode_path(
    filter, options, tiny_llama_text, tiny_tokenizer
):
    torch.manual_seed(0)
    lexicon = None if filter.exact else ["a", "at", "cat", "feather", "gather", "table", "data"]
    constraint = WordConstraint(filter, tiny_tokenizer, lexicon=lexicon)
    new = generated(
        tiny_llama_text, tiny_tokenizer, VocabFilterProcessor(constraint), PROMPTS, **options
    )
    copies = len(new) // len(PROMPTS)
    for row, tokens in enumerate(new.tolist()):
        state = constraint.begin(tiny_tokenizer(PROMPTS[row // copies])["input_ids"])
        for token in tokens:
            if not state.finished:
                assert state.allows(token)
                state = state.advance(token)
        # A text cut by max_new_tokens may end inside a word; all before it are whole.
        text = tiny_tokenizer.decode(tokens, skip_special_tokens=True)
        whole = Spelling().words(text)[1 : None if state.complete else -1]
        assert all(filter(word) for word in whole), text


def test_the_incremental_mask_is_that_of_the_state_read_anew(tiny_tokenizer):
    constraint = WordConstraint(Length(2, 5), tiny_tokenizer)
    processor = VocabFilterProcessor(constraint)
    generator = torch.Generator().manual_seed(1)
    ids = torch.tensor([tiny_tokenizer("the cat ")["input_ids"]] * 3)
    start = ids.shape[1]
    for _ in range(12):
        scores = torch.randn(3, len(tiny_tokenizer), generator=generator)
        filtered = processor(ids, scores)
        for row, kept in zip(ids.tolist(), filtered, strict=True):
            state = constraint.begin(row[:start])
            for token in row[start:]:
                state = state.advance(token) if not state.finished else state
            if not state.finished:
                assert torch.equal(kept.isfinite(), state.mask())
        choice = torch.multinomial(filtered.softmax(-1), 1, generator=generator)
        ids = torch.cat([ids, choice], dim=1)[torch.tensor([1, 0, 2])]


def test_several_tokens_at_once_and_steps_back_find_the_same_states(tiny_tokenizer):
    constraint = WordConstraint(WithoutLetters("e"), tiny_tokenizer)
    ids = tiny_tokenizer("cat dog mat fog lamb", return_tensors="pt")["input_ids"]
    scores = torch.zeros(1, len(tiny_tokenizer))
    processor = VocabFilterProcessor(constraint)
    lengths = [2, 3, 6, 4, 5, 7]
    jumping = [processor(ids[:, :length], scores) for length in lengths]
    for length, filtered in zip(lengths, jumping, strict=True):
        cold = VocabFilterProcessor(constraint, prompt_length=2)(ids[:, :length], scores)
        assert torch.equal(cold, filtered)


def test_where_no_token_survives_the_error_names_the_filter_or_the_text_ends():
    logits = torch.zeros(1, len(PIECES))
    logits[0, EOS] = -math.inf
    logits[0, 4:] = -math.inf
    ids = torch.tensor([[4]])
    lexicon = ["dog"]  # none of its letters is in the vocabulary, and a space is masked by others
    with pytest.raises(ConstraintError, match=r"Length\(minimum=3"):
        VocabFilterProcessor(Length(3), PIECES, lexicon=lexicon, eos=[EOS])(ids, logits)
    ended = VocabFilterProcessor(Length(3), PIECES, lexicon=lexicon, eos=[EOS], when_empty="end")(
        ids, logits
    )
    assert ended.argmax(-1).tolist() == [EOS]
    assert ended.isfinite().sum() == 1


def test_always_allowed_tokens_keep_their_logits():
    processor = VocabFilterProcessor(WithoutLetters("b"), PIECES, eos=[EOS], always_allow=[2])
    scores = processor(torch.tensor([[1]]), torch.zeros(1, len(PIECES)))
    assert scores.isfinite()[0].tolist() == [True, True, True, True, True, True, False, False]


def test_logits_wider_than_the_tokenizer_are_padding_and_refused():
    processor = VocabFilterProcessor(WithoutLetters("b"), PIECES, eos=[EOS])
    assert not processor(torch.tensor([[1]]), torch.zeros(1, 12))[0, 8:].isfinite().any()
    with pytest.raises(ShapeError, match="2 rows of ids"):
        processor(torch.ones(2, 1).long(), torch.zeros(1, 8))


def test_filtered_perplexity_identity(tiny_tokenizer):
    """-log p' = -log p + log kept mass; equal exactly if the mask keeps all of it."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 50, generator=generator, dtype=torch.float64).float()
    allowed = torch.rand(6, 50, generator=generator) < 0.5
    allowed[0] = True
    ids = torch.arange(6)
    allowed[ids, ids] = True
    plain = logits.log_softmax(-1)
    kept = (plain.exp() * allowed).sum(-1)
    gained = filtered_logprob(logits, allowed, ids) - plain[ids, ids]
    torch.testing.assert_close(gained, -kept.log(), atol=1e-6, rtol=0)
    assert gained[0].abs() < 1e-6
    assert (gained[1:] > 1e-3).all()


def test_token_masks_are_exact_for_letters_and_wrong_for_word_lengths(tiny_tokenizer):
    strings = vocab_strings(tiny_tokenizer)
    no_e = token_mask(tiny_tokenizer, WithoutLetters("e"))
    assert not any("e" in strings[token] for token in no_e.nonzero()[:, 0].tolist())
    word = WordConstraint(WithoutLetters("e"), tiny_tokenizer, wordless=True).initial().mask()
    ascii_only = torch.tensor([bool(string) and string.isascii() for string in strings])
    lower = torch.tensor([string == string.lower() for string in strings])
    assert torch.equal(no_e & ascii_only & lower, word & ascii_only & lower)
    short = token_mask(tiny_tokenizer, lambda string: len(string) <= 6)
    tokens = tiny_tokenizer("gathered")["input_ids"]
    assert len(tokens) > 1
    assert short[tokens].all()  # all pieces pass although the word is too long
    assert not WordConstraint(Length(1, 6), tiny_tokenizer).accepts("gathered")


@pytest.mark.model
def test_real_model_writes_without_the_letter_and_in_words_of_one_syllable(smollm2):
    model, tokenizer = smollm2
    inputs = tokenizer("My favourite thing is", return_tensors="pt")
    start = inputs["input_ids"].shape[1]
    for filter in (WithoutLetters("e"), Syllables(1) & Length(2)):
        processor = VocabFilterProcessor(filter, tokenizer)
        ids = model.generate(
            **inputs, logits_processor=[processor], max_new_tokens=16, do_sample=False
        )
        text = tokenizer.decode(ids[0, start:], skip_special_tokens=True)
        words = Spelling().words(text)
        assert len(words) > 5
        assert all(filter(word) for word in words[:-1]), text
