"""Logits in pieces: all targets once, in order, never more than the memory."""

import pytest
import torch

from tokenry.core.batch import TokenBatch
from tokenry.core.errors import InputError
from tokenry.measure.logit_pieces import logit_pieces
from tokenry.model.score import score


@pytest.mark.parametrize("memory", [1, 4 * 64 * 2 * 3, 2**20])
def test_the_pieces_are_the_targets_in_order(tiny_llama, tiny_gemma3, memory):
    target = torch.tensor([[0, 1, 1, 0, 1], [0, 0, 1, 1, 1]]).bool()
    batch = TokenBatch(torch.arange(10).view(2, 5) + 3, torch.ones_like(target), target)
    views = [score(model, batch, needs=("hidden",)) for model in (tiny_llama, tiny_gemma3)]
    pieces = list(logit_pieces(target, views, memory))
    rows = max(1, memory // (4 * 64 * 2))
    assert [int(mask.sum()) for mask, _ in pieces] == {1: [1] * 6, 3: [3, 3]}.get(rows, [6])
    for side, view in enumerate(views):
        joined = torch.cat([logits[side] for _, logits in pieces])
        torch.testing.assert_close(joined, view.logits())
    assert torch.equal(sum(mask.int() for mask, _ in pieces), target.int())


def test_no_target_is_no_piece_and_no_memory_is_refused(tiny_llama):
    nothing = torch.zeros(1, 3, dtype=torch.bool)
    batch = TokenBatch(torch.ones(1, 3, dtype=torch.long), ~nothing, nothing)
    views = [score(tiny_llama, batch, needs=("hidden",))]
    assert not list(logit_pieces(nothing, views))
    with pytest.raises(InputError, match="memory"):
        list(logit_pieces(nothing, views, 0))
