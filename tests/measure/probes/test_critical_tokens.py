"""Critical tokens: closed forms, and rollouts of a model whose success probabilities are known."""

from itertools import combinations
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokenry.core.errors import InputError
from tokenry.core.linear_head import LinearHead
from tokenry.core.scores import Scores
from tokenry.measure.probes import critical_tokens
from tokenry.measure.probes.critical_tokens import (
    contrastive_estimation,
    critical_token,
    pass_at_k,
    replaced_token_scores,
    rollout_scores,
)


def table_scores(probabilities, token):
    """A row of one target `token`, predicted with these probabilities."""
    logits = torch.tensor(probabilities, dtype=torch.float64).log()
    ids = torch.tensor([[0, token]])
    mask = torch.tensor([[False, True]])
    hidden = torch.stack([torch.zeros_like(logits), logits])[None]
    head = LinearHead(torch.eye(len(logits), dtype=torch.float64))
    return Scores(ids, mask, hidden=hidden, head=head)


def test_worked_example_of_the_contrast():
    found = [
        float(contrastive_estimation(
            table_scores((0.5, 0.3, 0.2), v), table_scores((0.1, 0.3, 0.6), v)
        )[0, 1])
        for v in range(3)
    ]  # fmt: skip
    assert found == pytest.approx([0.872093, 0.104651, 0.023256], abs=1e-6)


@pytest.mark.parametrize("gamma", [0.0, 1.0, 7.0])
def test_of_two_equal_models_the_contrast_is_the_model_whatever_gamma(gamma):
    model = table_scores((0.5, 0.3, 0.2), 1)
    assert contrastive_estimation(model, model, gamma).tolist() == [[0.0, pytest.approx(0.3)]]


def test_without_gamma_the_negative_model_does_not_matter():
    found = contrastive_estimation(
        table_scores((0.5, 0.3, 0.2), 2), table_scores((0.1, 0.3, 0.6), 2), gamma=0.0
    )
    assert float(found[0, 1]) == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ((0.5, 0.2, 0.0, 0.1, 0.0, 0.0), 4),  # the 0 at 2 is followed by a recovery
        ((0.5, 0.0, 0.0, 0.02), 1),
        ((0.5, 0.0, 0.0, 0.05), 1),
        ((0.0, 0.0), 0),
        ((0.5, 0.1), None),
        ((0.0, 0.9), None),
        ((), None),
    ],
)
def test_the_critical_token_is_the_first_zero_without_recovery(scores, expected):
    assert critical_token(scores) == expected
    assert critical_token(torch.tensor(scores, dtype=torch.float64)) == expected


@given(st.lists(st.sampled_from([0.0, 0.03, 0.06, 0.5]), max_size=8))
def test_the_critical_token_is_what_the_definition_says(scores):
    good = [
        place
        for place, score in enumerate(scores)
        if score == 0.0 and all(later <= 0.05 for later in scores[place + 1 :])
    ]
    assert critical_token(scores) == (good[0] if good else None)


@given(
    st.integers(1, 7).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n)))
)
def test_pass_at_k_is_the_share_of_subsets_with_a_correct_sample(case):
    n, c, k = case
    subsets = list(combinations([True] * c + [False] * (n - c), k))
    assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


def test_pass_at_k_at_its_ends():
    assert pass_at_k(4, 1, 2) == 0.5
    assert pass_at_k(4, 0, 2) == 0.0
    assert pass_at_k(4, 3, 2) == 1.0
    with pytest.raises(InputError, match="pass@5"):
        pass_at_k(4, 1, 5)


@pytest.fixture
def dice(monkeypatch):
    """Stands in for sampling: writes digits 0..9, one after another, then the end (10)."""
    calls = []

    def rollouts(model, prompts, copies, *, max_new_tokens, ends, banned=None, seed=0):
        calls.append(SimpleNamespace(prompts=prompts, banned=banned))
        return [
            [[digit % 10, 10] for digit in range(copies) if not banned or digit != banned[row]]
            for row in range(len(prompts))
        ]

    monkeypatch.setattr(critical_tokens, "rollouts", rollouts)
    return calls


def test_rollout_scores_judge_whole_completions_and_ended_prefixes_as_they_are(dice):
    def is_correct(completion):
        return completion[-1] == 10 and sum(completion[:-1]) < 8

    scores = rollout_scores(
        None, [1], [3, 4, 10], is_correct, samples=10, max_new_tokens=2, ends=[10]
    )
    assert scores.tolist() == pytest.approx([0.5, 0.1, 1.0])  # 3 + d < 8; 7 + d < 8; 7 < 8
    assert dice[0].prompts == [[1, 3], [1, 3, 4]]


def test_replacing_a_token_bans_it_and_keeping_it_continues_behind_it(dice):
    def is_correct(completion):
        return completion[1] != 5

    without, kept = replaced_token_scores(
        None, [1], [3, 5, 10], 1, is_correct, samples=10, max_new_tokens=2, ends=[10]
    )
    assert (without, kept) == (9, 0)
    assert dice[0].prompts == [[1, 3]]
    assert dice[0].banned == [5]
    assert dice[1].prompts == [[1, 3, 5]]
