from collections import Counter
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokenry.core.errors import InputError
from tokenry.text.tokenizers.stochastok import StochasTok, build_split_table, split_tokens
from tokenry.text.vocabulary import token_bytes

MERGES = ["t h", "h e", "th e", "e r", "th er", "the re", "r e"]


@pytest.fixture(scope="module")
def small():
    """256 bytes (ids 0-255), then th he the er ther there re (256-262), then </s>."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from tokenry.text.vocabulary import byte_alphabet

    alphabet = sorted(byte_alphabet(), key=lambda character: byte_alphabet()[character])
    vocabulary = {character: byte for byte, character in enumerate(alphabet)}
    for token in ("th", "he", "the", "er", "ther", "there", "re"):
        vocabulary[token] = len(vocabulary)
    merges = [tuple(merge.split()) for merge in ("t h", "h e", "th e", "e r", "th er", "r e")]
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[*merges, ("the", "re")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken("</s>", special=True)])
    backend.add_tokens([AddedToken("ererer")])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", pad_token="</s>")


def test_split_table_holds_every_cut_into_two_entries(small):
    t, h, e, r = b"ther"
    th, he, the, er, ther, there, re = range(256, 263)
    assert build_split_table(small) == {
        th: [(t, h)],
        he: [(h, e)],
        the: [(t, he), (th, e)],
        er: [(e, r)],
        ther: [(th, er), (the, r)],
        there: [(the, re), (ther, e)],
        re: [(r, e)],
    }


def test_added_tokens_are_neither_split_nor_produced(small):
    table = build_split_table(small)
    added = set(small.added_tokens_decoder)
    assert len(added) == 2
    assert not added & set(table)
    assert not added & {part for pairs in table.values() for pair in pairs for part in pair}


def test_split_table_equals_brute_force_over_all_pairs(tiny_tokenizer):
    entries = token_bytes(tiny_tokenizer)
    ids = [v for v, spelled in enumerate(entries) if spelled]
    expected = {}
    spelled = {v: entries[v] for v in ids}
    for v in ids:
        halves = [a for a in ids if spelled[v].startswith(spelled[a]) and a != v]
        pairs = {(a, b) for a in halves for b in ids if spelled[a] + spelled[b] == spelled[v]}
        if pairs:
            expected[v] = pairs
    found = build_split_table(tiny_tokenizer)
    assert {v: set(pairs) for v, pairs in found.items()} == expected


def test_ordinary_entries_are_preferred_to_the_byte_fallback():
    pieces = ["<0x61>", "<0x62>", "a", "ab", "▁", "▁a", "b"]

    class Marked:
        """A SentencePiece-like vocabulary, as far as its bytes are asked for."""

        all_special_ids = ()
        added_tokens_decoder: ClassVar = {}
        backend_tokenizer = SimpleNamespace(decoder=None)

        def __len__(self):
            return len(pieces)

        def convert_ids_to_tokens(self, ids):
            return [pieces[v] for v in ids]

        def get_vocab(self):
            return {piece: v for v, piece in enumerate(pieces)}

    tokenizer = Marked()
    assert build_split_table(tokenizer) == {3: [(2, 6)], 5: [(4, 2)]}


# a law small enough to enumerate: 1 -> (2, 3) or (4, 2); 4 -> (5, 5)
TABLE = {1: [(2, 3), (4, 2)], 4: [(5, 5)]}


def enumerate_law(ids, attempts):
    """The exact distribution after `attempts` draws of a place in the current sequence."""
    law = Counter({tuple(ids): 1.0})
    for _ in range(attempts):
        after = Counter()
        for sequence, weight in law.items():
            for place, token in enumerate(sequence):
                pairs = TABLE.get(token)
                share = weight / len(sequence)
                if pairs is None:
                    after[sequence] += share
                    continue
                for pair in pairs:
                    split = (*sequence[:place], *pair, *sequence[place + 1 :])
                    after[split] += share / len(pairs)
        law = after
    return law


@pytest.mark.parametrize(("ids", "attempts"), [([1, 1], 2), ([1, 7, 1], 3), ([4, 1, 7, 4], 4)])
def test_the_law_is_that_of_drawing_from_the_current_sequence(ids, attempts):
    """20,000 samples, six standard errors, at most 200 outcomes: false alarms < 1e-6."""
    n, generator = 20000, torch.Generator().manual_seed(7)
    p = attempts / len(ids)
    found = Counter(tuple(split_tokens(ids, TABLE, p, generator)[0]) for _ in range(n))
    law = enumerate_law(ids, attempts)
    assert len(law) < 200
    assert set(found) <= set(law)
    for sequence, probability in law.items():
        error = (probability * (1 - probability) / n) ** 0.5
        assert abs(found[sequence] / n - probability) < 6 * error + 6 / n


def test_both_splits_of_a_token_are_as_frequent():
    """10,000 splits, six standard errors: false alarm 2e-9."""
    generator = torch.Generator().manual_seed(1)
    found = Counter()
    for _ in range(10000):
        found[tuple(split_tokens([1], TABLE, 1.0, generator)[0])] += 1
    assert set(found) == {(2, 3), (4, 2)}
    assert abs(found[2, 3] - 5000) < 6 * 50


@given(st.lists(st.sampled_from([1, 4, 5, 7]), max_size=12), st.floats(0, 3), st.integers(0, 99))
def test_length_grows_by_the_successes_and_origins_are_in_order(ids, p, seed):
    expanded, origin = split_tokens(ids, TABLE, p, torch.Generator().manual_seed(seed))
    assert len(ids) <= len(expanded) <= len(ids) + int(p * len(ids) + 1e-9)
    assert origin == sorted(origin)
    assert set(origin) == set(range(len(ids)))
    assert all(
        token == ids[source]
        for token, source in zip(expanded, origin, strict=True)
        if origin.count(source) == 1
    )


def test_nothing_happens_without_attempts_or_without_splits():
    generator = torch.Generator().manual_seed(0)
    assert split_tokens([1, 4, 1], TABLE, 0.0, generator)[0] == [1, 4, 1]
    assert split_tokens([5, 7, 3], TABLE, 9.0, generator)[0] == [5, 7, 3]
    assert split_tokens([], TABLE, 1.0, generator) == ([], [])


def test_the_cap_counts_successes():
    ids = [1] * 50
    generator = torch.Generator().manual_seed(0)
    assert len(split_tokens(ids, TABLE, 1.0, generator, max_splits=3)[0]) == 53
    assert len(split_tokens(ids, TABLE, 1.0, generator, max_splits=0)[0]) == 50


def test_a_million_tokens_are_expanded_at_the_stated_rate():
    expanded, _ = split_tokens([1, 4] * 500_000, TABLE, 0.1, torch.Generator().manual_seed(0))
    assert 1_080_000 < len(expanded) <= 1_100_000


def test_wrapped_tokenizer_is_called_like_the_tokenizer(tiny_tokenizer):
    wrapped = StochasTok(p=0.5).wrap(tiny_tokenizer)
    texts = ["the cat sat there", "the theory"]
    batch = wrapped(texts, padding=True, return_tensors="pt", generator=3)
    assert batch["input_ids"].shape == batch["attention_mask"].shape
    for row, text in enumerate(texts):
        ids = batch["input_ids"][row][batch["attention_mask"][row].bool()]
        assert wrapped.decode(ids) == text
    single = wrapped(texts[0], generator=3)
    assert isinstance(single["input_ids"][0], int)
    assert len(single["input_ids"]) == len(single["attention_mask"])
    assert wrapped(texts[0], return_tensors="pt")["input_ids"].shape[0] == 1
    assert len(wrapped) == len(tiny_tokenizer)
    assert wrapped.pad_token_id == tiny_tokenizer.pad_token_id


def test_truncation_is_to_the_expanded_length(tiny_tokenizer):
    wrapped = StochasTok(p=1.0).wrap(tiny_tokenizer)
    text = "there is a theory that their father gathered feathers"
    whole = wrapped(text, generator=1)["input_ids"]
    assert wrapped(text, generator=1, truncation=True, max_length=7)["input_ids"] == whole[:7]


def test_offsets_are_refused(tiny_tokenizer):
    with pytest.raises(InputError, match="offsets"):
        StochasTok().wrap(tiny_tokenizer)("the", return_offsets_mapping=True)


def test_collator_expands_labels_and_masks_with_their_tokens(tiny_tokenizer):
    wrapped = StochasTok(p=2.0).wrap(tiny_tokenizer)
    ids = tiny_tokenizer("there is a theory that their father gathered feathers")["input_ids"]
    half = len(ids) // 2
    example = {
        "input_ids": ids,
        "labels": [-100] * half + ids[half:],
        "attention_mask": [1] * len(ids),
        "target": [False] * half + [True] * (len(ids) - half),
        "source": "a note",
    }
    [expanded] = wrapped.collator(lambda features: features)([example])
    assert len(expanded["input_ids"]) > len(ids)
    assert len({len(expanded[k]) for k in ("input_ids", "labels", "attention_mask", "target")}) == 1
    learned = [label for label in expanded["labels"] if label != -100]
    assert tiny_tokenizer.decode(learned) == tiny_tokenizer.decode(ids[half:])
    for token, label, target in zip(
        expanded["input_ids"], expanded["labels"], expanded["target"], strict=True
    ):
        assert label == (token if target else -100)
    assert example["input_ids"] == ids
    assert expanded["source"] == "a note"


def test_collator_keeps_fields_as_they_are_and_leaves_texts_alone(tiny_tokenizer):
    """Fractional weights stay fractions; a text or mapping may be as long as the ids by chance."""
    wrapped = StochasTok(p=3.0).wrap(tiny_tokenizer)
    ids = tiny_tokenizer("there is a theory")["input_ids"]
    example = {
        "input_ids": torch.tensor(ids),
        "weight": [0.25 + n for n in range(len(ids))],
        "score": torch.arange(len(ids)) / 8,
        "name": "x" * len(ids),
        "about": dict.fromkeys(range(len(ids)), "y"),
        "prompt": [1.5],
    }
    [expanded] = wrapped.collator(lambda features: features)([example])
    count = len(expanded["input_ids"])
    assert count > len(ids)
    assert [len(expanded[name]) for name in ("weight", "score")] == [count, count]
    assert set(expanded["weight"]) == set(example["weight"])
    assert set(expanded["score"]) == set(example["score"].tolist())
    assert all(expanded[name] == example[name] for name in ("name", "about", "prompt"))


def test_collator_refuses_labels_that_are_not_one_per_token(tiny_tokenizer):
    collator = StochasTok().wrap(tiny_tokenizer).collator(list)
    with pytest.raises(InputError, match="labels"):
        collator([{"input_ids": [1, 2, 3], "labels": [1, 2]}])


@pytest.mark.parametrize(
    "wrong",
    [
        {"p": -0.1},
        {"p": float("nan")},
        {"p": float("inf")},
        {"p": 1e9},
        {"max_splits": -1},
        {"max_splits": 1.5},
        {"seed": -1},
        {"seed": 2**63},
    ],
)
def test_impossible_parameters_are_refused(wrong):
    with pytest.raises(InputError):
        StochasTok(**wrong)


@pytest.mark.model
@pytest.mark.parametrize("name", ["smollm2", "gemma3"])
def test_splits_on_real_vocabularies_lose_nothing(request, name):
    tokenizer = request.getfixturevalue(name).tokenizer
    wrapped = StochasTok(p=1.0).wrap(tokenizer)
    text = "Naïve cafés in 東京 🙂 serve strawberries;\n\n    def f(x):\treturn 'their theory'  "
    ids = tokenizer(text)["input_ids"]
    for seed in range(20):
        expanded = wrapped.expand(ids, seed)
        assert len(expanded) > len(ids)
        assert tokenizer.decode(expanded) == tokenizer.decode(ids)
