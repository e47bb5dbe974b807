"""From needs to scores: any frozen model, its divergence and its likeliest tokens."""

import copy
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from tokenry.core.aggregate import masked_mean
from tokenry.core.batch import TokenBatch
from tokenry.core.divergence import Comparison
from tokenry.core.divergences import FORWARD_KL
from tokenry.core.errors import InputError
from tokenry.learn.compute import compute_loss, compute_scores
from tokenry.learn.objective import Loss, Objective, check_needs, frozen_sources
from tokenry.learn.reference import FrozenModel


@dataclass(frozen=True)
class FromTeacher(Objective):
    """KL(teacher || policy) of each token, on the teacher's likeliest tokens and the rest."""

    temperature: float = 2.0

    needs: ClassVar = ("policy.divergence(teacher)", "teacher.topk", "teacher.entropy")
    unit: ClassVar = "token"
    top_k: ClassVar = 4

    @property
    def divergence(self):
        return Comparison(FORWARD_KL, self.temperature, top_k=6)

    def __call__(self, batch, policy, reference=None, *, teacher):
        value = policy.need("divergence(teacher)")
        return Loss(masked_mean(value, batch.target), {"entropy": teacher.need("entropy").sum()})


@pytest.fixture
def case(tiny_llama_text, tiny_tokenizer):
    batch = TokenBatch.from_pairs(tiny_tokenizer, [("the cat", " sat there"), ("a", " theory")])
    teacher = copy.deepcopy(tiny_llama_text)
    torch.manual_seed(2)
    with torch.no_grad():
        for weight in teacher.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
    return batch, copy.deepcopy(tiny_llama_text), teacher


def test_a_divergence_from_a_named_model_is_computed_with_gradient_to_the_policy_only(case):
    batch, policy, teacher = case
    objective = FromTeacher()
    assert check_needs(objective)
    assert frozen_sources(objective) == ("teacher",)
    frozen = {"teacher": FrozenModel(teacher)}
    loss = compute_loss(objective, batch, policy, frozen=frozen).loss
    loss.backward()
    assert loss > 0
    assert any(w.grad is not None and w.grad.abs().max() > 0 for w in policy.parameters())
    assert all(w.grad is None for w in teacher.parameters())


def test_the_likeliest_tokens_are_as_many_as_the_objective_says(case):
    batch, policy, teacher = case
    found = compute_scores(FromTeacher(), batch, policy, frozen={"teacher": FrozenModel(teacher)})
    scores = found.others["teacher"]
    assert scores.topk_ids.shape == (*batch.shape, 4)
    logp = scores.logits().log_softmax(-1)
    best = logp.topk(4).values
    torch.testing.assert_close(scores.topk_logprobs[batch.target], best, rtol=1e-5, atol=1e-5)


def test_the_divergence_vanishes_when_the_teacher_is_the_policy(case):
    batch, policy, _ = case
    frozen = {"teacher": FrozenModel(copy.deepcopy(policy))}
    assert compute_loss(FromTeacher(), batch, policy, frozen=frozen).loss.item() == pytest.approx(
        0, abs=1e-5
    )


def test_a_model_that_is_missing_is_named(case):
    batch, policy, _ = case
    with pytest.raises(InputError, match='frozen model "teacher"'):
        compute_loss(FromTeacher(), batch, policy)
