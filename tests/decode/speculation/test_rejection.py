"""Recursive rejection: the next token has the target's distribution, whatever the guesses were."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2

from tokenry.core.errors import InputError, ShapeError
from tokenry.decode.speculation.rejection import (
    acceptance,
    distribution_with_proposals,
    draw_with_proposals,
    judge,
)
from tokenry.decode.speculation.tree import TokenTree


def random_distribution(size, seed, scale=1.5):
    logits = scale * torch.randn(size, generator=torch.Generator().manual_seed(seed))
    return logits.double().softmax(-1)


def without_replacement(q, tokens):
    """What each of the tokens was drawn from, [n, V], and the probability of drawing them so."""
    rows, chance = [], 1.0
    for at, token in enumerate(tokens):
        row = q.clone()
        row[list(tokens[:at])] = 0
        rows.append(row / row.sum())
        chance *= float(rows[-1][token])
    return torch.stack(rows), chance


@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize("seed", range(4))
def test_over_all_draws_the_distribution_is_the_targets(count, seed):
    p, q = random_distribution(4, seed), random_distribution(4, 100 + seed)
    distribution = torch.zeros(4, dtype=torch.float64)
    for tokens in itertools.permutations(range(4), count):
        rows, chance = without_replacement(q, tokens)
        distribution += chance * distribution_with_proposals(p, tokens, rows)[1]
    torch.testing.assert_close(distribution, p, atol=1e-12, rtol=0)


def test_over_all_draws_with_replacement_the_distribution_is_the_targets():
    p, q = random_distribution(3, 5), random_distribution(3, 6)
    distribution = torch.zeros(3, dtype=torch.float64)
    for tokens in itertools.product(range(3), repeat=2):
        chance = float(q[list(tokens)].prod())
        distribution += chance * distribution_with_proposals(p, tokens, torch.stack([q, q]))[1]
    torch.testing.assert_close(distribution, p, atol=1e-12, rtol=0)


def test_a_further_guess_may_depend_on_the_earlier_ones():
    """A second guess is made only after some first guesses, and from another distribution."""
    p, q = random_distribution(4, 7), random_distribution(4, 8)
    distribution = torch.zeros(4, dtype=torch.float64)
    for first in range(4):
        if first % 2:
            distribution += q[first] * distribution_with_proposals(p, [first], q[None])[1]
            continue
        other = random_distribution(4, 50 + first)
        for second in range(4):
            rows = torch.stack([q, other])
            distribution += (
                q[first] * other[second] * distribution_with_proposals(p, [first, second], rows)[1]
            )
    torch.testing.assert_close(distribution, p, atol=1e-12, rtol=0)


def test_dropping_a_guess_after_seeing_it_would_change_the_distribution():
    p, q = random_distribution(3, 0), random_distribution(3, 1)
    distribution = torch.zeros(3, dtype=torch.float64)
    for token in range(3):
        kept = [token] if token else []
        distribution += q[token] * distribution_with_proposals(p, kept, q[None][: len(kept)])[1]
    assert float((distribution - p).abs().max()) > 0.01


def test_one_guess_is_accepted_as_often_as_two_distributions_allow():
    p, q = random_distribution(5, 2), random_distribution(5, 3)
    accepted = sum(
        float(q[y]) * distribution_with_proposals(p, [y], q[None])[0][0] for y in range(5)
    )
    assert accepted == pytest.approx(float(torch.minimum(p, q).sum()))


def test_point_masses_are_banned():
    p = random_distribution(5, 4)
    accepted, distribution = distribution_with_proposals(
        p, [3, 1], torch.eye(5, dtype=torch.float64)[[3, 1]]
    )
    assert accepted == pytest.approx([float(p[3]), float(p[1])])
    torch.testing.assert_close(distribution, p)


DRAWS = 2_500
FALSE_ALARM = 1e-7  # of each chi-square test


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_draws_follow_the_distribution_and_equal_a_guess_when_it_is_accepted(dtype):
    p = random_distribution(6, 10)
    q = 0.6 * p + 0.4 * random_distribution(6, 11)
    tokens = (q - p).topk(3).indices.tolist()  # often rejected
    rows, _ = without_replacement(q, tokens)
    accepted, distribution = distribution_with_proposals(p, tokens, rows)
    assert 0.1 < sum(accepted) < 0.9
    for token, chance in zip(tokens, accepted, strict=True):
        assert float(distribution[token]) == pytest.approx(
            chance
        )  # the bonus token is never a guess
    generator = torch.Generator().manual_seed(0)
    seen = torch.zeros(6, dtype=torch.float64)
    for _ in range(DRAWS):
        seen[draw_with_proposals(p.to(dtype), tokens, rows.to(dtype), generator)] += 1
    possible = distribution > 1e-9
    assert not seen[~possible].any()
    expected = DRAWS * distribution[possible]
    statistic = float(((seen[possible] - expected) ** 2 / expected).sum())
    assert statistic < chi2.isf(FALSE_ALARM, int(possible.sum()) - 1)


def test_draws_of_guesses_and_of_the_next_token_together_follow_the_target():
    p, q = random_distribution(5, 12), random_distribution(5, 13)
    generator = torch.Generator().manual_seed(1)
    seen = torch.zeros(5, dtype=torch.float64)
    for _ in range(DRAWS):
        tokens = torch.multinomial(q, 2, generator=generator).tolist()
        rows, _ = without_replacement(q, tokens)
        seen[draw_with_proposals(p, tokens, rows, generator)] += 1
    statistic = float(((seen - DRAWS * p) ** 2 / (DRAWS * p)).sum())
    assert statistic < chi2.isf(FALSE_ALARM, 4)


def test_a_forbidden_guess_is_never_taken():
    p = torch.tensor([0.0, 0.6, 0.4])
    rows = torch.tensor([[1e-30, 0.6, 0.4]])
    generator = torch.Generator().manual_seed(2)
    assert all(draw_with_proposals(p, [0], rows, generator) > 0 for _ in range(200))
    accepted, distribution = distribution_with_proposals(p, [0], rows)
    assert accepted == [0.0]
    torch.testing.assert_close(distribution.float(), p)


def test_where_the_difference_rounds_to_nothing_the_guess_is_banned():
    met = 0
    for seed in range(50):
        target = random_distribution(4, seed)
        target /= target.sum()
        above = target.clone()
        above[2] = torch.nextafter(above[2], above[2] * 2)
        accept, rest = judge(target, 2, above)
        if accept < 1:
            met += 1
            assert accept > 1 - 1e-12
            assert rest[2] == 0
            assert float(rest.sum()) == pytest.approx(1)
    assert met


def test_a_guess_that_was_not_drawn_from_its_row_is_passed_over():
    p = random_distribution(4, 14)
    for row in (torch.zeros(4), torch.tensor([1.0, 0, 0, 0])):
        accepted, distribution = distribution_with_proposals(p, [2], row[None])
        assert accepted == [0.0]
        torch.testing.assert_close(distribution, p)


def test_rows_need_not_sum_to_one():
    p, q = random_distribution(4, 15), random_distribution(4, 16)
    ours = distribution_with_proposals(2 * p, [1], 3 * q[None])[1]
    torch.testing.assert_close(ours, distribution_with_proposals(p, [1], q[None])[1])


@given(st.integers(0, 10_000), st.integers(1, 6))
def test_distributions_sum_to_one_with_the_guesses_chances_in_them(seed, count):
    p, q = random_distribution(6, seed, 4.0), random_distribution(6, seed + 1, 4.0)
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.multinomial(q, count, generator=generator).tolist()
    accepted, distribution = distribution_with_proposals(
        p, tokens, without_replacement(q, tokens)[0]
    )
    assert float(distribution.min()) >= 0
    assert float(distribution.sum()) == pytest.approx(1)
    assert float(distribution[tokens].sum()) == pytest.approx(sum(accepted), abs=1e-9)


def test_acceptance_multiplies_along_the_paths():
    probs = torch.stack([random_distribution(4, seed) for seed in range(4)])
    plain = TokenTree((0, 2, 1, 3), (-1, 0, 0, 1))
    a, b = float(probs[0, 2]), float(probs[0, 1])
    assert acceptance(plain, probs) == pytest.approx([1, a, b, a * float(probs[1, 3])])
    q = torch.stack([random_distribution(4, 20 + seed) for seed in range(4)])
    q[2] = q[1]
    q[2, 2] = 0
    drawn = TokenTree((0, 2, 1, 3), (-1, 0, 0, 1), proposals=q)
    first, second = distribution_with_proposals(probs[0], [2, 1], q[1:3])[0]
    third = distribution_with_proposals(probs[1], [3], q[3:])[0][0]
    assert acceptance(drawn, probs) == pytest.approx([1, first, second, first * third])


def test_of_two_equal_guesses_only_the_first_can_be_accepted():
    probs = torch.stack([random_distribution(4, 0)] * 3)
    found = acceptance(TokenTree((0, 2, 2), (-1, 0, 0)), probs)
    assert found[1] == pytest.approx(float(probs[0, 2]))
    assert found[2] == 0


def test_impossible_input_is_named():
    p = random_distribution(4, 0)
    with pytest.raises(ShapeError, match=r"\[4\] and \[1, 3\] for 1"):
        draw_with_proposals(p, [1], torch.ones(1, 3))
    with pytest.raises(ShapeError, match="for 2"):
        draw_with_proposals(p, [1, 2], torch.ones(1, 4))
    with pytest.raises(InputError, match="sum to 0"):
        draw_with_proposals(torch.zeros(4), [1], p[None])
    with pytest.raises(InputError, match="values from -1"):
        draw_with_proposals(torch.tensor([-1.0, 2, 1, 1]), [1], p[None])
