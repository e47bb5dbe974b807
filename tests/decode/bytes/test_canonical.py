"""The rules of canonical encodings against the tokenizers themselves."""

import random

import numpy as np
import pytest

from tokenry.core.errors import InputError, VocabularyError
from tokenry.decode.bytes import cover_encodings, is_canonical
from tokenry.decode.bytes.canonical import canonical
from tokenry.decode.bytes.merges import MergeTable

TEXT = (
    "def f(x):\n    return x12345  y naïve 東京🙂 \n\n\nIt's we'll don't  'tis \t\n  end. ''s x'r "
    "'l <h1> !?\n   \n" + "\n" * 40 + "tail 　x\r\n ======="
)
REAL = pytest.mark.parametrize(
    "loaded", [pytest.param(name, marks=pytest.mark.model) for name in ("smollm2", "gemma3")]
)


def encode(tokenizer, text):
    options = {"add_special_tokens": False, "split_special_tokens": True}
    return tokenizer(text, **options)["input_ids"]


@pytest.fixture
def tokenizer(loaded, request):
    return request.getfixturevalue(loaded).tokenizer


@REAL
def test_a_tokenizers_own_encoding_is_canonical(tokenizer):
    ids = encode(tokenizer, TEXT)
    assert is_canonical(tokenizer, ids)
    again = [*ids[:5], *encode(tokenizer, "ab"[:1]), *encode(tokenizer, "b")]
    assert is_canonical(tokenizer, again) == (again == encode(tokenizer, tokenizer.decode(again)))


@REAL
def test_random_walks_through_what_is_viable_are_encodings(tokenizer):
    rules = canonical(tokenizer)
    pool, choice = encode(tokenizer, TEXT), random.Random(0)
    judged = {True: 0, False: 0}
    for _ in range(150):
        context, ids = (), []
        for _ in range(6):
            allowed = rules.viable(context)
            usual = [token for token in choice.choices(pool, k=30) if allowed[token]]
            rare = np.flatnonzero(allowed)
            token = usual[0] if usual and choice.random() < 0.7 else int(choice.choice(rare))
            ids, context = [*ids, token], rules.advance(context, token)
        data = b"".join(rules.vocabulary.pieces[token] for token in ids)
        try:
            own = encode(tokenizer, data.decode()) == ids
        except UnicodeDecodeError:
            own = False
        assert rules.complete(context) == own, ids
        judged[own] += 1
    assert judged[True] > 50


@REAL
def test_pairs_are_broken_up_as_the_tokenizer_does(tokenizer):
    table = canonical(tokenizer).merges
    model = tokenizer.backend_tokenizer.model
    pieces = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    choice, known = random.Random(0), np.flatnonzero(table.own).tolist()
    short = [token for token in known if len(pieces[token]) < 4]
    for _ in range(60):
        left = choice.choice(choice.choice([known, short]))
        broken = np.flatnonzero(~table.follows(left) & table.own).tolist() or known
        for right in [*choice.choices(short, k=10), *choice.choices(broken, k=10)]:
            ids = [token.id for token in model.tokenize(pieces[left] + pieces[right])]
            assert (ids == [left, right]) == table.follows(left)[right]


def test_equal_letters_merge_from_the_left(make_byte_level):
    tokenizer = make_byte_level(["a"], ["a a", "aa aa"], regex=False)
    a, two, four = tokenizer.convert_tokens_to_ids(["a", "aa", "aaaa"])
    canonical_ones = [[a], [two], [two, a], [four], [four, a], [four, two], [four, two, a]]
    for ids in canonical_ones:
        assert is_canonical(tokenizer, ids), ids
    for ids in ([a, a], [a, two], [two, two], [two, a, a], [two, four], [a, four]):
        assert not is_canonical(tokenizer, ids), ids


def test_covers_stick_out_by_one_token_at_most(words):
    ids = words.convert_tokens_to_ids
    found = cover_encodings(words, "a'")
    assert ids(["a", "'"]) in found
    assert ids(["a", "'s"]) in found
    assert not any(len(cover) == 1 for cover in found)
    assert cover_encodings(words, "") == [[]]
    assert cover_encodings(words, b"\xff") == []


def test_a_space_before_a_break_is_viable_but_not_complete(words):
    """What follows decides: "a␣⏎" is [a, ␣⏎], but "a␣⏎s" is [a, ␣, ⏎, s]."""
    ids = words.convert_tokens_to_ids(["a", "Ġ", "Ċ"])
    assert ids in cover_encodings(words, "a \n")
    assert not is_canonical(words, ids)
    assert is_canonical(words, [*ids, *words.convert_tokens_to_ids(["s"])])


