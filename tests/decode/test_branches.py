"""Branches against plain forward passes over whole sequences, lazy or not."""

import pytest
import torch

from tokenry.core.batch import TokenBatch
from tokenry.core.errors import InputError, ShapeError
from tokenry.decode.branches import Branch, Branches

CLOSE = {"rtol": 1e-4, "atol": 1e-4}


def ids_of(*shape, seed=0):
    return torch.randint(2, 64, shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def whole(model, row):
    return model(input_ids=torch.as_tensor(row)[None]).logits[0, -1]


def test_lazy_and_eager_branches_give_equal_logits(tiny_model):
    prompt, other = ids_of(2, 5), ids_of(2, 9, seed=1)
    branches = Branches([Branch(tiny_model, prompt), Branch(tiny_model, other)])
    text = ids_of(2, 12, seed=2)
    for step in range(12):
        branches.append(text[:, step])
        _ = branches[0].logits  # eager; the other is asked twice
        if step in (6, 11):
            for row in range(2):
                so_far = text[row, : step + 1]
                for number, start in enumerate((prompt, other)):
                    expected = whole(tiny_model, torch.cat([start[row], so_far]))
                    torch.testing.assert_close(branches[number].logits[row], expected, **CLOSE)
    assert branches[0].passes == 12
    assert (branches[1].passes, branches[1].tokens_read) == (2, 9 + 12)


def test_prompts_of_different_lengths_share_a_branch(tiny_model):
    prompts = [ids_of(9).tolist(), ids_of(4, seed=1).tolist()]
    batch = TokenBatch.from_ids(prompts, padding_side="left")
    branch = Branch(tiny_model, batch.ids, batch.attention)
    branch.append(torch.tensor([[7, 8, 9], [10, 11, 12]]))
    for row, text in enumerate(([7, 8, 9], [10, 11, 12])):
        expected = whole(tiny_model, prompts[row] + text)
        torch.testing.assert_close(branch.logits[row], expected, **CLOSE)


@pytest.mark.parametrize("read", [0, 1, 3, 5])
@pytest.mark.parametrize("back", [0, 2, 5])
def test_rollback_wherever_the_cache_is(tiny_llama, read, back):
    prompt, text = ids_of(2, 1 if read == 3 else 4), ids_of(2, 5, seed=1)
    branches = Branches([Branch(tiny_llama, prompt)])
    for step in range(5):
        branches.append(text[:, step])
        if step < read:
            _ = branches[0].logits
    branches.rollback(back)
    kept = torch.cat([prompt, text[:, : 5 - back]], 1)
    for row in range(2):
        torch.testing.assert_close(branches[0].logits[row], whole(tiny_llama, kept[row]), **CLOSE)
    branches.append(torch.tensor([3, 4]))
    expected = whole(tiny_llama, [*kept[1].tolist(), 4])
    torch.testing.assert_close(branches[0].logits[1], expected, **CLOSE)


def test_forks_copies_and_own_tokens(tiny_llama, tiny_gemma3):
    first, second = ids_of(2, 4), ids_of(2, 6, seed=1)
    branches = Branches([Branch(tiny_llama, first), Branch(tiny_gemma3, second)])
    _ = branches[0].logits
    branches.append([torch.tensor([5, 6]), torch.tensor([[7, 8, 9], [10, 11, 12]])])
    twin = branches.copy()
    branches.fork(2)
    branches.select(torch.tensor([3, 0]))
    branches.append([torch.tensor([13, 14]), torch.zeros(2, 0, dtype=torch.long)])
    expected = [whole(tiny_llama, [*first[1].tolist(), 6, 13])]
    expected.append(whole(tiny_gemma3, [*second[1].tolist(), 10, 11, 12]))
    for number in range(2):
        torch.testing.assert_close(branches[number].logits[0], expected[number], **CLOSE)
    unmoved = whole(tiny_llama, [*first[0].tolist(), 5])
    torch.testing.assert_close(twin[0].logits[0], unmoved, **CLOSE)
    twin.rollback([1, 3])
    torch.testing.assert_close(twin[1].logits[1], whole(tiny_gemma3, second[1]), **CLOSE)


def test_bad_input_is_named(tiny_llama):
    branch = Branch(tiny_llama, ids_of(2, 3))
    with pytest.raises(ShapeError, match=r"tokens must be \[2\]"):
        branch.append(torch.tensor([1]))
    with pytest.raises(InputError, match="take back 1 of 0"):
        branch.rollback(1)
    with pytest.raises(ShapeError, match="one number of rows"):
        Branches([branch, Branch(tiny_llama, ids_of(1, 3))])
    with pytest.raises(ShapeError, match="T >= 1"):
        Branch(tiny_llama, ids_of(2, 0))
    with pytest.raises(InputError, match="at least one token"):
        TokenBatch.from_ids([[1], []], padding_side="left")
