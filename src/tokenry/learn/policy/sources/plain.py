"""Plain sampling: independent completions of each prompt, from the policy's own distribution.

y_t ~ pi(. | x, y_<t)        until an end token, or max_new_tokens
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tokenry.core.batch import TokenBatch
from tokenry.learn.policy.rollouts import RolloutSettings, sample_rollouts
from tokenry.learn.policy.sources.base import Prompts, rollout_source


def _examples() -> list[Any]:
    return [PlainSampling()]


@rollout_source("plain", examples=_examples)
@dataclass(frozen=True)
class PlainSampling:
    """The default: `settings.samples` completions of each prompt at `settings.temperature`."""

    def __call__(self, policy: Any, prompts: Prompts, settings: RolloutSettings) -> TokenBatch:
        return sample_rollouts(
            policy,
            prompts.ids,
            prompts.attention,
            settings,
            eos=prompts.ends,
            pad_id=prompts.pad_id,
        )
