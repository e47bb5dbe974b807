import math

import pytest

from tokenry.core.errors import InputError
from tokenry.lab.outcome import verdict
from tokenry.lab.table import (
    Evidence,
    Table,
    items_above,
    over_seeds,
    paired,
    student_cdf,
    student_quantile,
)


@pytest.mark.parametrize(
    ("t", "degrees", "probability"),
    [  # quantiles of published tables, one-sided
        (6.313752, 1, 0.95),
        (2.919986, 2, 0.95),
        (2.353363, 3, 0.95),
        (2.131847, 4, 0.95),
        (1.812461, 10, 0.95),
        (4.302653, 2, 0.975),
        (2.776445, 4, 0.975),
        (1.729133, 19, 0.95),
        (0.0, 5, 0.5),
        (-2.919986, 2, 0.05),
    ],
)
def test_students_distribution_is_the_tables(t, degrees, probability):
    assert student_cdf(t, degrees) == pytest.approx(probability, abs=1e-6)
    if t > 0:
        assert student_quantile(probability, degrees) == pytest.approx(t, rel=1e-5)


def test_an_interval_is_as_wide_as_students_quantile_says():
    margins = (1.0, 2.0, 4.0, 5.0, 3.0)  # the standard error is sqrt(2.5 / 5)
    assert Evidence(margins).within() == pytest.approx(2.776445 * 0.5**0.5, rel=1e-6)
    assert Evidence(margins).within(0.9) == pytest.approx(2.131847 * 0.5**0.5, rel=1e-6)
    assert Evidence(margins, exact=True).within() == 0
    assert Evidence((1.0,)).within() == math.inf


def measured():
    table = Table()
    for seed, (a, b) in over_seeds(lambda seed: ((1, 0.5), (2, 1.4), (3, 2.6))[seed], 0, 3):
        table.add("a", a, "points", seed)
        table.add("b", b, "points", seed)
    return table


def test_a_gap_is_paired_by_seed():
    gap = measured().gap("a", "b")
    assert gap.margins == pytest.approx((0.5, 0.6, 0.4))
    assert gap.mean == pytest.approx(0.5)
    assert gap.error == pytest.approx(0.1 / math.sqrt(3))
    assert gap.sure == pytest.approx(student_cdf(5 * math.sqrt(3), 2))
    assert measured().gap("a", "b", by=0.5, factor=0.5).margins == pytest.approx((0.25, 0.8, 1.2))


def test_bounds_are_margins_too():
    assert measured().above("a", 1.5).margins == pytest.approx((-0.5, 0.5, 1.5))
    assert measured().below("a", 1.5).margins == pytest.approx((0.5, -0.5, -1.5))


def test_a_claim_holds_when_every_check_surely_does():
    outcome = verdict(measured(), {"a > b": measured().gap("a", "b"), "sums agree": True})
    record = outcome.record()
    assert (record["held"], record["verdict"]) == (True, "held")
    assert record["needs"] == "a > b; sums agree"
    assert outcome.checks[0].seeds == (3, 3)
    assert len(outcome.measurements) == 6


def test_one_sure_failure_decides_and_an_unsure_one_leaves_it_open():
    table = measured()
    unsure = table.above("a", 1.5)
    assert verdict(table, {"a > 1.5": unsure}).verdict == "undecided"
    assert verdict(table, {"a > 1.5": unsure}).record()["held"] is False
    assert verdict(table, {"x": unsure, "b > a": table.gap("b", "a")}).verdict == "not held"


def test_one_seed_decides_nothing_unless_it_is_exact():
    assert verdict(Table(), {"x": Evidence((5.0,))}).verdict == "undecided"
    assert verdict(Table(), {"x": Evidence((5.0,), exact=True)}).verdict == "held"
    assert verdict(Table(), {"x": False}).verdict == "not held"
    assert verdict(Table(), {}).verdict == "undecided"


def test_margins_without_spread_are_sure_and_nan_is_not():
    assert Evidence((0.2, 0.2)).sure == 1
    assert Evidence((-0.2, -0.2)).sure == 0
    assert Evidence((math.nan, 1.0)).sure == 0.5


def test_different_seeds_or_unknown_labels_are_refused():
    table = measured()
    table.add("c", 1.0, seed=0)
    with pytest.raises(InputError, match="different seeds"):
        table.gap("a", "c")
    with pytest.raises(InputError, match="not measured"):
        table.mean("d")


def test_bases_with_a_stride_share_no_seed():
    first = [seed for seed, _ in over_seeds(lambda seed: None, 0, 3, stride=3)]
    second = [seed for seed, _ in over_seeds(lambda seed: None, 1, 3, stride=3)]
    assert first == [0, 1, 2]
    assert second == [3, 4, 5]
    assert [seed for seed, _ in over_seeds(lambda seed: None, 3, 2)] == [300, 301]


def test_a_margin_counts_when_it_is_above_zero():
    assert Evidence((0.5, -0.25, 0.0)).above == 1
    assert Evidence((0.5, 0.25), exact=True).sure == 1
    assert Evidence((0.0, 0.0)).sure == 0
    for margins in ((0.5, -0.25), (0.5, 0.0)):
        assert Evidence(margins, exact=True).sure == 0


def test_items_are_paired_one_by_one():
    assert paired([1, 2, 3], [0, 2, 4]).margins == (1, 0, -1)
    with pytest.raises(ValueError, match="zip"):
        paired([1], [1, 2])


def test_items_are_above_a_bound_one_by_one():
    assert items_above([True, False, 0.75], 0.5).margins == (0.5, -0.5, 0.25)
    assert items_above([2.0]).margins == (2.0,)
