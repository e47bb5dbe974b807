"""Scores at a sampling temperature: by model, by reference, by view of the batch."""

import copy

import pytest
import torch

from policy_trainer import tempered
from tokenry.core.batch import TokenBatch
from tokenry.core.errors import InputError
from tokenry.learn.compute import compute_scores
from tokenry.learn.objective import Objective, View
from tokenry.learn.reference import BeforeTraining, FrozenModel, Precomputed
from tokenry.model import score as score_module
from tokenry.model.score import score

BATCH = TokenBatch.from_ids(
    [[5, 6, 7, 8], [9, 10, 11]], [[False, True, True, True], [False, False, True]]
)


@pytest.mark.parametrize("linear", [True, False])
def test_scores_and_gradients_are_those_of_the_divided_logits(linear, tiny_model, monkeypatch):
    """With a head that is known, a soft cap included, and from logits."""
    if not linear:
        monkeypatch.setattr(score_module, "linear_head", lambda model: None)
    model = copy.deepcopy(tiny_model)
    needs = ("logprob", "entropy", "topk")
    found = score(model, BATCH, needs, temperature=0.6, grad=True)
    for quantity in ("logprob", "entropy"):
        torch.testing.assert_close(
            found.need(quantity), tempered(model, BATCH, 0.6, quantity), rtol=1e-4, atol=1e-5
        )
    weights = list(model.parameters())
    gradients = [
        torch.autograd.grad(values.sum(), weights, allow_unused=True)
        for values in (found.need("logprob"), tempered(model, BATCH, 0.6))
    ]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
    best = found.need("topk_logprobs")[BATCH.target][:, 0]
    plain = score(model, BATCH, ("topk",), temperature=1.2).need("topk_logprobs")
    assert (best > plain[BATCH.target][:, 0]).all()
    with pytest.raises(InputError, match="temperature is 0"):
        score(model, BATCH, temperature=0.0)


class OnViews(Objective):
    """Needs the policy on another conditioning of the same targets, and on another text."""

    needs = ("policy@told.logprob", "policy@old.logprob", "policy@told.entropy")
    unit = "row"

    def views(self, batch, modules):
        rows = [
            [30, *ids[real].tolist()] for ids, real in zip(BATCH.ids, BATCH.attention, strict=True)
        ]
        told = TokenBatch.from_ids(rows, [[False, False, True, True, True], [False] * 3 + [True]])
        return {"told": View(told), "old": View(BATCH, aligned=False)}


def test_another_conditioning_has_it_and_another_text_has_not(tiny_llama):
    found = compute_scores(OnViews(), BATCH, tiny_llama, temperature=0.6, grad=False).others
    told = OnViews().views(BATCH, None)["told"].batch
    with torch.no_grad():
        wanted = tempered(tiny_llama, told, 0.6)[told.target]
        plain = tempered(tiny_llama, BATCH, 1.0)
    own = found["policy@told"].need("logprob")[BATCH.target]
    torch.testing.assert_close(own, wanted, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found["policy@old"].need("logprob"), plain, rtol=1e-4, atol=1e-4)


def test_references_of_every_kind_take_it_or_say_no(tiny_llama):
    for reference in (FrozenModel(tiny_llama), BeforeTraining.of(tiny_llama)):
        found = reference(BATCH, ("logprob",), temperature=0.6).need("logprob")
        with torch.no_grad():
            torch.testing.assert_close(
                found, tempered(tiny_llama, BATCH, 0.6), rtol=1e-4, atol=1e-4
            )
        assert reference(BATCH, ("topk",), top_k=3).need("topk_ids").shape[-1] == 3
    with pytest.raises(InputError, match=r"sampled at temperature 0\.6, and precomputed"):
        Precomputed(torch.zeros(BATCH.shape))(BATCH, ("logprob",), temperature=0.6)
