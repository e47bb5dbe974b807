"""Every token router: yes or no for each row, by that row's distribution alone."""

import pytest
import torch

from role_cases import cases
from tokenry.decode.routing.base import token_router

EACH = pytest.mark.parametrize("made", cases(token_router))


def rows(seed=0):
    """Logits [40, 9] from nearly certain to nearly even."""
    generator = torch.Generator().manual_seed(seed)
    scale = torch.linspace(0.01, 12, 40)[:, None]
    return scale * torch.randn(40, 9, generator=generator)


@EACH
def test_yes_or_no_for_each_row(made):
    logits = rows()
    before = logits.clone()
    asked = made()(logits)
    assert asked.shape == (40,)
    assert asked.dtype == torch.bool
    assert 0 < asked.sum() < 40
    assert torch.equal(logits, before)
    assert torch.equal(made()(logits), asked)


@EACH
def test_a_row_counts_for_itself(made):
    logits = rows()
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    assert torch.equal(made()(logits[order]), made()(logits)[order])
    assert torch.equal(made()(logits[7:8]), made()(logits)[7:8])
    assert made()(logits[:0]).shape == (0,)


@EACH
def test_it_looks_at_the_distribution(made):
    logits = rows().double()
    assert torch.equal(made()(logits + 3.0), made()(logits))
    padded = torch.cat([logits, torch.full((40, 3), -torch.inf)], 1)
    assert torch.equal(made()(padded), made()(logits))
    half = logits.bfloat16()
    assert torch.equal(made()(half), made()(half.float()))
