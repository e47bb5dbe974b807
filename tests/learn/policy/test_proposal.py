"""Proposals: the gradient against enumeration, and training that raises the acceptance rate."""

import copy
import math

import pytest
import torch

from tokenry.core.errors import ConstraintError, InputError
from tokenry.decode.constraints.base import Anything, Constraint
from tokenry.lab.toy_model import toy_model
from tokenry.learn.policy.proposal import dpg_loss, policy_logprobs, train_proposal

END, MARK, START, HINT = 6, 5, 7, 8


def test_the_gradient_is_that_of_the_exact_divergence():
    """Every text as often as q = pi draws it, Z exact: the gradient of KL(g || pi)."""
    generator = torch.Generator().manual_seed(0)
    base, leaf = torch.randn(2, 8, generator=generator, dtype=torch.float64)
    base, leaf = base.log_softmax(0), leaf.requires_grad_()
    b = torch.tensor([1.0, 0, 1, 1, 0, 0, 1, 0], dtype=torch.float64)
    target = base + b.log()
    log_z = target.logsumexp(0)
    policy = leaf.log_softmax(0)
    own = policy.detach()
    loss = (own.exp() * dpg_loss(policy, target, own, log_z)).sum()
    found = torch.autograd.grad(loss, leaf)[0]
    policy = leaf.log_softmax(0)
    g = (target - log_z).exp()
    divergence = torch.where(b > 0, g * (g.clamp_min(1e-300).log() - policy), 0.0).sum()
    torch.testing.assert_close(found, torch.autograd.grad(divergence, leaf)[0])
    # scaling P and Z together changes nothing
    policy = leaf.log_softmax(0)
    scaled = (own.exp() * dpg_loss(policy, target + 3.0, own, log_z + 3.0)).sum()
    torch.testing.assert_close(torch.autograd.grad(scaled, leaf)[0], found)


def test_samples_of_another_distribution_give_the_same_gradient():
    base, leaf, other = torch.randn(3, 6, generator=torch.Generator().manual_seed(1)).double()
    base, q = base.log_softmax(0), other.log_softmax(0)
    leaf.requires_grad_()
    gradients = []
    for proposal in (leaf.detach().log_softmax(0), q):
        losses = dpg_loss(leaf.log_softmax(0), base, proposal, 0.0)
        gradients.append(torch.autograd.grad((proposal.exp() * losses).sum(), leaf)[0])
    torch.testing.assert_close(gradients[0], gradients[1])


def test_a_violation_weighs_nothing():
    policy = torch.tensor([-1.0, -2.0], requires_grad=True)
    losses = dpg_loss(policy, torch.tensor([-math.inf, -1.0]), policy.detach(), -0.5)
    assert losses[0] == 0
    losses.sum().backward()
    assert policy.grad[0] == 0
    assert policy.grad[1] < 0


def test_log_probabilities_are_those_of_each_text_alone(tiny_model):
    texts, ended = [[7], [8, 2, 40], [11, 12]], [True, False, True]
    found = policy_logprobs(tiny_model, [5, 9], texts, ended, [1, 6])
    assert found.requires_grad
    for text, done, value in zip(texts, ended, found.tolist(), strict=True):
        with torch.no_grad():
            logprobs = tiny_model(torch.tensor([[5, 9, *text]])).logits[0, 1:].log_softmax(-1)
        truth = sum(float(logprobs[place, token]) for place, token in enumerate(text))
        truth += float(logprobs[len(text), [1, 6]].logsumexp(0)) if done else 0.0
        assert value == pytest.approx(truth, abs=1e-3)


class Marked(Constraint):
    """Texts with a MARK in them."""

    vocab_size, eos = 9, frozenset([END])

    def initial(self):
        return _MarkedState(False, False)


class _MarkedState:
    mask_cost = 1.0

    def __init__(self, met, finished):
        self.met, self.finished = met, finished

    @property
    def complete(self):
        return self.met and not self.finished

    def allows(self, token):
        return not self.finished and (self.met if token == END else 0 <= token < END)

    def mask(self):
        return torch.tensor([self.allows(token) for token in range(9)])

    def advance(self, token):
        return _MarkedState(self.met or token == MARK, token == END)


@pytest.fixture(scope="module")
def writer():
    """A model that seldom writes a MARK after START, and often after HINT."""
    model = toy_model(9, 16, seed=0, width=32, start=START)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    wanted = torch.full((9,), -9.0)
    for _ in range(60):
        ids = torch.randint(0, END, (32, 6))
        loss = 0.0
        for start, mark in ((START, 0.01), (HINT, 0.3)):
            wanted = torch.tensor([0.8 - mark] * 9) / 5
            wanted[MARK], wanted[END], wanted[7:] = mark, 0.2, 1e-6
            rows = torch.cat([torch.full((32, 1), start), ids], 1)
            logprobs = model(rows).logits.log_softmax(-1)
            loss = loss - (wanted * logprobs).sum(-1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval().requires_grad_(False)


def test_training_raises_the_acceptance_and_leaves_the_model_alone(writer):
    before = copy.deepcopy(writer.state_dict())
    options = {"samples": 64, "max_new_tokens": 8, "learning_rate": 5e-3, "seed": 1}
    seen = []
    proposal, points = train_proposal(
        (writer, None),
        [START],
        Marked(),
        warm_prompt=[HINT],
        warm_texts=64,
        warm_steps=12,
        steps=15,
        observe=seen.append,
        **options,
    )
    assert seen == points
    assert [point.step for point in points] == list(range(1, 16))
    _, cold = train_proposal((writer, None), [START], Marked(), steps=1, warm_steps=0, **options)
    assert cold[0].acceptance < 0.2
    assert points[-1].acceptance > 3 * max(cold[0].acceptance, 0.05)
    assert all(math.isfinite(point.kl) for point in points)  # a noisy estimate from 64 texts
    assert not proposal.training
    for name, weight in writer.state_dict().items():
        assert torch.equal(weight, before[name])


def test_an_adapter_is_trained_on_top_of_the_same_weights(writer):
    from peft import LoraConfig, get_peft_model

    shared = copy.deepcopy(writer)
    torch.manual_seed(0)
    adapted = get_peft_model(shared, LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
    before = {name: weight.clone() for name, weight in adapted.state_dict().items()}
    trained, points = train_proposal(
        (shared, None),
        [START],
        Marked(),
        model=adapted,
        warm_prompt=[HINT],
        warm_texts=16,
        warm_steps=5,
        steps=4,
        samples=32,
        max_new_tokens=8,
        learning_rate=1e-2,
    )
    assert trained is adapted
    changed = {n for n, w in trained.state_dict().items() if not torch.equal(w, before[n])}
    assert changed
    assert all("lora" in name for name in changed)
    # the target is the model without the adapter: its Z stays near that of the first estimates
    assert all(point.z < 0.3 for point in points)


def test_what_cannot_be_trained_is_said(writer):
    with pytest.raises(InputError, match="samples"):
        train_proposal((writer, None), [START], Marked(), samples=0)
    frozen = copy.deepcopy(writer).requires_grad_(False)
    with pytest.raises(InputError, match="requires_grad"):
        train_proposal((writer, None), [START], Marked(), model=frozen)
    with pytest.raises(ConstraintError, match="none of 20"):
        train_proposal(
            (writer, None), [START], Never(), warm_prompt=[HINT], max_trials=20, max_new_tokens=4
        )


class Never(Anything):
    def __init__(self):
        super().__init__(9, [END])

    def initial(self):
        return _MarkedState(False, True)