def test_a_border_that_a_later_text_can_move_does_not_end_the_context(make_byte_level):
    """ "'l" is cut in two, "'ll" is not: behind the first l the quote still matters."""
    tokenizer = make_byte_level(["l", "'"], ["' l"])
    quote, letter, both = tokenizer.convert_tokens_to_ids(["'", "l", "'l"])
    assert encode(tokenizer, "'l") == [quote, letter]
    assert encode(tokenizer, "'ll") == [both, letter]
    assert is_canonical(tokenizer, [quote, letter])
    assert not is_canonical(tokenizer, [quote, letter, letter])
    assert is_canonical(tokenizer, [both, letter])
    assert not is_canonical(tokenizer, [both])


def test_added_texts_are_cut_out_first(fallback):
    def ids(*pieces):
        return fallback.convert_tokens_to_ids(list(pieces))

    assert is_canonical(fallback, ids("\n\n\n", "\n"))
    assert not is_canonical(fallback, ids("\n", "\n"))
    assert not is_canonical(fallback, ids("\n\n", "\n"))
    assert is_canonical(fallback, ids("a", "<b>", "b"))
    assert not is_canonical(fallback, ids("<0x3C>", "b", "<0x3E>"))
    assert not is_canonical(fallback, ids("<0x61>"))  # the letter a is in the vocabulary
    assert is_canonical(fallback, ids("<0xC3>", "<0xA8>"))
    assert not is_canonical(fallback, ids("<0xC3>", "<0xA9>"))


def test_a_character_of_four_byte_tokens_is_known_by_its_first_byte(fallback_alone):
    """The fourth byte is judged by the three before it, in a context of no more tokens."""
    ids = fallback_alone.convert_tokens_to_ids(["<0xF0>", "<0x9F>", "<0x99>", "<0x82>"])
    assert encode(fallback_alone, "🙂") == ids
    for text in ("🙂", "ab🙂", "🙂🙂a"):
        assert is_canonical(fallback_alone, encode(fallback_alone, text))
    assert not is_canonical(fallback_alone, ids[:3])
    assert not is_canonical(fallback_alone, [*ids[:3], ids[0]])
    assert not is_canonical(fallback_alone, ids[1:])


def test_an_added_text_is_known_by_its_beginning_however_long(long_added):
    """Seven tokens spell it: the last is judged by all six before it."""
    pieces = ["<0x3C>", "b", "b", "b", "b", "b", "<0x3E>"]
    ids = long_added.convert_tokens_to_ids(pieces)
    assert encode(long_added, "<bbbbb>") == long_added.convert_tokens_to_ids(["<bbbbb>"])
    assert not is_canonical(long_added, ids)
    assert not is_canonical(long_added, [*long_added.convert_tokens_to_ids(["a"]), *ids])
    assert is_canonical(long_added, ids[:6])
    assert is_canonical(long_added, [*ids[:5], ids[6]])  # one b too few: no added text


ALPHABETS = {
    "words": "asl'  \n1",
    "characters": "a éÀ\u2000\u2029\u3000\u3029",
    "fallback": "ab é<>\n\n",
    "fallback_alone": "ab é🙂",
    "long_added": "ab<bbbb>",
}


@pytest.mark.parametrize("name", ALPHABETS)
def test_of_all_spellings_of_a_text_its_own_encoding_alone_is_canonical(name, request):
    tokenizer = request.getfixturevalue(name)
    rules, choice = canonical(tokenizer), random.Random(0)
    others = 0
    for _ in range(250):
        text = "".join(choice.choices(ALPHABETS[name], k=choice.randint(1, 9)))
        own, data = encode(tokenizer, text), text.encode()
        assert is_canonical(tokenizer, own), (text, own)
        # another way to spell the same bytes, from left to right
        ids, done = [], 0
        while done < len(data):
            pieces = [*rules.spelling_starts(data[done:] + b"\xff")]
            if not pieces:
                break
            ids.append(choice.choice(pieces))
            done += len(rules.vocabulary.pieces[ids[-1]])
        if done == len(data):
            others += ids != own
            assert is_canonical(tokenizer, ids) == (ids == own), (text, ids, own)
    assert others > 50


def test_other_tokenizers_are_refused(words):
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0), ("▁", -2.0)], unk_id=0))
    backend.decoder = decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    with pytest.raises(VocabularyError, match="need a BPE tokenizer, this one is Unigram"):
        MergeTable(tokenizer, len(tokenizer))
    with pytest.raises(InputError, match="not in the vocabulary"):
        is_canonical(words, [9999])
