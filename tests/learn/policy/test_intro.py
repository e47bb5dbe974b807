"""InTRO: worked factors, the divergence that the candidates estimate, and who learns from what."""

import copy

import pytest
import torch

from policy_variants import rollouts
from tokenry.core.batch import TokenBatch
from tokenry.core.errors import InputError
from tokenry.core.linear_head import LinearHead
from tokenry.core.scores import Scores
from tokenry.learn.compute import compute_loss, compute_scores
from tokenry.learn.policy.intro import InTRO, correction_factors

T = torch.tensor
V, D = 12, 4
RIGHT = (1.0, 0.0, 1.0, 0.0, 0.0, 1.0)


def numbers(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


HEAD = LinearHead(numbers(V, D, seed=1), numbers(V, seed=2))


def prepared(goal, batch):
    old = torch.where(batch.target, -1.0, 0.0).double()
    return goal.prepare(batch, Scores(batch.ids, batch.target, logprob=old))


def loss_of(goal, batch, hidden, told, head=HEAD):
    logprob = head.shaped(hidden @ head.weight.T + (0 if head.bias is None else head.bias))
    logprob = logprob.log_softmax(-1).gather(-1, batch.ids[..., None])[..., 0]
    own = Scores(batch.ids, batch.target, logprob=logprob, hidden=hidden, head=head)
    known = Scores(batch.ids, batch.target, hidden=told, head=head)
    return goal(batch, own, **{"policy@hinted": known})


def test_the_worked_factors():
    p, known = T([0.1, 0.001, 0.5, 0.0]).log(), T([0.3, 0.5, 0.05, 0.0]).log()
    found = correction_factors(p, known)
    torch.testing.assert_close(found, T([3.0, 200.0, 0.1, 1.0]))
    assert correction_factors(p, known, 2.0)[0] == 2.0
    assert (InTRO().candidates, InTRO().clip) == (5, 200.0)


@pytest.mark.parametrize("clip", [200.0, 1.5])
def test_with_one_candidate_it_is_weighted_likelihood_of_the_right_rationales(clip):
    batch = prepared(InTRO(clip=clip), rollouts(rewards=RIGHT))
    assert torch.equal(batch.group, T([4, 4, 9]))  # rows 0, 2 and 5 are kept
    hidden, told = (numbers(*batch.shape, D, seed=n).requires_grad_() for n in (3, 4))
    result = loss_of(InTRO(candidates=1, clip=clip), batch, hidden, told)

    def logprob(states):
        values = (states @ HEAD.weight.T + HEAD.bias).log_softmax(-1)
        return values.gather(-1, batch.ids[..., None])[..., 0]

    weight = (logprob(told) - logprob(hidden)).detach().exp().clamp(max=clip)
    rows = (weight * logprob(hidden) * batch.target).sum(-1) / batch.target.sum(-1)
    wanted = -rows.mean()
    torch.testing.assert_close(result.loss, wanted)
    mine, truth = (
        torch.autograd.grad(x, hidden, retain_graph=True)[0] for x in (result.loss, wanted)
    )
    torch.testing.assert_close(mine, truth)
    assert not torch.autograd.grad(result.loss, told, allow_unused=True)[0]
    mean = (weight * batch.target).sum() / batch.target.sum()
    torch.testing.assert_close(result.metrics["feedback"].double(), mean, atol=1e-5, rtol=0)
    assert (mine[~batch.target] == 0).all()


def test_many_candidates_estimate_the_exact_divergence():
    """One state, 40,000 candidates: the gradient within six standard errors (and the one token
    that was taken)."""
    batch = prepared(InTRO(), rollouts([1], [1.0], [0], [[5]]))
    hidden, told = (numbers(1, 2, D, seed=n).requires_grad_() for n in (5, 6))
    count, gradients = 40_000, []
    torch.manual_seed(0)
    for goal in (InTRO(candidates=count, clip=1e6), InTRO(full_vocab=True)):
        loss = loss_of(goal, batch, hidden, told).loss
        gradients.append(torch.autograd.grad(loss, hidden)[0][0, 1])
    p, q = ((x[0, 1] @ HEAD.weight.T + HEAD.bias).softmax(-1).detach() for x in (hidden, told))
    each = (q / p)[:, None] * (HEAD.weight - p @ HEAD.weight)  # a candidate's gradient
    spread = (p @ (each - p @ each).square()).sqrt()
    gap = (gradients[0] - gradients[1]).abs()
    assert (gap < 6 * spread / count**0.5 + 2 * each.abs().amax(0) / count).all()
    torch.testing.assert_close(gradients[1], -(q - p) @ HEAD.weight)


def test_the_exact_form_with_the_posterior_as_teacher_ascends_the_likelihood_of_the_answer():
    """Three rationales of one token, the answer z mod 2 = 0: the identity's worked numbers."""
    head, logits = LinearHead(torch.eye(3).double()), T([0.2, -0.5, 0.7]).double()
    posterior = T([0.2, -torch.inf, 0.7]).double().softmax(-1).clamp_min(1e-300).log()
    batch = TokenBatch.from_ids([[0, 2]]).with_columns(reward=T([1.0]))
    hidden = torch.stack([logits, logits])[None].requires_grad_()
    told = torch.stack([logits, posterior])[None]
    loss = loss_of(InTRO(full_vocab=True), prepared(InTRO(), batch), hidden, told, head).loss
    found = -torch.autograd.grad(loss, hidden)[0][0, 1]
    wanted = T([0.0596, -0.1579, 0.0983]).double()
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=0)
    p = logits.clone().requires_grad_()
    truth = torch.autograd.grad(p.softmax(-1)[[0, 2]].sum().log(), p)[0]
    torch.testing.assert_close(found, truth, atol=1e-6, rtol=0)


