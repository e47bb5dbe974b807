"""The stream: what is in hand, what a pull costs, and what regret is."""

import math

import pytest
import torch

from tokenry.core.errors import InputError
from tokenry.measure.streams.base import (
    ArmStream,
    BanditResult,
    bernoulli,
    play,
    select_from_stream,
)
from tokenry.measure.streams.uniform import UniformExploration


def arms(*means):
    return [lambda count, generator, mean=mean: mean * count for mean in means]


def test_epsilon_is_the_papers():
    assert ArmStream(arms(*[0.5] * 100), 10**6).epsilon == pytest.approx(0.0464, abs=5e-5)
    assert ArmStream(arms(0.5, 0.5), 1).epsilon == ArmStream(arms(0.5), 0).epsilon == 1.0


def test_arms_come_once_and_only_those_in_hand_are_pulled():
    stream = ArmStream(arms(0.25, 0.75), 10)
    first = stream.next()
    assert stream.pull(first, 3.2) == 0.25  # four pulls
    assert (first.pulls, stream.left) == (4, 6)
    stream.drop(first)
    with pytest.raises(InputError, match="arm 0 is not in hand"):
        stream.pull(first, 1)
    second = stream.next()
    assert stream.pull(second, 100) == 0.75
    assert (stream.pulls, stream.left) == ([4, 6], 0)
    assert stream.pull(second, 1) == -math.inf
    assert stream.next() is None


def test_what_is_stored_is_what_is_in_hand_when_the_next_arm_is_read():
    stream = ArmStream(arms(0.1, 0.2, 0.3), 10)
    one = stream.next()
    two = stream.next()
    assert stream.most_stored == 1
    stream.drop(one)
    stream.next()
    assert stream.most_stored == 1
    assert stream.next() is None
    assert stream.most_stored == 2
    stream.drop(two)


def test_regret_weighs_each_arms_gap_with_its_own_pulls():
    assert BanditResult(1, (3, 5, 2), 1).regret([0.5, 0.9, 0.1]) == pytest.approx(3 * 0.4 + 2 * 0.8)


def test_rewards_of_a_bernoulli_arm_have_its_mean():
    generator = torch.Generator().manual_seed(0)
    assert bernoulli(1.0)(7, generator) == 7
    assert bernoulli(0.0)(7, generator) == 0
    total = bernoulli(0.3)(10**6, generator)
    assert abs(total / 10**6 - 0.3) < 7 * math.sqrt(0.21 / 10**6)
    with pytest.raises(InputError, match="mean"):
        bernoulli(1.2)


def test_a_candidate_is_selected_by_its_scores_and_what_is_left_is_not_spent():
    """A stream of prompts, of which each answers some of ten items."""
    asked = []

    def score(prompt, count, generator):
        asked.append(count)
        items = torch.randint(10, (count,), generator=generator)
        return float((items < len(prompt)).sum())

    prompts = ["a", "eight ch", "four"]
    assert select_from_stream(prompts, score, 3000, UniformExploration()) == "eight ch"
    assert asked == [math.ceil(UniformExploration().pulls(3, 3000))] * 3
    assert sum(asked) < 3000


def test_empty_streams_and_budgets_below_zero_are_refused():
    with pytest.raises(InputError, match="without arms"):
        ArmStream([], 10)
    with pytest.raises(InputError, match="budget"):
        ArmStream(arms(0.5), -1)
    assert play(UniformExploration(), ArmStream(arms(0.5, 0.6), 0)).pulls == (0, 0)
