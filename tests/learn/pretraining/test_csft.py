"""CSFT: worked targets of signed sums, divergences by hand, and ordinary chains as a limit."""

import copy

import pytest
import torch

from tokenry.core.batch import TokenBatch
from tokenry.core.errors import ShapeError
from tokenry.core.scores import Scores
from tokenry.learn.compute import compute_loss
from tokenry.learn.pretraining.csft import CSFT, trace_entropy, traced_batch
from tokenry.tasks.worlds.signed_sums import smallest_sum, step_targets, traces

PROMPTS, ANSWERS = [[5, 6], [7]], [[9], [8, 1]]
TRACES = [[[10, 11], [10, 12], [13, 12], [10, 12]], [[14, 14]] * 4]


def test_the_worked_traces_give_the_worked_targets():
    """(3, 1, 4, 2): the shares of the traces' tokens are alpha*; the answer is 0."""
    found = traces((3, 1, 4, 2))
    target = step_targets((3, 1, 4, 2))
    batch = traced_batch([[1]], [[[36 + v for v in t[:-1]] for t in found]], [[36]])
    mixture = batch.column("mixture")
    assert mixture.shape == (1, 5, 16)
    for step in range(3):
        share = torch.bincount(mixture[0, 1 + step], minlength=73) / 16
        torch.testing.assert_close(share, target[step])
    assert trace_entropy(mixture)[0, 1].item() == pytest.approx(0.6931472)  # {3, -3: 1/2}
    assert trace_entropy(mixture)[0, 2].item() == pytest.approx(1.3862944)  # {4, -4, 2, -2: 1/4}
    assert (trace_entropy(mixture)[0, [0, 4]] == 0).all()
    assert smallest_sum((3, 1, 4, 2)) == 0


def test_it_is_the_divergence_at_thoughts_and_likelihood_at_answers(tiny_llama):
    """Values and gradients from embeddings that are mixed here."""
    model = copy.deepcopy(tiny_llama)
    batch = traced_batch(PROMPTS, TRACES, ANSWERS)
    found = compute_loss(CSFT(), batch, model)
    found.loss.backward()
    ours = {name: weight.grad.clone() for name, weight in model.named_parameters()}
    model.zero_grad()
    table, rows = model.get_input_embeddings().weight, []
    for prompt, own, answer in zip(PROMPTS, TRACES, ANSWERS, strict=True):
        steps = [torch.tensor(step) for step in zip(*own, strict=True)]
        alpha = torch.stack([torch.bincount(step, minlength=len(table)) / 4 for step in steps])
        read = torch.cat([table[torch.tensor(prompt)], alpha @ table, table[torch.tensor(answer)]])
        logq = model(inputs_embeds=read[None]).logits[0].log_softmax(-1)
        first = len(prompt) - 1
        kl = torch.special.xlogy(alpha, alpha) - alpha * logq[first : first + len(alpha)]
        behind = logq[first + len(alpha) : -1]
        rows.append(kl.sum() - behind.gather(-1, torch.tensor(answer)[:, None]).sum())
    wanted = torch.stack(rows).mean()
    wanted.backward()
    torch.testing.assert_close(found.loss, wanted, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        found.metrics["loss"], torch.stack(rows).detach(), rtol=1e-4, atol=1e-4
    )
    for name, weight in model.named_parameters():
        torch.testing.assert_close(ours[name], weight.grad, rtol=2e-3, atol=1e-4)


def test_with_one_trace_it_is_an_ordinary_chain_of_thought(tiny_llama):
    one = traced_batch(PROMPTS, [own[:1] for own in TRACES], ANSWERS)
    rows = [p + o[0] + a for p, o, a in zip(PROMPTS, TRACES, ANSWERS, strict=True)]
    own = zip(PROMPTS, rows, strict=True)
    plain = TokenBatch.from_ids(rows, [[n >= len(p) for n in range(len(r))] for p, r in own])
    losses = [compute_loss(CSFT(), b, tiny_llama, grad=False).loss for b in (one, plain)]
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-4, atol=1e-4)


def test_a_policy_that_says_the_targets_has_no_loss():
    """KL is 0 exactly at alpha*; elsewhere above."""
    batch = traced_batch([[1]], [[[2], [3], [3], [3]]], [[4]])
    logprob = torch.zeros(batch.shape)
    logprob[0, 1] = (torch.tensor([0.25, 0.75, 0.75, 0.75]).log()).mean()
    loss = CSFT()(batch, Scores(batch.ids, batch.target, logprob=logprob)).loss
    assert loss.abs() < 1e-6
    logprob[0, 1] = torch.tensor([0.5]).log().mean()
    assert CSFT()(batch, Scores(batch.ids, batch.target, logprob=logprob)).loss > 0.1


def test_ragged_traces_are_refused():
    with pytest.raises(ShapeError):
        traced_batch(PROMPTS, [TRACES[0], TRACES[1][:2]], ANSWERS)
    with pytest.raises(ShapeError):
        traced_batch(PROMPTS[:1], [[[1, 2], [3]]], ANSWERS[:1])
