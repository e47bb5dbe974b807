"""Game of arms: what a challenge costs, when the king falls, and the sample beside it."""

import math

import pytest

from tokenry.core.errors import InputError
from tokenry.measure.streams.base import ArmStream, play
from tokenry.measure.streams.game_of_arms import GameOfArms

BUDGET = 64_000  # with K = 8 arms, 1 / epsilon^2 = 400
ROUND = 400
KING = math.ceil(ROUND * math.log(8))


def recorded(means, **fields):
    """The pulls of arms without noise in their order, without a sample unless asked for one."""
    pulls = []

    def arm(number):
        def pull(count, generator):
            pulls.append((number, count))
            return means[number] * count

        return pull

    stream = ArmStream([arm(number) for number in range(len(means))], BUDGET)
    return pulls, play(GameOfArms(**{"sampled": 0.0, **fields}), stream)


def near(pulls):
    """Rounds have 400 pulls, or one more where rounding left a little more than a whole number."""
    return [(arm, count // ROUND if count % ROUND <= 1 else count) for arm, count in pulls]


def test_bad_challengers_cost_a_round_each_and_leave_the_king():
    pulls, result = recorded([0.8, *[0.1] * 7])
    assert pulls[0] == (0, KING)
    assert near(pulls[1:8]) == [(number, 1) for number in range(1, 8)]
    assert result.arm == 0


def test_a_challenger_as_good_as_the_king_takes_the_crown_when_the_next_round_is_not_paid():
    """1.2 + 1 rounds pay the first of one unit, not the second of two."""
    pulls, result = recorded([0.8, 0.8, *[0.1] * 6])
    assert near(pulls[:2]) == [(0, KING), (1, 1)]
    assert pulls[2] == (1, KING)
    assert result.arm == 1
    richer, _ = recorded([0.8, 0.8, *[0.1] * 6], initial=2.1)
    assert near(richer[1:3]) == [(1, 1), (1, 2)]


@pytest.mark.parametrize(("gap", "crowned"), [(0.009, True), (0.011, False)])
def test_the_margin_is_a_fifth_of_epsilon(gap, crowned):
    """epsilon is 1/20, so the margin is 0.01."""
    _, result = recorded([0.8, 0.8 - gap, *[0.1] * 6])
    assert result.arm == (1 if crowned else 0)


def test_the_best_of_the_sample_is_chosen_when_the_game_takes_too_long():
    rising = [0.1 * number for number in range(1, 9)]
    pulls, result = recorded(rising, sampled=100.0, patience=0.5)  # every arm is sampled
    sample = [arm for arm, count in pulls if count == KING]
    assert sample[-1] == 7
    assert result.arm == 7
    assert [arm for arm, count in near(pulls) if count == 1] == [1]  # the game was over then
    _, without = recorded(rising, patience=0.5)
    assert without.arm == 0  # nothing was sampled: the first arm's own mean


def test_defaults_and_refusals():
    assert GameOfArms() == GameOfArms(1.2, 0.2, 1.5, 10.0)
    assert GameOfArms().memory(100) == 2
    for wrong in ({"initial": -1}, {"margin": -0.1}, {"sampled": -1}, {"patience": 0}):
        with pytest.raises(InputError):
            GameOfArms(**wrong)
