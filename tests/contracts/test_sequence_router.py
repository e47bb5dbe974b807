"""Every sequence router: yes or no for each answer, by that answer's tokens alone."""

import pytest
import torch

from role_cases import cases
from tokenry.decode.routing.base import sequence_router

EACH = pytest.mark.parametrize("made", cases(sequence_router))
B, T = 30, 6


def answers(seed=0):
    """Answers of 1 to 6 tokens, from sure ones to unsure ones."""
    generator = torch.Generator().manual_seed(seed)
    logprob = -torch.rand(B, T, generator=generator) * torch.linspace(0.01, 4, B)[:, None]
    mask = torch.arange(T) < 1 + torch.arange(B)[:, None] % T
    return logprob * mask, mask


@EACH
def test_yes_or_no_for_each_answer(made):
    logprob, mask = answers()
    asked = made()(logprob, mask)
    assert asked.shape == (B,)
    assert asked.dtype == torch.bool
    assert 0 < asked.sum() < B
    order = torch.randperm(B, generator=torch.Generator().manual_seed(1))
    assert torch.equal(made()(logprob[order], mask[order]), asked[order])


@EACH
def test_what_is_not_of_the_answer_does_not_matter(made):
    logprob, mask = answers()
    asked = made()(logprob, mask)
    for filler in (torch.nan, -1e4, -torch.inf):
        assert torch.equal(made()(torch.where(mask, logprob, filler), mask), asked)
    moved = torch.cat([torch.zeros(B, 2), logprob, torch.zeros(B, 3)], 1)
    off = torch.zeros(B, 1, dtype=torch.bool)
    wide = torch.cat([off, off, mask, off, off, off], 1)
    assert torch.equal(made()(moved, wide), asked)


@EACH
def test_a_surer_answer_is_not_asked_for_instead(made):
    logprob, mask = answers()
    surer = made()(logprob / 2, mask)
    assert not (surer & ~made()(logprob, mask)).any()


@EACH
def test_empty_and_impossible_answers_make_no_trouble(made):
    logprob, mask = answers()
    mask[0] = False
    logprob[1:3] = -torch.inf
    asked = made()(logprob, mask)
    assert asked[1:3].all()
