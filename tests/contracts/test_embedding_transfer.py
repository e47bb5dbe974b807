"""Every transfer of embeddings: shared tokens keep their rows, the others get finite ones."""

import pytest
import torch

from role_cases import cases
from tokenry.core.errors import ShapeError
from tokenry.text.tokenizers.bpe import BPE
from tokenry.text.transfer.base import embedding_transfer
from tokenry.text.vocabulary import token_bytes

EACH = pytest.mark.parametrize("made", cases(embedding_transfer))
TEXTS = ["the cat sat on the mat", "there is a theory that they gather", "naïve café, 東京 🙂"] * 3


@pytest.fixture(scope="module")
def other():
    """Other merges in another order, and a special token that the old one lacks."""
    return BPE(special=("<new>", "</s>")).train(TEXTS, 300)


@pytest.fixture(scope="module")
def table(tiny_tokenizer):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(len(tiny_tokenizer) + 8, 6, generator=generator)


@EACH
def test_shape_dtype_and_values(made, tiny_tokenizer, other, table):
    before = table.clone()
    for rows in (table, table.bfloat16()):
        found = made()(rows, tiny_tokenizer, other)
        assert found.shape == (len(other), 6)
        assert found.dtype == rows.dtype
        assert torch.isfinite(found).all()
    assert torch.equal(table, before)
    assert torch.equal(made()(table, tiny_tokenizer, other), made()(table, tiny_tokenizer, other))


@EACH
def test_tokens_of_the_same_bytes_keep_their_rows(made, tiny_tokenizer, other, table):
    found = made()(table, tiny_tokenizer, other)
    old = {piece: u for u, piece in enumerate(token_bytes(tiny_tokenizer)) if piece}
    shared = [(v, old[piece]) for v, piece in enumerate(token_bytes(other)) if piece in old]
    assert len(shared) > 256
    for v, u in shared:
        assert torch.equal(found[v], table[u])
    end = other.convert_tokens_to_ids("</s>"), tiny_tokenizer.convert_tokens_to_ids("</s>")
    assert torch.equal(found[end[0]], table[end[1]])


@EACH
def test_the_same_tokenizer_gives_the_same_table(made, tiny_tokenizer, table):
    found = made()(table, tiny_tokenizer, tiny_tokenizer)
    assert torch.equal(found, table[: len(tiny_tokenizer)])


@EACH
def test_rows_behind_the_vocabulary_do_not_matter(made, tiny_tokenizer, other, table):
    padded = torch.cat([table[: len(tiny_tokenizer)], torch.full((3, 6), torch.nan)])
    assert torch.equal(made()(padded, tiny_tokenizer, other), made()(table, tiny_tokenizer, other))


@EACH
def test_too_few_rows_are_refused(made, tiny_tokenizer, other, table):
    with pytest.raises(ShapeError, match=str(len(tiny_tokenizer))):
        made()(table[: len(tiny_tokenizer) - 1], tiny_tokenizer, other)
