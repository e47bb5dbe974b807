"""Draws without replacement against the probabilities of all orders (Plackett-Luce)."""

import itertools
import math
from collections import Counter

import pytest
import torch

from tokenry.decode.samplers import survivors as module
from tokenry.decode.samplers.survivors import draw_survivors

RUNS = 6_000
# Hoeffding: each of the 24 frequencies is off by more than this with probability 2e-8
TOLERANCE = math.sqrt(math.log(2 / 2e-8) / (2 * RUNS))


@pytest.mark.parametrize("first_draws", [1, 16])
def test_orders_have_plackett_luce_probabilities(monkeypatch, first_draws):
    monkeypatch.setattr(module, "FIRST_DRAWS", first_draws)  # 1: nearly all come from refills
    probs = [0.6, 0.25, 0.1, 0.05]
    rows = draw_survivors(torch.tensor(probs).log().expand(RUNS, 4), seeded())
    orders = Counter(tuple(walk(row)) for row in rows)
    for order in itertools.permutations(range(4)):
        exact, left = 1.0, 1.0
        for token in order:
            exact *= probs[token] / left
            left -= probs[token]
        assert abs(orders[order] / RUNS - exact) < TOLERANCE


def test_draws_do_not_change_the_callers_tensor():
    logprobs = torch.randn(3, 100, generator=seeded()).log_softmax(-1)
    kept = logprobs.clone()
    for row in draw_survivors(logprobs, seeded()):
        assert sorted(walk(row)) == list(range(100))
    assert torch.equal(logprobs, kept)


def test_the_mass_left_is_exact_to_the_end():
    probs = torch.logspace(0, -25, 60, base=10, dtype=torch.float64)
    probs /= probs.sum()
    (row,) = draw_survivors(probs.log()[None], seeded())
    left = set(range(60))
    while (token := row.draw()) is not None:
        assert math.isclose(row.mass, math.fsum(probs[list(left)].tolist()), rel_tol=1e-8)
        row.ban(token)
        left.remove(token)
    assert row.mass == 0.0
    assert not left


def test_tokens_without_mass_are_never_drawn():
    logprobs = torch.tensor([-math.inf, 0.0, -math.inf, -1.0, -math.inf])
    for row in draw_survivors(logprobs.expand(200, 5), seeded()):
        assert sorted(walk(row)) == [1, 3]
    (empty,) = draw_survivors(torch.full((1, 5), -math.inf), seeded())
    assert empty.draw() is None


def test_keep_leaves_the_masked_tokens():
    (row,) = draw_survivors(torch.tensor([[0.1, 0.2, 0.3, 0.4]]).log(), seeded())
    row.ban(1)
    mass = row.keep(torch.tensor([True, True, False, True]))
    assert math.isclose(mass, 0.5, rel_tol=1e-6)
    assert sorted(walk(row)) == [0, 3]


def test_repeats_are_geometric():
    (row,) = draw_survivors(torch.zeros(1, 3), seeded())
    counts = Counter(row.repeats(0.3) for _ in range(RUNS))
    for failures in range(4):
        assert abs(counts[failures] / RUNS - 0.3 * 0.7**failures) < TOLERANCE
    assert row.repeats(1.0) == 0


def walk(row):
    while (token := row.draw()) is not None:
        row.ban(token)
        yield token


def seeded():
    return torch.Generator().manual_seed(0)
