"""Head and tail in the lab: what is asked and read, false counterparts, and judgements."""

from types import SimpleNamespace

import pytest
import torch

from tokenry.lab import long_tail
from tokenry.lab.long_tail import TEMPLATES, LongTail, with_false_ones
from tokenry.lab.models import language_model
from tokenry.tasks.worlds.exact_rules import RULES, exact_truth


@pytest.fixture(scope="module")
def world():
    return LongTail(language_model("smoke"), beam=4, later=2)


def test_both_ends_are_true_and_ranked_by_the_model(world):
    rule = RULES["same time"]
    ends = [world.searched(rule, side) for side in ("head", "tail")]
    scorer = long_tail.LikelihoodScorer(*world.loaded)
    head, tail = ([*scorer([rule.text(values) for values in found])] for found in ends)
    assert sum(tail) / len(tail) < sum(head) / len(head)
    assert all(exact_truth(rule.conclusion, values) for found in ends for values in found)


def test_answers_are_read_as_two_places_and_checked(world, monkeypatch):
    said = [" Paris and Berlin. They", " Paris and Tokyo, which", " Paris and Paris", " nowhere",
            " Atlantis and Paris", " Vienna, Austria and the city of Rome."]  # fmt: skip
    tokenizer = world.loaded.tokenizer
    ids = [tokenizer(text)["input_ids"] for text in said]
    monkeypatch.setattr(long_tail, "rollouts", lambda *_, **__: [ids])
    texts, true = world.asked("tail", len(said))
    assert true == [True, False, False, False, True]
    assert texts[0] == "Paris and Berlin have the same time of day."
    assert texts[-1] == "Vienna and Rome have the same time of day."


def test_claims_have_false_counterparts_of_the_same_subject():
    rule = RULES["multiples"]
    found = [{"X": "12", "Y": "6", "Z": "3"}, {"X": "35", "Y": "35", "Z": "5"},
             {"X": "8", "Y": "4", "Z": "2"}]  # fmt: skip
    assert with_false_ones(rule, found) == [
        ("12 is a multiple of 3.", True), ("12 is a multiple of 5.", False),
        ("35 is a multiple of 5.", True), ("35 is a multiple of 2.", False),
        ("8 is a multiple of 2.", True), ("8 is a multiple of 3.", False),
    ]  # fmt: skip
    assert with_false_ones(rule, found[:1]) == [
        ("12 is a multiple of 3.", True), ("12 is a multiple of 5.", False),
    ]  # fmt: skip


def test_judgements_are_by_the_odds_above_their_median_and_turn_with_the_template(
    world, monkeypatch
):
    odds = {"a": 3.0, "b": 2.0, "c": 5.0, "d": 1.0}

    def loglikelihood(self, requests):
        affirming = "Is it true" in requests[0].prompt
        values = [next(v for k, v in odds.items() if f" {k}?" in r.prompt or f" {k}\n" in r.prompt
                       or f"that {k}?" in r.prompt) for r in requests]  # fmt: skip
        return [[v if affirming else -v, 0.0] for v in values]

    monkeypatch.setattr(long_tail, "LanguageModel", lambda *_: SimpleNamespace(
        loglikelihood=lambda requests: loglikelihood(None, requests)))  # fmt: skip
    right = world.judged(["a.", "b", "c", "d"], [True, True, True, False])
    assert [affirms for _, affirms in TEMPLATES] == [True, False]
    # the median of 1, 2, 3, 5 is 2 (torch takes the lower one), of their negatives -3
    assert right[:, 0].tolist() == [True, False, True, True]
    assert right[:, 1].tolist() == [True, False, True, True]
    assert right.dtype == torch.bool
