"""RolloutSource: where the completions come from that a policy learns from.

    source(policy, prompts, settings) -> TokenBatch, one row for each completion

A row is its prompt's real tokens and what came behind; its *targets* are the tokens that the policy
chose, each knowing everything before it in the row, so that scoring the row gives the policy's
log-probabilities of its own choices; what others wrote in between (a tool, another player) is no
target. `group` is the number of the prompt that a row answers. Further columns, [rows] or
[rows, T], reach every axis (`RolloutBatch.batch`). The trainer knows nothing else of a source.

A source with `reads_data = True` is given the data's completions, which then have to be there.

Draws come from torch's global generator, which the trainer seeds and restores; the policy's mode
and gradients are left as they were.

    train("grpo", prompts, source="tree", samples=8)
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from tokenry.core.batch import TokenBatch
from tokenry.core.registry import Role
from tokenry.learn.policy.rollouts import RolloutSettings, rollout_rows


@dataclass(frozen=True)
class Prompts:
    """Prompts to be continued.

    Args:
        ids: [B, T] long, padded on the left. attention: [B, T] bool, False on padding.
        ends: the tokens that end a completion. pad_id: of what is added.
        completions: the data's own, one row a prompt, where the data have them.
        progress: how far the training is, in [0, 1].
    """

    ids: Tensor
    attention: Tensor
    ends: tuple[int, ...] = ()
    pad_id: int = 0
    completions: TokenBatch | None = None
    progress: float = 0.0

    def __len__(self) -> int:
        return len(self.ids)

    def select(self, rows: Tensor) -> Prompts:
        """These prompts, in this order."""
        own = None if self.completions is None else self.completions.select(rows)
        return replace(self, ids=self.ids[rows], attention=self.attention[rows], completions=own)

    def texts(self) -> list[list[int]]:
        """The ids of each prompt."""
        rows = zip(self.ids, self.attention, strict=True)
        return [ids[real].tolist() for ids, real in rows]

    def batch(self, of: Any, completions: Any, chosen: Any = None, **columns: Tensor) -> TokenBatch:
        """`rollout_rows` behind these prompts."""
        return rollout_rows(
            self.ids, self.attention, of, completions, chosen, pad_id=self.pad_id, **columns
        )


@runtime_checkable
class RolloutSource(Protocol):
    """The role: completions y of prompts x, drawn from the policy, or from others where that is the
    method; what the policy chose in them is their target."""

    def __call__(self, policy: Any, prompts: Prompts, settings: RolloutSettings) -> TokenBatch:
        """`settings.samples` completions of each prompt, or fewer where there are no more; with a
        column "state", those with a number >= 0 there judge the others and do not count; nor do,
        with a column "sampled", those with a 0, which are texts of the data."""
        ...


rollout_source = Role("rollout source", RolloutSource, ("tokenry.learn.policy.sources",))
