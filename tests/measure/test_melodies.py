"""Melody similarity and distance against slow readings."""

from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenry.core.errors import InputError
from tokenry.measure.melodies import histogram_similarity, melody_distance

SERIES = st.lists(st.integers(40, 60), min_size=1, max_size=7)


@given(SERIES, SERIES)
def test_the_distance_is_the_best_warping(generated, reference):
    left = [pitch - sum(generated) / len(generated) for pitch in generated]
    right = [pitch - sum(reference) / len(reference) for pitch in reference]

    @cache
    def best(i, j):
        here = abs(left[i] - right[j])
        if i == j == 0:
            return here
        ways = [(i - 1, j), (i, j - 1), (i - 1, j - 1)]
        return here + min(best(*way) for way in ways if min(way) >= 0)

    expected = best(len(left) - 1, len(right) - 1) / len(left)
    assert melody_distance(generated, reference) == pytest.approx(expected, abs=1e-9)


@given(SERIES, st.integers(-9, 9))
def test_a_transposed_melody_is_no_distance_away(series, by):
    moved = [pitch + by for pitch in series]
    assert melody_distance(moved, series) == pytest.approx(0, abs=1e-9)
    held = [pitch for pitch in series for _ in range(3)]
    assert melody_distance(held, series) == pytest.approx(0, abs=1e-9)


@given(SERIES, SERIES)
def test_the_similarity_is_an_overlap(generated, reference):
    found = histogram_similarity(generated, reference)
    bins = {*generated, *reference}
    shares = [
        (generated.count(v) / len(generated), reference.count(v) / len(reference)) for v in bins
    ]
    assert found == pytest.approx(sum(map(min, shares)))
    assert found == pytest.approx(1 - 0.5 * sum(abs(a - b) for a, b in shares))
    assert histogram_similarity(generated, generated) == pytest.approx(1)


def test_melodies_of_nothing_are_refused():
    with pytest.raises(InputError, match="0 values and one of 1"):
        histogram_similarity([], [1])
    with pytest.raises(InputError, match="without a beat"):
        melody_distance([1], [])
