"""Rollouts made by hand, for the tests of objectives on a policy's own completions."""

from collections.abc import Mapping
from typing import Any

import torch

from tokenry.core.batch import TokenBatch
from tokenry.core.scores import Scores

LENGTHS = (2, 4, 7, 1, 3, 5)
REWARDS = (1.0, 0.0, 0.25, 2.0, 2.0, -1.0)
GROUPS = (4, 9, 4, 9, 4, 9)


def rollouts(
    lengths=LENGTHS, rewards=REWARDS, group=GROUPS, ids=None, side: Any = "right", **columns
):
    """A batch of completions behind one-token prompts, with its rewards, float64."""
    ids = [list(range(1, 1 + n)) for n in lengths] if ids is None else ids
    batch = TokenBatch.from_ids(
        [[11, *row] for row in ids],
        [[False] + [True] * len(row) for row in ids],
        group=list(group),
        pad_id=0,
        padding_side=side,
    )
    return batch.with_columns(reward=torch.tensor(rewards, dtype=torch.float64))


def random_tokens(batch, seed, scale=1.0):
    """Numbers [B, T] that stand on targets."""
    generator = torch.Generator().manual_seed(seed)
    values = scale * torch.randn(batch.shape, generator=generator, dtype=torch.float64)
    return torch.where(batch.target, values, 0.0)


def on(batch, rows):
    """Numbers [B, T] from one list for each row, on its targets."""
    values = torch.zeros(batch.shape, dtype=torch.float64)
    values[batch.target] = torch.tensor([x for row in rows for x in row], dtype=torch.float64)
    return values


def prepared(goal, batch, old=None, modules=None, **fields):
    """The rollouts as their sampling policy leaves them."""
    old = random_tokens(batch, 1) - 2 if old is None else old
    own = Scores(batch.ids, batch.target, logprob=old, **fields)
    others: Mapping[str, Any] = {} if modules is None else {"modules": modules}
    return goal.prepare(batch, own, **others)


def step(goal, ready, log_ratio, modules=None, **fields):
    """Loss and its gradient in log pi, for a policy that has moved by `log_ratio`."""
    leaf = (ready.column("old_logprob") + log_ratio).detach().requires_grad_()
    own = Scores(ready.ids, ready.target, logprob=leaf, **fields)
    others: Mapping[str, Any] = {} if modules is None else {"modules": modules}
    result = goal(ready, own, **others)
    return result.loss.detach(), torch.autograd.grad(result.loss, leaf)[0], result.metrics


def assert_same(one, other, moves=(0.0, 0.05, 0.4), batch=None, **fields):
    """The same loss and gradient, to 1e-10, on and off policy; fields: of the sampling's scores."""
    batch = rollouts() if batch is None else batch
    for seed, scale in enumerate(moves):
        shift = random_tokens(batch, 20 + seed, scale)
        results = []
        for goal in (one, other):
            modules = goal.modules(None)
            ready = prepared(goal, batch, modules=modules, **fields)
            results.append(step(goal, ready, shift, modules))
        torch.testing.assert_close(results[0][0], results[1][0], rtol=0, atol=1e-10)
        torch.testing.assert_close(results[0][1], results[1][1], rtol=0, atol=1e-10)
        assert results[1][1].abs().max() > 1e-3


def assert_gradient(by_hand, goal, ready, shift, modules=None, atol=1e-7):
    """Loss and gradient against those of `by_hand(log-ratios [B, T] with gradient)`."""
    loss, gradient, _ = step(goal, ready, shift, modules)
    leaf = shift.clone().requires_grad_()
    wanted = by_hand(leaf)
    torch.testing.assert_close(loss, wanted.detach(), rtol=0, atol=atol)
    torch.testing.assert_close(gradient, torch.autograd.grad(wanted, leaf)[0], rtol=0, atol=atol)
