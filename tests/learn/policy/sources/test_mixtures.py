"""Thoughts of several tokens at once: what is drawn, what is read, and how likely it was."""

import copy

import pytest
import torch

from tokenry.core.batch import TokenBatch
from tokenry.core.errors import InputError
from tokenry.learn.policy.rollout_batch import RolloutBatch
from tokenry.learn.policy.rollouts import RolloutSettings
from tokenry.learn.policy.sources.base import Prompts
from tokenry.learn.policy.sources.mixed import Mixed
from tokenry.learn.policy.sources.mixtures import Mixtures
from tokenry.learn.policy.terms import Hinted
from tokenry.model.score import score

TEXTS = [[5, 6, 7], [8]]


def prompts():
    batch = TokenBatch.from_ids(TEXTS, padding_side="left")
    return Prompts(batch.ids, batch.attention, (1,), 0)


def drawn(source, model, samples=3, length=6, seed=0):
    torch.manual_seed(seed)
    return source(model, prompts(), RolloutSettings(samples, length))


def by_hand(model, batch, row):
    """Log-probabilities of a row's thoughts and tokens, from embeddings that are mixed here."""
    table = model.get_input_embeddings()
    real = batch.attention[row]
    ids, mixture = batch.ids[row][real], batch.column("mixture")[row][real]
    embedded = [
        table(ids[t]) if mixture[t, 0] < 0 else table(mixture[t]).mean(0) for t in range(len(ids))
    ]
    logprob = model(inputs_embeds=torch.stack(embedded)[None]).logits[0].log_softmax(-1)
    found = []
    for t in batch.target[row][real].nonzero()[:, 0].tolist():
        choices = ids[t : t + 1] if mixture[t, 0] < 0 else mixture[t]
        found.append(logprob[t - 1, choices].mean())
    return torch.stack(found)


def test_rows_are_thoughts_and_then_an_answer(tiny_model):
    batch = drawn(Mixtures(tokens=4, thoughts=2), tiny_model)
    assert batch.group.tolist() == [0, 1] * 3
    mixture = batch.column("mixture")
    assert mixture.shape == (*batch.shape, 4)
    thoughts = mixture[..., 0] >= 0
    assert thoughts.sum(-1).tolist() == [2] * 6
    assert (thoughts & ~batch.target).sum() == 0
    assert (batch.ids[thoughts] == 0).all()
    assert batch.target.sum(-1).min() >= 3


def test_what_is_scored_is_what_the_mixed_embeddings_say(tiny_model):
    """Values and gradients, whatever the padding."""
    model = copy.deepcopy(tiny_model)
    batch = drawn(Mixtures(tokens=3, thoughts=2), model)
    found = score(model, batch, grad=True).need("logprob")
    weights = torch.randn(found.shape, generator=torch.Generator().manual_seed(1))
    (found * weights).sum().backward()
    ours = {name: weight.grad.clone() for name, weight in model.named_parameters()}
    model.zero_grad()
    total = 0.0
    for row in range(len(batch.ids)):
        own = by_hand(model, batch, row)
        torch.testing.assert_close(found[row][batch.target[row]], own, rtol=1e-3, atol=1e-3)
        total = total + (own * weights[row][batch.target[row]]).sum()
    total.backward()
    for name, weight in model.named_parameters():
        torch.testing.assert_close(ours[name], weight.grad, rtol=2e-3, atol=2e-3)


def test_a_thought_of_one_token_is_that_token(tiny_model):
    batch = drawn(Mixtures(tokens=1, thoughts=3), tiny_model)
    mixture = batch.column("mixture")[..., 0]
    plain = TokenBatch(
        torch.where(mixture >= 0, mixture, batch.ids), batch.attention, batch.target, batch.group
    )
    torch.testing.assert_close(
        score(tiny_model, batch).need("logprob"),
        score(tiny_model, plain).need("logprob"),
        rtol=1e-4,
        atol=1e-4,
    )


def test_the_draws_follow_the_policy_and_what_comes_next_has_read_their_mean(tiny_llama):
    """First thoughts of 2 x 1,500 rows; the answer's first token is likely under the mixture."""
    batch = drawn(Mixtures(tokens=2, thoughts=1), tiny_llama, samples=1500, length=2)
    first = batch.column("mixture")[:, 3]
    for number, text in enumerate(TEXTS):
        with torch.no_grad():
            p = tiny_llama(torch.tensor([text])).logits[0, -1].softmax(-1)
        own = first[batch.group == number].flatten()
        share = torch.bincount(own, minlength=len(p)) / len(own)
        bound = 6 * (p * (1 - p) / len(own)).sqrt() + 2e-3
        assert ((share - p).abs() < bound).all()
    # the answer was drawn from what scoring says: its mean surprise is the entropy
    scores = score(tiny_llama, batch, ("logprob", "entropy"))
    answers = batch.target.clone()
    answers[:, 3] = False
    gap = (scores.logprob + scores.entropy)[answers]
    assert abs(float(gap.mean())) < 6 * float(gap.std()) / len(gap) ** 0.5


def test_thoughts_without_an_answer_are_refused(tiny_llama):
    with pytest.raises(InputError, match="8 thoughts leave nothing"):
        drawn(Mixtures(), tiny_llama, length=8)
    given, own = prompts(), TokenBatch.from_ids([[5, 6], [8, 6]])
    given = Prompts(given.ids, given.attention, given.ends, 0, own)
    with pytest.raises(InputError, match="beside the data's rows"):
        Mixed(Mixtures(2, 2), 1.0)(tiny_llama, given, RolloutSettings(1, 4))
    rollouts = RolloutBatch(drawn(Mixtures(2, 2), tiny_llama))
    with pytest.raises(InputError, match="lose the mixed"):
        Hinted((3,))(rollouts)
    for wrong in ({"tokens": 0}, {"thoughts": 0}):
        with pytest.raises(InputError):
            Mixtures(**wrong)
