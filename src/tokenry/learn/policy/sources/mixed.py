"""Own and given completions: some prompts keep the data's completion, the others are continued.

    of each prompt:   with probability `share`   the completions that `source` draws
                      else                       the data's own, one row

share = 1 is on-policy, 0 off-policy, and what lies between is what distillation on its own outputs
is made of. Which are which says the column "sampled" [rows], 1 or 0.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from tokenry.core.batch import TokenBatch
from tokenry.core.checks import within
from tokenry.core.errors import InputError
from tokenry.learn.policy.rollouts import RolloutSettings
from tokenry.learn.policy.sources.base import Prompts, RolloutSource, rollout_source
from tokenry.learn.policy.sources.plain import PlainSampling
from tokenry.learn.settings import refusals
from tokenry.learn.user_code import user_value
from tokenry.model.score import MIXTURE


def _examples() -> list[Any]:
    return [Mixed(share=0.5), Mixed(share=0.0), Mixed()]


@rollout_source("mixed", examples=_examples)
@dataclass(frozen=True)
class Mixed:
    """The policy's completions for a share of the prompts, the data's for the others.

    Args:
        source: of the policy's own. share: of the prompts, in [0, 1].
    """

    source: RolloutSource = field(default_factory=PlainSampling)
    share: float = 1.0

    reads_data: ClassVar[bool] = True

    def __post_init__(self) -> None:
        within(self, "[0, 1]", "share")

    def __call__(self, policy: Any, prompts: Prompts, settings: RolloutSettings) -> TokenBatch:
        if prompts.completions is None:
            raise InputError(
                f"the share of own completions is {self.share}, and the data have no others: give "
                "them a completion for each prompt"
            )
        own = torch.rand(len(prompts)) < self.share
        batches = []
        if bool(own.any()):
            rows = own.nonzero()[:, 0].to(prompts.ids.device)
            drawn = self.source(policy, prompts.select(rows), settings)
            assert drawn.group is not None
            if MIXTURE in drawn.columns:
                raise InputError("thoughts of mixed embeddings do not go beside the data's rows")
            batches.append(_marked(drawn, rows[drawn.group], 1.0))
        if not bool(own.all()):
            rows = (~own).nonzero()[:, 0].to(prompts.ids.device)
            given = prompts.completions.select(rows)
            batches.append(_marked(_with_columns_of(batches, given), rows, 0.0))
        first, *others = batches
        return first.concat(others[0], prompts.pad_id) if others else first


def _marked(batch: TokenBatch, group: Tensor, sampled: float) -> TokenBatch:
    columns = batch.columns | {"sampled": torch.full(group.shape, sampled, device=group.device)}
    return TokenBatch(batch.ids, batch.attention, batch.target, group, columns)


def _with_columns_of(batches: list[TokenBatch], given: TokenBatch) -> TokenBatch:
    """The data's rows with nothing (0, or -1 of whole numbers) in the columns of a source."""
    columns = {
        name: column.new_full(
            given.shape if column.shape == like.shape else (len(given.ids), *column.shape[1:]),
            0 if column.is_floating_point() else -1,
        )
        for like in batches
        for name, column in like.columns.items()
    }
    return TokenBatch(given.ids, given.attention, given.target, None, columns)


def source_of(settings: RolloutSettings) -> RolloutSource:
    """The source that the settings name, with the data's completions where they say so."""
    source: Any = "plain" if settings.source is None else settings.source
    if isinstance(source, str):
        source = user_value(source) if ".py:" in source else rollout_source.made(source)
    if isinstance(source, type):
        with refusals(f"the rollout source {source.__name__}"):
            source = source()
    if not isinstance(source, RolloutSource):
        raise InputError(
            f"a rollout source is called with (policy, prompts, settings), got {source!r}"
        )
    if settings.share is None or settings.share == 1:
        return source
    return Mixed(source, settings.share)
