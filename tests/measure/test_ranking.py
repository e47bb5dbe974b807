import pytest
import torch

from tokenry.core.errors import InputError
from tokenry.measure.ranking import area_under_curve, separation


def test_ties_count_half():
    high, low = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.0, 2.0])
    assert area_under_curve(high, low) == pytest.approx((1 + 1 + 1 + 0.5 + 1 + 0) / 6)
    assert area_under_curve(torch.ones(3), torch.ones(4)) == 0.5


def test_it_agrees_with_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    scores = torch.randint(5, (60,), generator=torch.Generator().manual_seed(0)).float()
    labels = torch.arange(60) % 3 == 0
    expected = metrics.roc_auc_score(labels.numpy(), scores.numpy())
    assert area_under_curve(scores[labels], scores[~labels]) == pytest.approx(expected)


def test_nothing_to_compare_is_refused():
    with pytest.raises(InputError, match="0 high and 2 low"):
        area_under_curve(torch.zeros(0), torch.zeros(2))


def test_separation_names_its_values():
    assert separation(torch.tensor([3.0, 5.0]), torch.tensor([1.0]), ("good", "bad")) == {
        "mean of good": 4.0, "mean of bad": 1.0, "good minus bad": 3.0, "AUC": 1.0,
    }  # fmt: skip
