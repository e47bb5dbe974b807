"""Training small transformers on their own samples: the toy loop that on-policy papers share.

    sample completions of prompts -> reward -> objective.prepare -> one or more updates -> again

The same objectives, scores and rollouts as in `ObjectiveTrainer`, without data sets, devices or
checkpoints: everything a paper at laptop scale needs, and nothing that would slow it down.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from tokenry.core.batch import TokenBatch
from tokenry.core.errors import InputError
from tokenry.learn.compute import compute_loss, compute_scores
from tokenry.learn.fit import fit
from tokenry.learn.objective import is_on_policy
from tokenry.learn.policy.rollouts import RolloutSettings
from tokenry.learn.policy.sources.base import Prompts as Asked
from tokenry.learn.policy.sources.base import RolloutSource
from tokenry.learn.policy.sources.plain import PlainSampling
from tokenry.learn.preference.pairs import sequence_sum
from tokenry.learn.reference import FrozenModel, Reference

Prompts = Tensor | Callable[[int, torch.Generator], Tensor]
Reward = Callable[[TokenBatch], Tensor]
PLAIN = PlainSampling()


@dataclass(frozen=True)
class OnPolicyPoint:
    """One step: its rollouts, measured *before* the update that they led to.

    samples: completions drawn so far. reward: mean of this step's, one per reward function. length:
    mean tokens of a completion. kl: mean log-ratio of the completions to the reference, an estimate
    of KL(policy || reference) in nats; None when no reference was scored. observed: what `observe`
    said about the rollouts. metrics: the loss's, of the last update.
    """

    samples: int
    reward: tuple[float, ...]
    length: float
    kl: float | None
    observed: dict[str, float] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)


def train_on_policy(
    objective: Any,
    policy: Any,
    prompts: Prompts,
    reward: Reward | None,
    reference: Any = None,
    *,
    frozen: Mapping[str, Any] | None = None,
    modules: nn.Module | None = None,
    steps: int = 60,
    batch_size: int = 64,
    samples: int = 1,
    max_new_tokens: int = 12,
    eos: int | None = None,
    updates: int = 1,
    source: RolloutSource = PLAIN,
    learning_rate: float = 1e-3,
    seed: int = 0,
    observe: Callable[[TokenBatch], dict[str, float]] | None = None,
    measure: Callable[[int, Any], Any] | None = None,
    every: int = 1,
) -> tuple[Any, list[OnPolicyPoint]]:
    """Train a copy of `policy` on its own samples.

    The same seed gives every objective the same prompts and the same random numbers.

    Args:
        objective: one that learns from rollouts.
        prompts: [N, P] ids to draw from, or a function (count, generator) -> [count, P].
        reward: a function of the rollouts that gives [B], or [B, n] for n rewards; a row's
            completion is `batch.ids[row][batch.target[row]]`. None: an objective without rewards.
        reference: models (or References), kept as they are.
        frozen: models (or References), kept as they are.
        modules: the objective's own weights; None lets the objective make them.
        batch_size: rollouts of a step, `samples` of each prompt.
        eos: the token that ends a completion and belongs to it; None: only max_new_tokens ends it.
        updates: optimizer steps on each step's rollouts.
        source: where they come from; it may give other numbers of rows.
        observe: measures the rollouts of every step, at no cost in samples.
        measure: (steps done, policy), called before the first step, after each `every` of them and
            after the last.

    Returns:
        The trained copy, in evaluation mode, and every step's measurements.

    Raises:
        InputError: an objective that does not learn from rollouts, or a batch_size that is not a
            multiple of `samples`.
    """
    if not is_on_policy(objective):
        raise InputError(f"{type(objective).__name__} does not learn from rollouts: no `prepare`")
    if batch_size % samples:
        raise InputError(f"batch_size={batch_size} is not a multiple of samples={samples}")
    policy = copy.deepcopy(policy).requires_grad_(True).train()
    if modules is None:
        modules = objective.modules(policy)
    models = {"reference": reference, **(frozen or {})}
    references = {name: _as_reference(model) for name, model in models.items() if model is not None}
    scoring: dict[str, Any] = {"reference": references.pop("reference", None), "frozen": references}
    scoring["modules"] = modules
    needs = objective.rollout_needs
    points: list[OnPolicyPoint] = []
    prepared: list[TokenBatch] = []  # the rollouts of the step, ready for its updates

    def roll_out_and_prepare(generator: torch.Generator, progress: Tensor) -> TokenBatch:
        batch = roll_out(
            policy,
            _draw(prompts, batch_size // samples, generator),
            samples=samples,
            max_new_tokens=max_new_tokens,
            eos=eos,
            seed=int(torch.randint(2**31, (1,), generator=generator)),
            source=source,
            progress=float(progress),
        )
        rewards = torch.zeros(len(batch.ids)) if reward is None else reward(batch).float()
        batch = batch.with_columns(reward=rewards, progress=progress.expand(len(batch.ids)))
        scores = compute_scores(objective, batch, policy, **scoring, needs=needs, grad=False)
        points.append(_point((len(points) + 1) * batch_size, batch, scores, observe))
        with torch.no_grad():
            return objective.prepare(batch, scores.policy, scores.reference, **scores.others)

    def loss(update: int, generator: torch.Generator) -> Tensor:
        done = torch.full((1,), update / (steps * updates))
        if update % updates == 0:
            prepared[:] = [roll_out_and_prepare(generator, done)]
        batch = prepared[0].with_columns(progress=done.expand(len(prepared[0].ids)))
        result = compute_loss(objective, batch, policy, **scoring)
        points[-1].metrics.update(
            {name: float(value.float().mean()) for name, value in result.metrics.items()}
        )
        return result.loss

    if measure:
        measure(0, policy)
    fit(
        loss,
        [*policy.parameters(), *([] if modules is None else modules.parameters())],
        steps=steps * updates,
        learning_rate=learning_rate,
        seed=seed,
        observe=None if measure is None else lambda done, _: measure(done // updates, policy),
        every=every * updates,
    )
    return policy.eval(), points


def samples_until(path: Sequence[tuple[float, float]], level: float) -> float:
    """Samples at which a path of (samples, reward) first reaches a reward, linear between its
    points; all of the path's where it never does."""
    if path[0][1] >= level:
        return path[0][0]
    for (before, low), (after, high) in pairwise(path):
        if high >= level:
            return before + (after - before) * (level - low) / (high - low)
    return path[-1][0]


