"""Forced stops: the curve of a model whose answers are known, and how near stops were."""

import pytest
import torch

from tokenry.core.errors import InputError, ShapeError
from tokenry.core.scores import Scores
from tokenry.lab.toy_model import toy_model
from tokenry.measure.probes.forced_stop import StopCurve, forced_stop_curve, near_stops

STOP, END = 4, 0


def curve(model, cuts, correct, **options):
    how = {"stop": STOP, "ends": [END], "thinking": 6, "answer": 1, "copies": 300, "seed": 1}
    return forced_stop_curve(model, [[3], [3, 2]], cuts, correct, **how | options)


@pytest.fixture(scope="module")
def model():
    return toy_model(6, 12, seed=1, width=16).eval()


def test_a_cut_at_nothing_is_answered_at_once(model):
    """Against the model's own probability of the answer "1" (6 errors, 600 answers)."""
    found = curve(model, [0], lambda number, ids: ids == [1])
    with torch.no_grad():
        truth = [
            float(model(torch.tensor([[*prompt, STOP]])).logits[0, -1].softmax(-1)[1])
            for prompt in ([3], [3, 2])
        ]
    p = sum(truth) / 2
    assert abs(found.accuracy[0] - p) < 6 * (p * (1 - p) / 600) ** 0.5
    assert found.length == (0.0,)


def test_the_judge_sees_the_prompts_number_and_lengths_stop_where_the_trace_did(model):
    seen = []
    found = curve(model, [1, 3, 99], lambda number, ids: seen.append(number) or number == 1)
    assert found.accuracy == (0.5, 0.5, 0.5)
    assert seen == ([0] * 300 + [1] * 300) * 4
    assert found.length[0] < found.length[1] < found.length[2] == found.own_length <= 6
    assert found.room == 0


def test_room_is_what_the_best_cut_gains():
    found = StopCurve((0, 4), (0.25, 0.75), (0.0, 3.5), 0.5, 6.0)
    assert found.room == 0.25
    assert StopCurve((0,), (0.25,), (0.0,), 0.5, 6.0).room == -0.25


def test_near_stops_are_tokens_that_might_have_been_one():
    ids = torch.tensor([[3, 1, 2, STOP], [3, 1, 1, 0]])
    mask = torch.tensor([[False, True, True, True], [False, True, True, False]])
    likeliest = torch.tensor(
        [[[0, 0], [1, STOP], [2, 5], [STOP, 1]], [[0, 0], [STOP, 1], [1, 2], [STOP, 1]]]
    )
    scores = Scores(ids, mask, topk_ids=likeliest)
    assert near_stops(scores, STOP, 2) == pytest.approx(2 / 4)
    assert near_stops(scores, STOP, 1) == pytest.approx(1 / 4)
    assert near_stops(scores, STOP, 2, ids == 2) == 0
    with pytest.raises(ShapeError, match="likeliest"):
        near_stops(scores, STOP, 5)


def test_a_curve_wants_cuts(model):
    with pytest.raises(InputError):
        curve(model, [], lambda number, ids: True)
    with pytest.raises(InputError, match="cut"):
        curve(model, [-1], lambda number, ids: True)
