"""A policy of the language `tasks.worlds.moods`, trained on two rewards of unequal scale.

Progress is each reward's share of what it could still gain over the base policy.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from statistics import fmean
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tokenry.core.aggregate import aggregate
from tokenry.core.batch import TokenBatch
from tokenry.core.scores import Scores
from tokenry.lab.on_policy_world import roll_out, train_on_policy
from tokenry.lab.toy_training import fit_toy
from tokenry.learn.objective import Loss
from tokenry.learn.policy.min_norm import mgda_weights
from tokenry.learn.policy.pama import PAMA
from tokenry.learn.policy.surrogate import clip_surrogate, importance_ratio
from tokenry.tasks.worlds.moods import END, LONGEST, START, VOCABULARY, MoodLanguage, rewards

SAMPLING: dict[str, Any] = {"max_new_tokens": LONGEST, "eos": END}


@dataclass(frozen=True)
class ExactMGDA(PAMA):
    """The baseline: each reward's own gradient by a backward pass of its own, mixed to the shortest
    vector in their hull. PPO's surrogate with negative advantages, as published."""

    def modules(self, model: Any) -> nn.ModuleDict:
        made = super().modules(model)
        made["policy"] = _Unregistered(model)
        return made

    def __call__(
        self,
        batch: TokenBatch,
        policy: Scores,
        reference: Scores | None = None,
        modules: nn.ModuleDict | None = None,
        **others: Any,
    ) -> Loss:
        assert modules is not None
        ratio = importance_ratio(policy.need("logprob"), batch.column("old_logprob"), batch.target)
        losses = [
            -aggregate(
                clip_surrogate(ratio, advantage, self.clip, self.clip), batch.target, "token-mean"
            )
            for advantage in batch.column("advantage").unbind(-1)
        ]
        weights = list(modules["policy"].models[0].parameters())  # type: ignore[union-attr]
        gradients = (torch.autograd.grad(loss, weights, retain_graph=True) for loss in losses)
        flat = [torch.cat([part.flatten() for part in gradient]) for gradient in gradients]
        mixture = mgda_weights(torch.stack(flat))
        return Loss((mixture * torch.stack(losses)).sum())


class _Unregistered(nn.Module):
    """Keeps a model at hand without making its weights weights of its own."""

    def __init__(self, model: Any):
        super().__init__()
        self.models = (model,)


class TwoRewardRun(NamedTuple):
    """What training gave.

    path: both rewards, each in [0, 1], of every step's samples. shares: what each reward gained of
    what it could, from the last steps. passes: backward passes of an update.
    """

    path: list[tuple[float, float]]
    shares: tuple[float, float]
    passes: float


@dataclass(frozen=True)
class TwoRewardBench:
    """A base policy fitted to the language, and training from it.

    scales: what the two rewards are multiplied by. fit_steps: of the base. counted: texts that the
    base is measured on. last: steps whose rollouts measure the end of a run.
    """

    seed: int
    scales: tuple[float, float] = (10.0, 1.0)
    fit_steps: int = 120
    counted: int = 1000
    last: int = 5

    @cached_property
    def base(self) -> Any:
        language, shape = MoodLanguage(self.seed), (VOCABULARY, 1 + LONGEST, self.seed)
        return fit_toy(language.texts, *shape, data=language, steps=self.fit_steps, width=48)

    @cached_property
    def before(self) -> list[float]:
        """Both rewards of the base."""
        prompts = torch.full((self.counted, 1), START)
        return rewards(roll_out(self.base, prompts, seed=self.seed, **SAMPLING)).mean(0).tolist()

    def train(self, objective: Any, **settings: Any) -> TwoRewardRun:
        """One run from the base; settings of `train_on_policy`."""
        passes: list[Tensor] = []

        def watch(step: int, policy: Any) -> None:
            if step == 0:  # every backward pass comes by every weight
                next(policy.parameters()).register_hook(passes.append)

        _, points = train_on_policy(
            objective,
            self.base,
            torch.tensor([[START]]),
            lambda batch: rewards(batch) * torch.tensor(self.scales),
            self.base,
            seed=self.seed,
            measure=watch,
            **SAMPLING,
            **settings,
        )
        one, two = self.scales
        path = [(point.reward[0] / one, point.reward[1] / two) for point in points]
        end = [fmean(values) for values in zip(*path[-self.last :], strict=True)]
        a, b = ((z - y) / (1 - y) for y, z in zip(self.before, end, strict=True))
        return TwoRewardRun(path, (a, b), len(passes) / len(points))