def test_a_hint_without_effect_teaches_nothing_on_average():
    batch = prepared(InTRO(), rollouts([3, 2], [1.0, 1.0], [0, 0]))
    hidden = numbers(*batch.shape, D, seed=7).requires_grad_()
    exact = loss_of(InTRO(full_vocab=True), batch, hidden, hidden.detach())
    assert exact.loss.abs() < 1e-12
    assert torch.autograd.grad(exact.loss, hidden)[0].abs().max() < 1e-12
    sampled = loss_of(InTRO(), batch, hidden, hidden.detach())
    assert sampled.metrics["feedback"].item() == pytest.approx(1)


def test_without_a_right_rationale_there_is_nothing_to_learn():
    batch = prepared(InTRO(), rollouts([3, 2], [0.0, -1.0], [0, 0]))
    assert not batch.target.any()
    hidden = numbers(*batch.shape, D).requires_grad_()
    for goal in (InTRO(), InTRO(full_vocab=True)):
        loss = loss_of(goal, batch, hidden, hidden.detach()).loss
        assert loss == 0
        assert (torch.autograd.grad(loss, hidden)[0] == 0).all()


@pytest.mark.parametrize("hint", [(), (20, 21, 22)])
def test_the_hinted_distributions_stand_where_the_rationales_tokens_do(tiny_llama, hint):
    """Of a real model, with prompts of several lengths and hints of several lengths."""
    model = copy.deepcopy(tiny_llama)
    rows = [([5, 6, 7], [8, 9, 10]), ([4], [11, 12]), ([13, 14], [15])]
    hints = [[20], [21, 22], []]
    batch = TokenBatch.from_ids(
        [p + c for p, c in rows], [[False] * len(p) + [True] * len(c) for p, c in rows]
    ).with_columns(reward=torch.ones(3), hint=T([[*h, *[-1] * (2 - len(h))] for h in hints]))
    goal = InTRO(candidates=1, hint=hint)
    scores = compute_scores(goal, batch, model, needs=goal.rollout_needs, grad=False)
    ready = goal.prepare(batch, scores.policy, **scores.others)
    found = compute_loss(goal, ready, model).loss
    means = []
    for (prompt, answer), own in zip(rows, hints, strict=True):
        values = []
        for before in (prompt, [*prompt, *(hint or own)]):
            logits = model(T([[*before, *answer]])).logits[0].log_softmax(-1)
            values.append(logits[len(before) - 1 : -1].gather(-1, T(answer)[:, None])[:, 0])
        plain, known = values
        means.append(((known - plain).exp().clamp(max=200).detach() * plain).mean())
    torch.testing.assert_close(found, -torch.stack(means).mean(), rtol=1e-3, atol=1e-4)


def test_bad_settings_are_refused():
    for wrong in ({"candidates": 0}, {"clip": 0.0}):
        with pytest.raises(InputError):
            InTRO(**wrong)
    batch = prepared(InTRO(), rollouts([1], [1.0], [0]))
    with pytest.raises(InputError, match="hint"):
        InTRO().views(batch)
