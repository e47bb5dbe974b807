"""Tilting and best-of-n against enumeration, simulation and the identities that tie them."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokenry.core.errors import InputError, ShapeError
from tokenry.core.tilting import (
    alpha_for_kl,
    best_of_n_and_tilt,
    best_of_n_distribution,
    best_of_n_kl_bound,
    binomial_alignment,
    kl_divergence,
    log_partition,
    memoryless_alignment,
    tilt,
    types,
)

COIN = torch.tensor([0.5, 0.5], dtype=torch.float64).log()
HEADS = torch.tensor([0.0, 1.0])


def source(seed, outcomes=6, levels=None):
    generator = torch.Generator().manual_seed(seed)
    logprob = torch.randn(outcomes, generator=generator, dtype=torch.float64).log_softmax(-1)
    if levels:
        return logprob, torch.randint(levels, (outcomes,), generator=generator).double()
    return logprob, torch.randn(outcomes, generator=generator, dtype=torch.float64)


def test_the_best_of_two_coin_tosses_by_hand():
    best = best_of_n_distribution(COIN, HEADS, 2)
    torch.testing.assert_close(best.exp(), torch.tensor([0.25, 0.75], dtype=torch.float64))
    assert float(kl_divergence(best, COIN)) == pytest.approx(0.130812, abs=1e-6)
    assert best_of_n_kl_bound(2) == pytest.approx(0.193147, abs=1e-6)
    assert best_of_n_kl_bound(4) == pytest.approx(0.636294, abs=1e-6)


@given(st.floats(-30, 30))
def test_the_tilt_of_a_coin_is_a_sigmoid(alpha):
    expected = torch.sigmoid(torch.tensor(alpha, dtype=torch.float64))
    torch.testing.assert_close(tilt(COIN, HEADS, alpha).exp()[1], expected)


def test_best_of_two_tosses_is_the_tilt_of_the_same_kl():
    best = best_of_n_distribution(COIN, HEADS, 2)
    alpha = alpha_for_kl(COIN, HEADS, float(kl_divergence(best, COIN)))
    assert float(alpha) == pytest.approx(math.log(3), abs=1e-9)
    torch.testing.assert_close(tilt(COIN, HEADS, alpha), best)


@given(st.integers(0, 10_000), st.floats(0.05, 3))
def test_divergence_to_the_tilt_is_what_is_missing_in_reward_and_kl(seed, alpha):
    logprob, reward = source(seed)
    other, _ = source(seed + 1)
    tilted = tilt(logprob, reward, alpha)
    missing = alpha * float(((tilted.exp() - other.exp()) * reward).sum())
    excess = float(kl_divergence(other, logprob) - kl_divergence(tilted, logprob))
    assert float(kl_divergence(other, tilted)) == pytest.approx(excess + missing, abs=1e-10)


def test_nothing_within_the_same_kl_has_a_higher_reward():
    logprob, reward = source(3)
    tilted = tilt(logprob, reward, 0.8)
    budget = kl_divergence(tilted, logprob)
    top = (tilted.exp() * reward).sum()
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(10_000, len(logprob), generator=generator, dtype=torch.float64)
    other = (tilted + torch.rand(10_000, 1, generator=generator).double() * noise).log_softmax(-1)
    inside = kl_divergence(other, logprob) <= budget
    assert int(inside.sum()) > 1000
    rewards = (other[inside].exp() * reward).sum(-1)
    assert (rewards <= top + 1e-12).all()
    assert float(top - rewards.max()) < 0.05  # the search came near


@given(st.integers(0, 10_000), st.floats(0.1, 3))
def test_derivatives_of_the_log_partition_are_the_tilts_mean_and_variance(seed, alpha):
    logprob, reward = source(seed)
    at = torch.tensor(alpha, dtype=torch.float64, requires_grad=True)
    value = log_partition(logprob, reward, at)
    (first,) = torch.autograd.grad(value, at, create_graph=True)
    (second,) = torch.autograd.grad(first, at)
    probs = tilt(logprob, reward, alpha).exp()
    mean = float((probs * reward).sum())
    assert float(first.detach()) == pytest.approx(mean, abs=1e-10)
    assert float(second) == pytest.approx(float((probs * (reward - mean) ** 2).sum()), abs=1e-10)
    kl = float(kl_divergence(tilt(logprob, reward, alpha), logprob))
    assert kl == pytest.approx(alpha * mean - float(value.detach()), abs=1e-10)


def test_alpha_grows_with_kl_from_zero_and_is_found_for_every_row():
    logprob, reward = (torch.stack(x) for x in zip(source(0), source(1), strict=True))
    deltas = [0.0, 1e-6, 0.01, 0.1, 0.3]
    found = [alpha_for_kl(logprob, reward, delta) for delta in deltas]
    assert (found[0] == 0).all()
    assert all((a < b).all() for a, b in itertools.pairwise(found))
    for delta, alpha in zip(deltas, found, strict=True):
        reached = kl_divergence(tilt(logprob, reward, alpha), logprob)
        torch.testing.assert_close(reached, torch.full_like(reached, delta), rtol=1e-8, atol=1e-14)
    assert (found[1] < 0.01).all()


def test_a_kl_beyond_the_best_outcomes_is_refused():
    with pytest.raises(InputError, match=r"0\.693"):
        alpha_for_kl(COIN, HEADS, 0.7)
    with pytest.raises(InputError):  # a constant reward has no tilt but p itself
        alpha_for_kl(COIN, torch.ones(2), 0.1)
    assert float(alpha_for_kl(COIN, torch.ones(2), 0.0)) == 0


@given(st.integers(0, 10_000), st.integers(1, 40), st.sampled_from([None, 3]))
def test_best_of_n_sums_to_one_and_keeps_within_its_bound(seed, n, levels):
    logprob, reward = source(seed, levels=levels)
    best = best_of_n_distribution(logprob, reward, n)
    assert float(best.exp().sum()) == pytest.approx(1, abs=1e-12)
    assert float(kl_divergence(best, logprob)) <= best_of_n_kl_bound(n) + 1e-12


@pytest.mark.parametrize("levels", [None, 3])
@pytest.mark.parametrize("n", [1, 2, 3])
def test_best_of_n_is_the_enumeration_of_all_draws(levels, n):
    logprob, reward = source(7, outcomes=5, levels=levels)
    expected = torch.zeros(5, dtype=torch.float64)
    for draws in itertools.product(range(5), repeat=n):
        chance = math.exp(sum(float(logprob[y]) for y in draws))
        best = [y for y in draws if reward[y] == max(float(reward[z]) for z in draws)]
        for y in best:
            expected[y] += chance / len(best)
    torch.testing.assert_close(best_of_n_distribution(logprob, reward, n).exp(), expected)


def test_best_of_n_by_simulation():
    logprob, reward = source(11, outcomes=8, levels=4)
    generator = torch.Generator().manual_seed(0)
    draws = torch.multinomial(logprob.exp(), 5 * 40_000, replacement=True, generator=generator)
    draws = draws.view(-1, 5)
    best = draws.gather(1, reward[draws].argmax(1, keepdim=True))  # the first of the best draws
    found = torch.bincount(best[:, 0], minlength=8) / len(best)
    exact = best_of_n_distribution(logprob, reward, 5).exp()
    assert (found - exact).abs().max() < 0.012  # five standard errors


def test_best_of_n_beside_the_tilt_of_its_kl():
    """Two tosses of a fair coin: (1/4, 3/4) is itself a tilt; with a third outcome it is none."""
    coin, reward = torch.tensor([0.5, 0.5]).double().log(), torch.tensor([0.0, 1.0]).double()
    kl, best, tilted = best_of_n_and_tilt(coin, reward, 2)
    assert float(kl) == pytest.approx(0.25 * math.log(0.5) + 0.75 * math.log(1.5))
    assert float(best) == pytest.approx(0.75)
    assert float(tilted) == pytest.approx(0.75)
    base, worth = torch.full((2, 3), 1 / 3).double().log(), torch.tensor([[0.0, 1.0, 5.0]] * 2)
    kl, best, tilted = best_of_n_and_tilt(base, worth.double(), 2)
    assert best.tolist() == pytest.approx([(3 * 1 + 5 * 5) / 9] * 2)
    alpha = alpha_for_kl(base, worth.double(), kl)
    assert tilted.tolist() == pytest.approx(
        (tilt(base, worth.double(), alpha).exp() * worth).sum(-1).tolist()
    )
    assert (tilted > best + 1e-3).all()


def test_equal_rewards_or_one_draw_leave_the_base():
    logprob, reward = source(5)
    torch.testing.assert_close(best_of_n_distribution(logprob, reward, 1), logprob)
    torch.testing.assert_close(best_of_n_distribution(logprob, torch.ones(6), 1e9), logprob)


def test_astronomical_n_leaves_the_best_outcomes_only():
    logprob = torch.tensor([[0.0, 0.5, 0.5, 0.0], [0.1, 0.2, 0.3, 0.4]]).log()
    reward = torch.tensor([[1.0, 0, 0, 2], [1, 1, 2, 2]])
    best = best_of_n_distribution(logprob, reward, 1e30).exp()
    expected = torch.tensor([[0, 0.5, 0.5, 0], [0, 0, 3 / 7, 4 / 7]], dtype=torch.float64)
    torch.testing.assert_close(best, expected, rtol=1e-6, atol=1e-12)


def test_a_rare_outcome_is_found_by_as_many_draws_as_it_takes():
    """1 - (1 - 1e-20)^n for n = 1e20: F rounds to 1 in float64, its complement does not."""
    rare = torch.tensor([math.log1p(-1e-20), math.log(1e-20)], dtype=torch.float64)
    best = best_of_n_distribution(rare, HEADS, 1e20)
    assert float(best[1].exp()) == pytest.approx(1 - math.exp(-1), abs=1e-12)


def test_types_are_the_sequences_counted():
    logprob = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64).log()
    reward = torch.tensor([0.0, 1.0, 4.0])
    mass, total = types(logprob, reward, 4)
    expected: dict[float, float] = {}
    for symbols in itertools.product(range(3), repeat=4):
        value = sum(float(reward[s]) for s in symbols)
        chance = math.exp(sum(float(logprob[s]) for s in symbols))
        expected[value] = expected.get(value, 0.0) + chance
    found: dict[float, float] = {}
    for chance, value in zip(mass.exp().tolist(), total.tolist(), strict=True):
        found[value] = found.get(value, 0.0) + chance
    assert found == pytest.approx(expected)


def test_best_of_n_nears_the_tilt_of_a_coin_as_the_sequence_grows():
    lengths = (10, 20, 50, 100, 200, 300)
    found = [binomial_alignment(0.3, length, 0.1) for length in lengths]
    expected = (0.10207, 0.07026, 0.03700, 0.02174, 0.01260, 0.0091)
    assert [a.gap for a in found] == pytest.approx(expected, abs=5e-6)
    assert found[0].limit == pytest.approx(0.514629, abs=1e-6)
    for at in found:
        assert 0 < at.kl <= at.alpha * at.gap
        assert at.base_kl <= 0.1
    assert all(b.kl < a.kl for a, b in itertools.pairwise(found))


def test_three_symbols_that_are_two_in_disguise_are_the_coin():
    logprob = torch.tensor([0.7, 0.1, 0.2], dtype=torch.float64).log()
    three = memoryless_alignment(logprob, [0.0, 1.0, 1.0], 12, 0.1)
    coin = binomial_alignment(0.3, 12, 0.1)
    assert vars(three) == pytest.approx(vars(coin), abs=1e-12)


@pytest.mark.parametrize("length", [2, 7, 20])
def test_ties_are_those_of_the_rewards_and_not_of_their_rounding(length):
    """.1 + .3 and .2 + .2 are one reward, in float64 and in float32, as 1 + 3 and 2 + 2 are."""
    logprob = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64).log()
    whole = memoryless_alignment(logprob, [1, 2, 3], length, 0.2)
    for tenths in ([0.1, 0.2, 0.3], torch.tensor([0.1, 0.2, 0.3])):
        found = memoryless_alignment(logprob, tenths, length, 0.2)
        assert found.kl == pytest.approx(whole.kl, abs=1e-6)
        assert found.base_kl == pytest.approx(whole.base_kl, abs=1e-6)
        assert found.reward == pytest.approx(whole.reward / 10, abs=1e-6)
        assert found.alpha == pytest.approx(whole.alpha * 10, rel=1e-5)
    close = memoryless_alignment(logprob, [1, 2, 3 + 1e-9], length, 0.2)
    assert abs(close.base_kl - whole.base_kl) > 1e-4  # a difference that is no rounding counts


def test_half_precision_inputs_and_extreme_rewards_stay_finite():
    logprob = torch.randn(7, generator=torch.Generator().manual_seed(0)).bfloat16().log_softmax(-1)
    reward = torch.linspace(-1e4, 1e4, 7)
    for value in (tilt(logprob, reward, 3.0), best_of_n_distribution(logprob, reward, 64)):
        assert value.dtype == torch.float64
        assert float(value.exp().sum()) == pytest.approx(1)
    assert bool(log_partition(logprob, reward, 3.0).isfinite())


def test_bad_input_is_named():
    with pytest.raises(ShapeError, match="one shape"):
        tilt(COIN, torch.ones(3), 1.0)
    with pytest.raises(InputError, match="finite"):
        tilt(COIN, torch.tensor([0.0, math.inf]), 1.0)
    with pytest.raises(InputError, match=r"n is 0.5"):
        best_of_n_distribution(COIN, HEADS, 0.5)
