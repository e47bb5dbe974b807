"""Terms of a policy gradient: other objectives beside the surrogate, on the same completions, on
the same under another prompt, or on batches of another source.

    loss = policy gradient + weight * objective( completions | batches of `source` )

    Auxiliary(SFT(), weight=0.1, source=Rehearsal(rows))      texts of old, against forgetting
    Hinted(ids)                                               what the policy says with a hint
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tokenry.core.batch import TokenBatch
from tokenry.core.checks import within
from tokenry.core.errors import InputError
from tokenry.learn.objective import DATA, View, view_of
from tokenry.learn.policy.rollout_batch import RolloutBatch
from tokenry.model.score import MIXTURE


@dataclass(frozen=True)
class Auxiliary:
    """Another objective's loss, as a term.

    Args:
        objective: what is added; it must need no columns of the data that the rollouts lack.
        weight: its factor, in [0, inf).
        source: rollouts -> the batch that it is about; None: the rollouts themselves.
        name: of that batch, in needs ("policy@NAME.logprob") and metrics.
    """

    objective: Any
    weight: float = 1.0
    source: Callable[[RolloutBatch], TokenBatch] | None = None
    name: str = "other"

    def __post_init__(self) -> None:
        within(self, "[0, inf)", "weight")

    @property
    def axes(self) -> tuple[Any, ...]:
        return () if self.source is None else (self.source,)

    @property
    def needs(self) -> tuple[str, ...]:
        if self.source is None:
            return tuple(self.objective.needs)
        return tuple(
            view_of(need, self.name)
            for need in self.objective.needs
            if need.partition(".")[0] not in DATA
        )

    def __getattr__(self, name: str) -> Any:
        """What the objective says about the divergence, or the likeliest tokens, that it needs."""
        asked = {"divergence": ".divergence", "top_k": ".topk"}.get(name)
        if asked and any(asked in need for need in self.objective.needs):
            return getattr(self.objective, name)
        raise AttributeError(name)

    def views(self, rollouts: RolloutBatch) -> dict[str, View]:
        if self.source is None:
            return {}
        return {self.name: View(self.source(rollouts), aligned=False)}

    def __call__(self, rollouts: RolloutBatch) -> Tensor:
        given = {"policy": rollouts.policy, **rollouts.others}
        batch, ending = rollouts.batch, ""
        if self.source is not None:
            batch, ending = given[f"batch@{self.name}"], f"@{self.name}"
        scores = {
            name.removesuffix(ending): value
            for name, value in given.items()
            if name.endswith(ending) and (ending or "@" not in name)
        }
        scores.pop("batch", None)
        result = self.objective(
            batch, scores.pop("policy"), scores.pop("reference", None), **scores
        )
        for name, value in result.metrics.items():
            prefix = f"{self.name}/" if self.source is not None else ""
            rollouts.report(prefix + name, value)
        return self.weight * result.loss


@dataclass(frozen=True)
class Rehearsal:
    """A source of batches: rows of old, `size` at a time and in turn.

    How far it has come is checkpointed with the training.

    Args:
        rows: prompt and completion of each, as ids; the completion counts.
        size: rows of a batch, >= 1.
    """

    rows: Sequence[tuple[Sequence[int], Sequence[int]]]
    size: int = 8

    def __post_init__(self) -> None:
        within(self, "[1, inf)", "size", integer=True)
        if not self.rows or not all(prompt and completion for prompt, completion in self.rows):
            raise InputError("a rehearsal needs rows, each with a prompt and a completion")

    def module(self, model: Any) -> nn.Module:
        made = nn.Module()
        made.register_buffer("turn", torch.zeros((), dtype=torch.long))
        return made

    def __call__(self, rollouts: RolloutBatch) -> TokenBatch:
        state = rollouts.module(self)
        first = int(state.turn)  # type: ignore[arg-type]
        chosen = [self.rows[(first + n) % len(self.rows)] for n in range(self.size)]
        if state.training:  # an evaluation leaves no trace
            state.turn.add_(self.size)  # type: ignore[operator, union-attr]
        return TokenBatch.from_ids(
            [[*prompt, *completion] for prompt, completion in chosen],
            [[False] * len(prompt) + [True] * len(completion) for prompt, completion in chosen],
        ).to(rollouts.batch.ids.device)


@dataclass(frozen=True)
class Hinted:
    """A second conditioning, the view "hinted": the same completions behind prompts that say more.

    An axis that has it among its `axes` may need "policy@hinted.logprob", which stands where the
    rollouts' own log-probabilities do.

    Args:
        ids: the hint, behind every prompt. column: instead, of the rollouts, [B, H] ids, each row's
            own hint, -1 where it is shorter.
        name: of the view.
    """

    ids: tuple[int, ...] = ()
    column: str | None = None
    name: str = "hinted"

    def __post_init__(self) -> None:
        if bool(self.ids) == (self.column is not None):
            raise InputError("a hint is either ids for all prompts, or a column of the rollouts")

    def views(self, rollouts: RolloutBatch) -> dict[str, View]:
        return {self.name: View(self(rollouts))}

    def __call__(self, rollouts: RolloutBatch) -> TokenBatch:
        batch = rollouts.batch
        if MIXTURE in batch.columns:
            raise InputError("a hint would lose the mixed embeddings of these rollouts")
        rows, targets = [], []
        for row in range(len(batch.ids)):
            real = batch.attention[row]
            ids, target = batch.ids[row][real].tolist(), batch.target[row][real].tolist()
            hint = list(self.ids)
            if self.column is not None:
                hint = [int(token) for token in batch.column(self.column)[row] if token >= 0]
            first = target.index(True) if True in target else len(ids)
            rows.append(ids[:first] + hint + ids[first:])
            targets.append(target[:first] + [False] * len(hint) + target[first:])
        return TokenBatch.from_ids(rows, targets).to(batch.ids.device)
