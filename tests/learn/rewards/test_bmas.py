"""BMAS: what one answer says of the other, both ways."""

import pytest
import torch

from tokenry.core.errors import InputError, ShapeError
from tokenry.learn.rewards.bmas import BMAS, TokenEmbedding, bmas

X = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
Y = torch.tensor([[1.0, 0.0], [0.6, 0.8], [-1.0, 0.0]])


def vectors(count, seed):
    return torch.randn(count, 5, generator=torch.Generator().manual_seed(seed)).double()


def test_the_worked_value():
    assert bmas(X, Y) == pytest.approx(0.75)  # rows 0.9, columns 0.6


def test_invariances():
    a, b = vectors(4, 0), vectors(7, 1)
    value = bmas(a, b)
    assert bmas(a, a) == pytest.approx(1.0)
    assert bmas(b, a) == pytest.approx(value)
    assert bmas(a.flip(0), b.roll(3, 0)) == pytest.approx(value)
    assert bmas(a * torch.tensor([[2.0], [0.5], [9.0], [1.0]]), b) == pytest.approx(value)
    assert bmas(torch.cat([a, a]), b) == pytest.approx(value)


def test_both_halves_count():
    gold = torch.eye(5)
    part, more = gold[:2], torch.cat([gold[:3], -gold[:1]])
    assert bmas(part, gold) == pytest.approx((1 + 2 / 5) / 2)  # says nothing wrong, leaves out
    assert bmas(more, gold[:3]) == pytest.approx((3 / 4 + 1) / 2)  # says all, and more


def test_the_same_as_a_plain_loop():
    a, b = vectors(3, 2), vectors(4, 3)
    cos = [[float(torch.cosine_similarity(x, y, dim=0)) for y in b] for x in a]
    rows = sum(map(max, cos)) / 3
    columns = sum(max(row[j] for row in cos) for j in range(4)) / 4
    assert bmas(a, b) == pytest.approx((rows + columns) / 2, abs=1e-12)


def test_the_empty_answer_gets_0_and_shapes_must_agree():
    assert bmas(X[:0], Y) == 0.0
    with pytest.raises(ShapeError, match="embeddings must be"):
        bmas(X, torch.zeros(2, 3))


def test_the_policys_own_embeddings_as_they_were(tiny_llama_text, tiny_tokenizer):
    embed = TokenEmbedding.of(tiny_llama_text, tiny_tokenizer)
    reward = BMAS(embed)
    table = tiny_llama_text.get_input_embeddings().weight
    ids = tiny_tokenizer("the cat", add_special_tokens=False)["input_ids"]
    assert torch.equal(embed("the cat"), table[ids].detach())
    golds = ["the cat", ["a dog", "the cat"], "a dog", None]
    before = reward(["x"] * 4, ["<answer>the cat</answer>"] * 4, golds)
    assert before[:2] == pytest.approx([1.0, 1.0])
    assert before[2] < 1
    assert before[3] is None
    with torch.no_grad():
        saved = table.clone()
        table.add_(1.0)
    assert reward(["x"], ["the cat"], ["a dog"]) == [before[2]]
    with torch.no_grad():
        table.copy_(saved)
    assert reward(["x"], [""], ["the cat"]) == [0.0]
    centred = TokenEmbedding.of(tiny_llama_text, tiny_tokenizer, center=True)
    torch.testing.assert_close(centred.table.mean(0), torch.zeros(table.shape[1]))
    with pytest.raises(InputError, match="no tokens to compare with"):
        reward(["x"], ["the cat"], [""])
