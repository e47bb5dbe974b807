import pytest
import torch

from tokenry.core.errors import InputError, ShapeError
from tokenry.learn.replay import Replay


def drawn(replay, count=200):
    return replay.draw(count, torch.Generator().manual_seed(0))


def test_the_newest_rows_are_kept_and_all_of_them_drawn():
    replay = Replay(5)
    for start in (0, 3, 6):
        values = torch.arange(start, start + 3)
        replay.add([values, values.float()[:, None] * 10])
    numbers, tens = drawn(replay)
    assert len(replay) == 5
    assert set(numbers.tolist()) == {4, 5, 6, 7, 8}
    assert torch.equal(tens[:, 0], numbers * 10.0)


def test_before_it_is_full_only_what_was_added_is_drawn():
    replay = Replay(100)
    replay.add([torch.tensor([3, 4])])
    replay.add([torch.zeros(0, dtype=torch.long)])
    assert len(replay) == 2
    assert set(drawn(replay)[0].tolist()) == {3, 4}


def test_more_rows_than_it_holds_leave_the_last():
    replay = Replay(2)
    replay.add([torch.arange(7)])
    assert set(drawn(replay)[0].tolist()) == {5, 6}


def test_draws_are_even():
    replay = Replay(4)
    replay.add([torch.arange(4)])
    shares = drawn(replay, 8000)[0].bincount() / 8000
    torch.testing.assert_close(shares, torch.full((4,), 0.25), atol=0.035, rtol=0)


def test_what_cannot_be_drawn_or_added_is_refused():
    with pytest.raises(InputError, match="nothing in the replay"):
        drawn(Replay(3))
    with pytest.raises(ShapeError, match="one number of rows"):
        Replay(3).add([torch.zeros(2), torch.zeros(3)])
    with pytest.raises(InputError, match="capacity"):
        Replay(0)
