"""Toy tokenizers of the families that are understood, and scorers of toy language models."""

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tokenry.decode.bytes import Passes

END = "<end>"


def fast(backend, vocabulary):
    backend.add_special_tokens([END])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=END)
    assert len(tokenizer) == len(vocabulary)
    return tokenizer


def bpe(symbols, merges, **options):
    """A BPE model over `symbols`, whose merges are written "a b"; the end token comes first."""
    pairs = [tuple(merge.split(" ")) for merge in merges]
    pieces = dict.fromkeys([END, *symbols, *map("".join, pairs)])
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    return models.BPE(vocab=vocabulary, merges=pairs, **options), vocabulary


def byte_level(symbols, merges, regex=True):
    model, vocabulary = bpe(symbols, merges)
    backend = Tokenizer(model)
    if regex:
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return fast(backend, vocabulary)


def sentence_piece(symbols, merges, added=()):
    """Like Gemma's: a space is ▁, characters that are not in the vocabulary are spelled by bytes,
    and some texts are cut out before anything else."""
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    model, vocabulary = bpe(
        [*symbols, *byte_tokens, *added], merges, byte_fallback=True, fuse_unk=True
    )
    backend = Tokenizer(model)
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    backend.add_tokens([AddedToken(text, normalized=False, special=False) for text in added])
    return fast(backend, vocabulary)


class TableScorer:
    """Log-probabilities that depend on the last two tokens, drawn once."""

    def __init__(self, size, seed=0, table=None):
        generator = torch.Generator().manual_seed(seed)
        if table is None:
            one, two = (torch.randn(size + 1, size, generator=generator).double() for _ in "12")
            self.log_probs = lambda a, b: (one[a] + 0.5 * two[b]).log_softmax(-1)
        else:
            self.log_probs = table
        self.passes = Passes()

    def next_logits(self, paths, likely=0):
        self.passes = self.passes + Passes(1, len(paths))
        return [self.log_probs(([-1, *path])[-1], ([-1, -1, *path])[-2]) for path in paths]

    def logprob(self, context, ids):
        path, total = list(context), 0.0
        for token in ids:
            total += float(self.next_logits([tuple(path)])[0][token])
            path.append(token)
        return total


@pytest.fixture(scope="session")
def words():
    """Spaces, line breaks, contractions: everything that GPT-2's pattern looks ahead for."""
    return byte_level(
        ["a", "s", "l", "'", "Ġ", "Ċ", "1"],
        ["a a", "Ġ a", "a s", "' s", "Ġ Ġ", "Ċ Ċ", "Ġ Ċ", "' l", "Ġ Ġ Ġ".replace(" Ġ Ġ", " ĠĠ")],
    )


@pytest.fixture(scope="session")
def characters():
    """Characters of one, two and three bytes: letters, numbers, spaces and signs of the bytes C3,
    E2 or E3 and then 80 or A9, in tokens that cut them anywhere."""
    symbols = ["a", "Ġ", "Ã", "â", "ã", "Ģ", "©"]
    return byte_level(symbols, ["Ã ©", "a Ã©", "Ġ â", "Ģ Ģ"])


@pytest.fixture(scope="session")
def fallback_alone():
    """Byte tokens, and no added text that a context would have to remember."""
    return sentence_piece(["a", "b", "▁", "é"], ["a b", "▁ a"])


@pytest.fixture(scope="session")
def long_added():
    return sentence_piece(["a", "b", "▁"], ["a b"], added=["<bbbbb>"])


@pytest.fixture(scope="session")
def fallback():
    return sentence_piece(
        ["a", "b", "▁", "é"],
        ["a b", "▁ a", "▁ ▁", "a ▁", "▁a b", "b a"],
        added=["\n", "\n\n", "\n\n\n", "<b>"],
    )


@pytest.fixture(scope="session")
def table_scorer():
    return TableScorer


@pytest.fixture(scope="session")
def make_byte_level():
    return byte_level
