"""Exact rules: what a program knows of places, times and numbers."""

import pytest

from tokenry.core.errors import InputError
from tokenry.tasks.link import KnowledgeBeamSearch, ThresholdCritic
from tokenry.tasks.worlds.exact_rules import (
    NUMBER,
    PLACE,
    RULES,
    TIME,
    exact_truth,
    knowing_proposer,
    places,
    values_of,
)


def test_places_have_their_time_in_january():
    known = places()
    expected = {
        "London": "+00:00", "Paris": "+01:00", "Tokyo": "+09:00", "New York": "-05:00",
        "Kathmandu": "+05:45", "Sydney": "+11:00", "Honolulu": "-10:00",
    }  # fmt: skip
    assert {name: known[name] for name in expected} == {
        name: f"UTC{time}" for name, time in expected.items()
    }
    assert len(known) > 300
    assert not any("_" in name or "/" in name for name in known)


def test_truth_of_every_predicate():
    keeps, also, keeps_not = (
        RULES[name].premises[n] for name, n in (("same time", 0), ("same time", 1),
                                                ("another time", 1))
    )  # fmt: skip
    values = {"X": "Paris", "Y": "UTC+01:00", "Z": "Tokyo"}
    assert exact_truth(keeps, values) == 1
    assert exact_truth(also, values) == 0
    assert exact_truth(keeps_not, values) == 1
    assert exact_truth(RULES["same time"].conclusion, values) == 0
    assert exact_truth(RULES["same time"].conclusion, values | {"Z": "Berlin"}) == 1
    multiple = RULES["multiples"].conclusion
    assert [exact_truth(multiple, {"X": "12", "Z": z}) for z in ("4", "5", "24")] == [1, 0, 0]
    kind = RULES["same time"].about("X", {})[0]
    assert [exact_truth(kind, {"X": name}) for name in ("Paris", "Atlantis")] == [1, 0]


@pytest.mark.parametrize("name", RULES)
def test_with_true_premises_the_conclusion_is_as_the_rule_says(name):
    rule = RULES[name]
    found = KnowledgeBeamSearch(
        knowing_proposer(0, 4),
        ThresholdCritic(exact_truth),
        lambda texts: [float(len(text)) for text in texts],
        beam=30,
    ).run(rule)
    assert len(found) > 5
    for values in found:
        assert all(exact_truth(premise, values) == 1 for premise in rule.premises)
        assert exact_truth(rule.conclusion, values) == float(rule.positive)
        assert len(set(values.values())) == 3


def test_the_proposer_knows_and_its_order_depends_on_all():
    rule = RULES["multiples"]
    predicates = rule.about("Y", {"X": "12"})
    offered = knowing_proposer(0)(predicates, "Y", {"X": "12"}, 0)
    assert set(offered) == {"2", "3", "4", "6", "12"}
    assert len(knowing_proposer(0, 2)(predicates, "Y", {"X": "12"}, 0)) == 2
    first = [knowing_proposer(seed)(rule.about("X", {}), "X", {}, call)[:9]
             for seed, call in ((0, 0), (0, 0), (1, 0), (0, 1))]  # fmt: skip
    assert first[0] == first[1]
    assert first[0] not in first[2:]
    assert len(knowing_proposer(0, 2)(rule.about("X", {}), "X", {}, 0)) == 143


def test_types_have_their_values_and_others_are_refused():
    assert values_of(NUMBER)[0] == "2"
    assert values_of(NUMBER)[-1] == "144"
    assert "UTC+05:45" in values_of(TIME)
    assert set(values_of(PLACE)) == set(places())
    with pytest.raises(InputError, match="a colour"):
        values_of("a colour")
    with pytest.raises(InputError, match="later"):
        knowing_proposer(0, 0)
