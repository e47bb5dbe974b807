"""Normalised entropy: the worked places, what does not matter to them, and the temperature."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokenry.core.errors import InputError
from tokenry.learn.policy.normalised_entropy import (
    AdaptiveTemperature,
    EntropyRange,
    normalised_entropy,
)

T = torch.tensor
ENTROPY = T([[0.1, 0.5, 1.0, 2.0, 4.0]], dtype=torch.float64)
ALL = torch.ones(1, 5).bool()


def test_the_worked_entropies():
    place, found = normalised_entropy(ENTROPY, ALL, 0.5)
    assert place[0].tolist() == pytest.approx([-1, -0.30103, 0, 0.5, 1], abs=1e-6)
    assert [x.item() for x in found] == pytest.approx([0, math.log(4), math.log(10)])
    # the default pivot: rank round(0.8 * 4) = 3
    assert normalised_entropy(ENTROPY, ALL)[0][0, 3] == 0


@pytest.mark.parametrize(("pivot", "rank"), [(0.0, 0), (0.3, 1), (0.45, 2), (0.65, 3), (1.0, 4)])
def test_the_pivot_is_the_token_of_the_nearest_rank(pivot, rank):
    place, _ = normalised_entropy(ENTROPY[:, [3, 0, 4, 1, 2]], ALL, pivot)
    assert place[0, [1, 3, 4, 0, 2]].tolist()[rank] == 0


@given(st.integers(0, 10_000), st.floats(0.01, 100), st.floats(0, 1))
def test_entropies_of_another_scale_have_the_same_places_within_one(seed, scale, pivot):
    generator = torch.Generator().manual_seed(seed)
    entropy = 0.1 + torch.rand(3, 7, generator=generator, dtype=torch.float64)
    mask = torch.rand(3, 7, generator=generator) < 0.7
    mask[0, 0] = True
    place, _ = normalised_entropy(entropy, mask, pivot)
    torch.testing.assert_close(normalised_entropy(scale * entropy, mask, pivot)[0], place)
    assert place.abs().max() <= 1
    assert (place[~mask] == 0).all()
    spoiled = torch.where(mask, entropy, torch.nan)
    torch.testing.assert_close(normalised_entropy(spoiled, mask, pivot)[0], place)


def test_equal_entropies_no_entropy_and_no_tokens_have_no_places_to_speak_of():
    for values in (torch.full((1, 5), 0.7), torch.zeros(1, 5)):
        assert (normalised_entropy(values, ALL)[0] == 0).all()
    assert (normalised_entropy(ENTROPY, ~ALL)[0] == 0).all()


def test_the_temperature_follows_the_entropy_in_the_range_of_earlier_tokens():
    """Uniform over 4 tokens: ln 4 nats; the range's most is e times that, its pivot 1 nat."""
    known = EntropyRange(T(0.0), T(math.log(math.log(4)) * 2), T(1.0))
    logits = T([[1.0, 1.0, 1.0, 1.0], [50.0, 0.0, 0.0, 0.0]])
    tempered = AdaptiveTemperature(known)(T([[0], [0]]), logits)
    assert (logits / tempered)[0].tolist() == pytest.approx([1 + 0.05 * 0.5] * 4)
    assert (logits / tempered)[1, 0].item() == pytest.approx(0.95)  # clamped
    with pytest.raises(InputError, match="tau"):
        AdaptiveTemperature(known, 1.0)
