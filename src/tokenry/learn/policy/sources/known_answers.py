"""Known answers: another source's completions, each row with the data's own completion as a hint.

    column "hint" [rows, H]:  the answer to the row's prompt without its end, -1 where it is shorter

What `learn.policy.terms.Hinted(column="hint")` puts behind the prompts; the completions themselves
are drawn without it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from tokenry.core.batch import TokenBatch
from tokenry.core.errors import InputError
from tokenry.learn.policy.rollouts import RolloutSettings
from tokenry.learn.policy.sources.base import Prompts, RolloutSource, rollout_source
from tokenry.learn.policy.sources.plain import PlainSampling


def _examples() -> list[Any]:
    return [KnownAnswers()]


@rollout_source("known-answers", examples=_examples)
@dataclass(frozen=True)
class KnownAnswers:
    """Completions with the answers of the data beside them.

    Args:
        source: of the completions.
    """

    source: RolloutSource = field(default_factory=PlainSampling)

    reads_data: ClassVar[bool] = True

    def __call__(self, policy: Any, prompts: Prompts, settings: RolloutSettings) -> TokenBatch:
        if prompts.completions is None:
            raise InputError("the data have no answers to hint at: give each prompt a completion")
        given = prompts.completions
        answers = [ids[own].tolist() for ids, own in zip(given.ids, given.target, strict=True)]
        answers = [[token for token in ids if token not in prompts.ends] for ids in answers]
        width = max(1, *map(len, answers))
        hints = torch.tensor([[*ids, *[-1] * (width - len(ids))] for ids in answers])
        batch = self.source(policy, prompts, settings)
        return batch.with_columns(hint=hints.to(batch.ids.device)[batch.group])