def roll_out(
    model: Any,
    prompts: Tensor,
    *,
    samples: int = 1,
    max_new_tokens: int = 12,
    eos: int | None = None,
    seed: int = 0,
    source: RolloutSource = PLAIN,
    progress: float = 0.0,
) -> TokenBatch:
    """`samples` completions of each prompt [B, P] at temperature 1, drawn with this seed."""
    settings = RolloutSettings(samples=samples, max_new_tokens=max_new_tokens)
    there = torch.ones_like(prompts, dtype=torch.bool)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        asked = Asked(prompts, there, () if eos is None else (eos,), progress=progress)
        return source(model, asked, settings)


def _draw(prompts: Prompts, count: int, generator: torch.Generator) -> Tensor:
    if isinstance(prompts, Tensor):
        return prompts[torch.randint(len(prompts), (count,), generator=generator)]
    return prompts(count, generator)


def _as_reference(model: Any) -> Reference:
    return FrozenModel(model) if isinstance(model, nn.Module) else model


def _point(
    samples: int,
    batch: TokenBatch,
    scores: Any,
    observe: Callable[[TokenBatch], dict[str, float]] | None,
) -> OnPolicyPoint:
    reward = batch.column("reward")
    kl = None
    own, other = scores.policy.logprob, getattr(scores.reference, "logprob", None)
    if own is not None and other is not None:
        kl = float(sequence_sum(own - other, batch).mean())
    return OnPolicyPoint(
        samples,
        reward=tuple(reward.reshape(len(reward), -1).mean(0).tolist()),
        length=float(batch.target.sum(-1).float().mean()),
        kl=kl,
        observed={} if observe is None else observe(batch),
    )
