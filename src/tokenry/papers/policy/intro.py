"""InTRO beside GRPO and likelihood of kept answers, on written sums that may say their result.

The base has also read sums with the result behind the prompt, so that it is the teacher of its own
answers. All see the same prompts and as many tokens, each at the better of two learning rates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tokenry.core.batch import TokenBatch
from tokenry.lab.outcome import Outcome, verdict
from tokenry.lab.plots import bars
from tokenry.lab.policy_bench import against_grpo
from tokenry.lab.scale import Scale
from tokenry.learn.policy.gradient import PolicyGradient
from tokenry.learn.policy.intro import InTRO, RightAnswers, right
from tokenry.learn.policy.rollouts import RolloutSettings
from tokenry.learn.policy.sources.base import Prompts, RolloutSource
from tokenry.learn.policy.sources.plain import PlainSampling
from tokenry.learn.policy.surrogate import Clip
from tokenry.papers.base import Paper
from tokenry.tasks.worlds.written_addition import WrittenAddition

WORLD = WrittenAddition(hinted=0.5)
TOKENS = 40_000


@dataclass(frozen=True)
class Hints:
    """Plain samples, each with the sum as its hint."""

    def __call__(self, policy: Any, prompts: Prompts, settings: RolloutSettings) -> TokenBatch:
        batch = PlainSampling()(policy, prompts, settings)
        return batch.with_columns(hint=WORLD.hints(batch.ids[:, : WORLD.asked]))


KEPT = PolicyGradient(
    RightAnswers(), clip=Clip(None, None), select=(right,), aggregation="sequence-mean"
)
"""Likelihood of the right answers: the same without any feedback."""
SOURCES: dict[str, RolloutSource] = {"intro": Hints(), "intro, 1 candidate": Hints()}
METHODS = {"kept": KEPT, "intro": InTRO(), "intro, 1 candidate": InTRO(candidates=1)}


def reproduce(seed: int, scale: Scale = "full") -> Outcome:
    """Five benches, seeds from `100 seed`."""
    table = against_grpo(METHODS, seed, scale, TOKENS, SOURCES, WORLD)
    names = ("before", "grpo", *METHODS)
    return verdict(
        table,
        {
            "right answers more often than by likelihood of kept answers": table.gap(
                "intro: pass@1", "kept: pass@1"
            ),
            "and not less often than with one candidate, by 0.02": table.gap(
                "intro: pass@1", "intro, 1 candidate: pass@1", by=-0.02
            ),
            "and more often than with GRPO": table.gap("intro: pass@1", "grpo: pass@1"),
            "answers are shorter than before": table.gap("before: length", "intro: length"),
        },
        plots=[
            bars({"pass@1": {n: table.mean(f"{n}: pass@1") for n in names}}, "right answers"),
            bars({"length": {n: table.mean(f"{n}: length") for n in names}}, "tokens"),
        ],
    )


PAPER = Paper(
    number=25,
    key="intro",
    title="In-Token Rationality Optimization: Towards Accurate and Concise LLM Reasoning via "
    "Self-Feedback",
    arxiv="2511.09865",
    role="objective",
    family="policy",
    claim="Weighting each token of right rationales by how much likelier the policy finds it when "
    "it knows the answer is more accurate, and shorter, than likelihood or GRPO.",
    reproduce=reproduce,
    threads=1,
)
