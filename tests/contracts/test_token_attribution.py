"""Every token attribution: one finite score for each token, and a model left as it was.

- `scorer(model, ids, position)` gives [T] scores, float32, none of them negative or infinite;
- the tokens behind the position score as if they were not there, and change nothing before them;
- the model's mode and attention function are those of before, and it has no gradients;
- `max_tokens` says how much is read at once.
"""

import copy

import pytest
import torch

from role_cases import cases
from tokenry.model.attribution.base import attribution

EACH = pytest.mark.parametrize("made", cases(attribution))


def ids_of(length, seed=0):
    return torch.randint(2, 64, (length,), generator=torch.Generator().manual_seed(seed))


@EACH
def test_scores_are_one_number_per_token(made, tiny_model):
    scorer = made()
    for length in (1, 2, 11):
        found = scorer(tiny_model, ids_of(length))
        assert found.shape == (length,)
        assert found.dtype == torch.float32
        assert torch.isfinite(found).all()
        assert (found >= 0).all()
    assert scorer.max_tokens >= 64


@EACH
def test_later_tokens_change_nothing_before_them(made, tiny_model):
    scorer = made()
    ids = ids_of(11)
    found = scorer(tiny_model, ids, 6)[:7]
    torch.testing.assert_close(found, scorer(tiny_model, ids[:7], 6), rtol=1e-3, atol=1e-4)


@EACH
def test_the_model_is_left_as_it_was(made, tiny_model):
    model = copy.deepcopy(tiny_model).train()
    implementation = model.config._attn_implementation
    made()(model, ids_of(5))
    assert model.training
    assert model.config._attn_implementation == implementation
    assert all(weight.grad is None for weight in model.parameters())


@EACH
def test_bfloat16_ranks_the_tokens_about_the_same(made, tiny_model):
    ids = ids_of(11)
    scorer = made()
    half = copy.deepcopy(tiny_model).bfloat16()
    found = torch.stack([scorer(tiny_model, ids), scorer(half, ids)])
    assert float(torch.corrcoef(found)[0, 1]) > 0.95
