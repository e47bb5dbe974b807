"""LINK: the falling threshold, brute force on a toy, both directions, and strict accuracy."""

import math
from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokenry.core.errors import InputError, ShapeError
from tokenry.tasks.link import (
    SEPARATED,
    KnowledgeBeamSearch,
    ThresholdCritic,
    separation,
    template_accuracy,
)
from tokenry.tasks.rules import Predicate, Rule

LIKES = Predicate("likes", ("X", "Y"), "{X} likes {Y}.")
FRIEND = Predicate("friend", ("X", "Y"), "{X} is a friend of {Y}.")
RULE = Rule((LIKES,), FRIEND, {"X": "a cat", "Y": "a dog"})
CATS, DOGS = ("a", "b", "c"), ("k", "l", "m")
SCORES = {pair: (7 * n) % 10 - 9.5 for n, pair in enumerate(product(CATS, DOGS))}
TRUE = {("a", "k"), ("a", "m"), ("b", "l"), ("c", "k"), ("c", "l"), ("c", "m")}


def propose(predicates, variable, bound, call):
    return CATS if variable == "X" else DOGS


def truth(predicate, values):
    if predicate.name == "likes":
        return float((values["X"], values["Y"]) in TRUE)
    return 1.0


def score(texts):
    return [SCORES.get((text[0], text[-2]), -1.0) if "likes" in text else -1.0 for text in texts]


def search(**options):
    critic = ThresholdCritic(options.pop("truth", truth))
    return KnowledgeBeamSearch(propose, critic, score, **{"keep": 1.0} | options).run(RULE)


def pairs(found):
    return [(values["X"], values["Y"]) for values in found]


def critic(needed, **options):
    return ThresholdCritic(lambda predicate, values: 1.0, needed=needed, **options)


@pytest.mark.parametrize(
    ("probabilities", "needed", "threshold"),
    [
        ((0.9, 0.8, 0.7, 0.6), 3, 0.70),
        ((0.9, 0.86, 0.85, 0.6), 3, 0.85),
        ((0.9, 0.8, 0.7, 0.6), 2, 0.80),
        ((0.9, 0.65, 0.64), 3, 0.65),
        ((0.1,), 1, 0.65),
        ((), 0, 0.85),
    ],
)
def test_the_threshold_falls_until_enough_pass_and_not_below_its_floor(
    probabilities, needed, threshold
):
    assert critic(needed).threshold(probabilities) == threshold


def test_values_pass_by_their_worst_predicate():
    given = {"likes": {"k": 0.9, "l": 0.95, "m": 0.7}, "a dog": {"k": 0.5, "l": 0.9, "m": 0.9}}

    def probability(predicate, values):
        return given[predicate.name][values["Y"]]

    predicates = RULE.about("Y", {"X": "a"})
    for needed, kept in ((1, ["l"]), (2, ["l", "m"]), (3, ["l", "m"])):
        found = ThresholdCritic(probability, needed=needed).passing(
            predicates, "Y", {"X": "a"}, list(DOGS)
        )
        assert found == kept


def test_an_unlimited_search_is_brute_force_in_order():
    exact = sorted(TRUE, key=SCORES.__getitem__)
    assert pairs(search()) == exact
    assert pairs(search(direction="head")) == exact[::-1]


def test_every_premise_holds_and_the_tail_is_less_likely_than_the_head():
    tail, head = (pairs(search(direction=side, keep=0.5)) for side in ("tail", "head"))
    assert set(tail) | set(head) <= TRUE
    assert sum(map(SCORES.get, tail)) / len(tail) < sum(map(SCORES.get, head)) / len(head)
    assert len(tail) == 2  # of three cats two stay, the half of their three or four pairs


@pytest.mark.parametrize(("keep", "beam", "count"), [(1.0, 200, 9), (0.75, 200, 7), (1.0, 4, 4),
                                                     (0.75, 5, 5), (0.01, 200, 1)])  # fmt: skip
def test_what_is_kept_is_a_share_rounded_up_and_no_more_than_the_beam(keep, beam, count):
    found = KnowledgeBeamSearch(propose, critic(1), score, keep=keep, beam=beam)
    grown = [dict(zip("XY", pair, strict=True)) for pair in product(CATS, DOGS)]
    kept = found._reranked(RULE, grown)
    assert len(kept) == count
    assert pairs(kept) == sorted(product(CATS, DOGS), key=SCORES.__getitem__)[:count]


def test_a_proposer_is_called_so_often_and_its_values_are_taken_once():
    calls = []

    def many(predicates, variable, bound, call):
        calls.append((variable, dict(bound), call, [p.name for p in predicates]))
        start = 40 * call
        return [f"{variable}{n}" for n in range(start, start + 60)]

    open_search = KnowledgeBeamSearch(many, critic(0), lambda texts: [0.0] * len(texts), beam=1)
    found = open_search.run(RULE)
    assert [call[2] for call in calls] == [0, 1, 2, 3] * 2
    assert calls[0][3] == ["a cat"]
    assert calls[4][1] == {"X": "X0"}
    assert calls[4][3] == ["a dog", "likes"]
    assert len(found) == 1

    seen = []
    counting = ThresholdCritic(lambda p, values: seen.append(dict(values)) or 0.0)
    assert not KnowledgeBeamSearch(many, counting, score).run(RULE)
    assert len(seen) == 50 + 3 * 40  # 50 of each call, ten of which the call before had


def test_no_two_variables_have_one_value():
    def same(predicates, variable, bound, call):
        return ["a", "b"]

    found = KnowledgeBeamSearch(same, critic(0), lambda texts: [0.0] * len(texts), keep=1.0)
    assert pairs(found.run(RULE)) == [("a", "b"), ("b", "a")]


def test_separation_is_a_difference_of_means():
    assert separation([-1.0, -2.0], [-2.5]) == pytest.approx(1.0)
    assert SEPARATED == 0.3
    with pytest.raises(InputError, match="0 of the tail"):
        separation([1.0], [])


@given(st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=1, max_size=9))
def test_strict_accuracy_is_no_more_than_the_mean(rows):
    correct = torch.tensor(rows)
    strict, mean = (template_accuracy(correct, strict=flag) for flag in (True, False))
    assert strict == pytest.approx(sum(map(all, rows)) / len(rows))
    assert mean == pytest.approx(sum(map(sum, rows)) / 3 / len(rows))
    assert strict <= mean + 1e-12


def test_who_always_says_yes_solves_nothing_where_both_labels_occur():
    labels = torch.tensor([[True, False, True], [False, True, True]])
    assert template_accuracy(labels == True) == 0.0  # noqa: E712
    assert template_accuracy(labels, strict=False) == pytest.approx(2 / 3)


def test_defaults_and_refusals():
    made = KnowledgeBeamSearch(propose, critic(3), score)
    assert (made.direction, made.keep, made.beam, made.calls, made.values) == (
        "tail", 0.75, 200, 4, 50,
    )  # fmt: skip
    assert (critic(3).start, critic(3).step, critic(3).floor) == (0.85, 0.05, 0.65)
    for wrong in ({"direction": "middle"}, {"keep": 0.0}, {"beam": 0}, {"calls": 0}):
        with pytest.raises(InputError):
            KnowledgeBeamSearch(propose, critic(3), score, **wrong)
    for wrong in ({"start": 0.5}, {"step": 0}, {"floor": -1}, {"start": math.nan}):
        with pytest.raises(InputError):
            critic(3, **wrong)
    with pytest.raises(ShapeError, match="items"):
        template_accuracy(torch.zeros(3).bool())
