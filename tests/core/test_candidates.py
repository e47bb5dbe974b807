"""Candidates from hidden states: draws follow the softmax, log-probabilities are its own."""

import pytest
import torch

import tokenry.core.tiles as tiles
from tokenry.core.candidates import choice_logprob, fused_draws
from tokenry.core.errors import InputError, ShapeError, VocabularyError
from tokenry.core.linear_head import LinearHead


def numbers(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


HEADS = {
    "plain": LinearHead(numbers(7, 3)),
    "bias, cap and temperature": LinearHead(numbers(7, 3), numbers(7, seed=2), 2.0, 0.7),
}


@pytest.fixture(params=[1024, 3])
def tile(request, monkeypatch):
    monkeypatch.setattr(tiles, "TILE_VOCABULARY", request.param)
    monkeypatch.setattr(tiles, "TILE_TOKENS", request.param)


@pytest.mark.parametrize("name", HEADS)
def test_draws_follow_the_distribution(tile, name):
    """20,000 draws a row; false alarms < 1e-6."""
    head, hidden = HEADS[name], numbers(5, 3, seed=1)
    drawn = fused_draws(hidden, head, 20_000, torch.Generator().manual_seed(3))
    p = head.shaped(hidden @ head.weight.T + (0 if head.bias is None else head.bias)).softmax(-1)
    for row in range(5):
        share = torch.bincount(drawn[row], minlength=7) / 20_000
        assert ((share - p[row]).abs() < 6 * (p[row] * (1 - p[row]) / 20_000).sqrt()).all()


def test_draws_are_independent_and_never_impossible(tile):
    """Pairs of draws come as often as the product says."""
    head = LinearHead(torch.tensor([[0.0], [-torch.inf], [0.0], [1.0]]))
    drawn = fused_draws(torch.ones(4000, 1), head, 2, torch.Generator().manual_seed(1))
    assert not (drawn == 1).any()
    same = (drawn[:, 0] == drawn[:, 1]).double().mean().item()
    p = torch.tensor([0.0, 0.0, 1.0]).softmax(-1)
    truth = p.square().sum().item()
    assert abs(same - truth) < 6 * (truth * (1 - truth) / 4000) ** 0.5
    sure = LinearHead(torch.tensor([[-1e4], [0.0], [-1e4]]))
    assert (fused_draws(torch.ones(50, 1), sure, 3) == 1).all()


@pytest.mark.parametrize("name", HEADS)
def test_log_probabilities_and_gradients_are_those_of_the_softmax(tile, name):
    head, ids = HEADS[name], torch.tensor([[0, 6, 6], [3, 3, 1]])
    leaves = [numbers(2, 3, seed=4), head.weight.clone()]
    leaves += [] if head.bias is None else [head.bias.clone()]
    weights, results = numbers(2, 3, seed=5), []
    for plain in (True, False):
        own = [leaf.clone().requires_grad_() for leaf in leaves]
        mine = LinearHead(own[1], own[2] if len(own) > 2 else None, head.softcap, head.temperature)
        if plain:
            raw = own[0] @ own[1].T + (own[2] if len(own) > 2 else 0)
            value = mine.shaped(raw).log_softmax(-1).gather(-1, ids)
        else:
            value = choice_logprob(own[0], mine, ids)
        results.append((value, *torch.autograd.grad((value * weights).sum(), own)))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


def test_bad_input_is_refused():
    head = HEADS["plain"]
    with pytest.raises(InputError, match="count"):
        fused_draws(numbers(2, 3), head, 0)
    with pytest.raises(ShapeError):
        choice_logprob(numbers(2, 3), head, torch.zeros(2).long())
    with pytest.raises(VocabularyError, match="7"):
        choice_logprob(numbers(2, 3), head, torch.tensor([[0, 7], [0, 0]]))
    with pytest.raises(ShapeError):
        fused_draws(numbers(2, 4), head, 1)
