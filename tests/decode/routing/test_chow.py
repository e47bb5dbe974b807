import math

import pytest
import torch

from tokenry.core.errors import InputError, ShapeError
from tokenry.decode.routing.chow import ChowRouter

LOGPROB = torch.tensor([[-0.1, -3.0, -0.2, -0.4, 0.0], [-1.0, -2.0, 0.0, 0.0, 0.0]])
MASK = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 0, 0, 0]]).bool()


@pytest.mark.parametrize("alpha", [0.0, 0.2, 0.5, 0.9, 1.0])
def test_the_quantile_is_numpys_of_the_answers_tokens(alpha):
    found = ChowRouter(alpha=alpha).confidence(LOGPROB, MASK)
    for row, mask, value in zip(LOGPROB, MASK, found.tolist(), strict=True):
        assert value == pytest.approx(float(row[mask].quantile(alpha)), abs=1e-6)


def test_mean_and_sum_are_of_the_answers_tokens():
    assert ChowRouter("mean").confidence(LOGPROB, MASK).tolist() == pytest.approx([-0.925, -1.5])
    assert ChowRouter("sum").confidence(LOGPROB, MASK).tolist() == pytest.approx([-3.7, -3.0])


def test_what_is_below_the_threshold_is_asked_for_and_what_is_at_it_is_kept():
    router = ChowRouter("sum", threshold=-3.0)
    assert router(LOGPROB, MASK).tolist() == [True, False]
    assert ChowRouter("mean", threshold=-1.0)(LOGPROB, MASK).tolist() == [False, True]
    assert not ChowRouter(threshold=-math.inf)(LOGPROB, MASK).any()


def test_its_defaults():
    assert ChowRouter() == ChowRouter("quantile", threshold=-1.0, alpha=0.2)


def test_an_empty_answer_has_confidence_zero_and_impossible_tokens_none():
    empty = torch.zeros(1, 3, dtype=torch.bool)
    for statistic in ("quantile", "mean", "sum"):
        assert ChowRouter(statistic).confidence(LOGPROB[:1, :3], empty).tolist() == [0.0]
    impossible = torch.full((1, 4), -math.inf)
    all_four = torch.ones(1, 4, dtype=torch.bool)
    assert ChowRouter(alpha=0.5).confidence(impossible, all_four).tolist() == [-math.inf]


def test_a_share_of_answers_is_asked_for():
    confidences = -torch.linspace(0.1, 10, 101)
    router = ChowRouter("mean").of_share(confidences, 0.3)
    assert float((confidences < router.threshold).float().mean()) == pytest.approx(0.3, abs=0.01)
    assert router.statistic == "mean"


def test_wrong_settings_and_shapes_are_refused():
    for wrong in ({"threshold": 0.1}, {"alpha": 1.5}, {"statistic": "median"}):
        with pytest.raises(InputError):
            ChowRouter(**wrong)
    with pytest.raises(ShapeError):
        ChowRouter()(LOGPROB, MASK[:, :2])
