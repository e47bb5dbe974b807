"""Every registered on-policy objective on rollouts of a tiny model, prepared as in training."""

import re

import pytest
import torch

from role_cases import cases
from tokenry.core.batch import TokenBatch
from tokenry.learn.compute import compute_loss, compute_scores
from tokenry.learn.objective import Example, frozen_sources, is_on_policy
from tokenry.learn.objective import objective as objectives
from tokenry.learn.reference import FrozenModel


def default(kind):
    return Example(kind())


def on_policy_cases():
    """A parameter for each on-policy objective that is about plain samples, a function that makes
    it; those of other sources have tests of their own."""
    on_policy = (entry for entry in objectives if is_on_policy(entry.value))
    keys = {entry.key for entry in on_policy if entry.value().rollout_source == "plain"}
    made = cases(objectives, default)
    return [one for one in made if re.sub(r"-\d+$", "", one.id) in keys]


def completions(groups, lengths, seed=0):
    """Rows of random completions behind one prompt for each group."""
    generator = torch.Generator().manual_seed(seed)
    rows, targets = [], []
    for group, length in zip(groups, lengths, strict=True):
        own = torch.randint(5, 60, (length,), generator=generator).tolist()
        rows.append([20 + group, 21, *own])
        targets.append([False, False] + [True] * length)
    return TokenBatch.from_ids(rows, targets, group=list(groups))


class OnPolicy:
    """An objective with its models: what the trainer does to a draw, and the loss of an update."""

    def __init__(self, make, model, other):
        torch.manual_seed(0)
        example = make()
        self.goal = example.objective if isinstance(example, Example) else example
        self.model, self.reference = model, FrozenModel(other)
        self.frozen = {name: FrozenModel(other) for name in frozen_sources(self.goal)}
        self.modules = self.goal.modules(model)
        if self.modules is not None:
            self.modules.to(next(model.parameters()).dtype)

    def rewarded(self, batch, reward):
        """The rewards, several of them for objectives that compare several."""
        reward = torch.as_tensor(reward, dtype=torch.float32)
        if self.goal.num_rewards > 1:
            reward = reward[:, None].repeat(1, self.goal.num_rewards)
        return batch.with_columns(reward=reward)

    def prepared(self, batch, reward):
        options = {"frozen": self.frozen, "modules": self.modules, "grad": False}
        batch = self.rewarded(batch, reward)
        scores = compute_scores(
            self.goal,
            batch,
            self.model,
            self.reference,
            needs=self.goal.rollout_needs,
            **options,
        )
        return self.goal.prepare(batch, scores.policy, scores.reference, **scores.others)

    def gradient(self, ready, model=None):
        """The loss of an update and its gradient, one vector."""
        model = self.model if model is None else model
        options = {"frozen": self.frozen, "modules": self.modules}
        loss = compute_loss(self.goal, ready, model, self.reference, **options).loss
        if not loss.requires_grad:
            return loss, torch.zeros(1)
        weights = list(model.parameters())
        parts = torch.autograd.grad(loss, weights, allow_unused=True)
        return loss.detach(), torch.cat([part.flatten() for part in parts if part is not None])


@pytest.fixture(scope="session")
def models():
    """A policy and another model, float64, of one vocabulary."""
    from conftest import build_llama

    policy, other = build_llama().double(), build_llama().double()
    with torch.no_grad():
        generator = torch.Generator().manual_seed(1)
        for weight in other.parameters():
            weight += 0.05 * torch.randn(weight.shape, generator=generator, dtype=weight.dtype)
    return policy, other.requires_grad_(False)


__all__ = ["OnPolicy", "completions", "models", "on_policy_cases"]
