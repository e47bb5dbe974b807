"""Every reducer: a reduction to the budget, of every row by itself, that keeps what counts."""

import pytest
import torch

from role_cases import cases
from tokenry.core.errors import TokenryError
from tokenry.model.reduction.base import reducer

EACH = pytest.mark.parametrize("made", cases(reducer))
N, D = 9, 5


def problem(rows=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, N, D, generator=generator), torch.rand(rows, N, generator=generator)


@EACH
@pytest.mark.parametrize("budget", [1, 4, N - 1])
def test_it_keeps_to_the_budget(made, budget):
    tokens, scores = problem()
    reduction = made()(tokens, scores, budget)
    reduced = reduction.apply(tokens)
    assert reduced.shape == (3, budget, D)
    assert torch.isfinite(reduced).all()
    assert reduction.length == N
    assert reduction.sizes.shape == (3, budget)
    assert (reduction.sizes >= 1 - 1e-6).all()
    assert reduction.sizes.sum(-1).max() <= N + 1e-4
    assert reduction.expand(reduced).shape == tokens.shape
    torch.testing.assert_close(reduction.matrix() @ tokens, reduced)


@EACH
def test_places_rise_and_are_those_of_tokens(made):
    tokens, scores = problem()
    places = made()(tokens, scores, 4).positions()
    assert (places.diff(dim=-1) >= 0).all()
    assert places.min() >= 0
    assert places.max() < N


@EACH
def test_a_whole_budget_changes_nothing(made):
    tokens, scores = problem()
    reduction = made()(tokens, scores, N)
    torch.testing.assert_close(reduction.apply(tokens), tokens)
    torch.testing.assert_close(reduction.expand(tokens), tokens)


@EACH
def test_the_token_that_counts_most_has_its_share(made):
    tokens, scores = problem()
    best = scores.argmax(-1)
    for budget in (1, 3):
        matrix = made()(tokens, scores, budget).matrix()
        assert (matrix[torch.arange(3), :, best].sum(-1) > 0).all()


@EACH
def test_a_row_is_reduced_by_itself(made):
    tokens, scores = problem()
    together = made()(tokens, scores, 4).apply(tokens)
    for row in range(3):
        alone = made()(tokens[row], scores[row], 4)
        torch.testing.assert_close(alone.apply(tokens[row]), together[row])


@EACH
def test_impossible_budgets_and_shapes_are_refused(made):
    tokens, scores = problem()
    for budget in (0, N + 1):
        with pytest.raises(TokenryError):
            made()(tokens, scores, budget)
    with pytest.raises(TokenryError):
        made()(tokens, scores[:, :-1], 4)
