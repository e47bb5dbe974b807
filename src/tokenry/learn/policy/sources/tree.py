"""A tree of completions: siblings share what came before they parted.

    root = prompt;   every `segment` tokens each living prefix is continued in `branching` ways

until a prompt has its `samples` = branching^d leaves. Each leaf is a row, and by itself a sample of
the policy; leaves of one node have the same tokens up to where they part, so that the mean of what
they earn estimates the value of that node: the credit of a segment without a critic. The column
"node" [rows, T] numbers the segments: two tokens of the batch are one draw where their numbers are
equal. A prefix that ends early has all its leaves alike.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch

from tokenry.core.batch import TokenBatch
from tokenry.core.checks import within
from tokenry.core.errors import InputError
from tokenry.decode.sample import sample
from tokenry.learn.policy.rollouts import RolloutSettings
from tokenry.learn.policy.sources.base import Prompts, rollout_source
from tokenry.model.decoding import DecodingState
from tokenry.model.modes import evaluating


def _examples() -> list[Any]:
    return [Tree(segment=2)]


@rollout_source("tree", examples=_examples)
@dataclass(frozen=True)
class Tree:
    """Completions that branch.

    Args:
        branching: ways that each prefix is continued in, >= 2.
        segment: tokens between two partings, >= 1; the last segment goes on to the end.
    """

    branching: int = 2
    segment: int = 16

    def __post_init__(self) -> None:
        within(self, "[2, inf)", "branching", integer=True)
        within(self, "[1, inf)", "segment", integer=True)

    def depth(self, samples: int) -> int:
        """Partings on the way to a leaf; InputError unless they give just so many leaves."""
        depth = round(math.log(samples, self.branching))
        if self.branching**depth != samples or not depth:
            raise InputError(
                f"a tree that branches in {self.branching} has {self.branching}, "
                f"{self.branching**2}, ... leaves: samples={samples} is no such number"
            )
        return depth

    @torch.no_grad()
    def __call__(self, policy: Any, prompts: Prompts, settings: RolloutSettings) -> TokenBatch:
        depth = self.depth(settings.samples)
        of = torch.arange(len(prompts))
        texts: list[list[int]] = [[] for _ in of]
        nodes: list[list[int]] = [[] for _ in of]
        segments = 0
        with evaluating(policy):
            state = DecodingState.start(policy, prompts.ids, prompts.attention)
            for level in range(depth):
                parents = torch.arange(len(texts)).repeat_interleave(self.branching)
                state.select(parents)
                of = of[parents]
                texts, nodes = ([list(rows[n]) for n in parents] for rows in (texts, nodes))
                left = settings.max_new_tokens - level * self.segment
                if left < 1:
                    continue
                drawn = sample(
                    policy,
                    prompts.ids[of.to(prompts.ids.device)],
                    state=state,
                    max_new_tokens=left if level + 1 == depth else min(left, self.segment),
                    ends=prompts.ends,
                    temperature=settings.temperature,
                    leave=False,
                )
                for row, new in enumerate(drawn):
                    if texts[row] and texts[row][-1] in prompts.ends:
                        continue  # it had ended; what was drawn behind the end counts nothing
                    texts[row] += new
                    nodes[row] += [segments + row] * len(new)
                segments += len(texts)
                if all(text[-1] in prompts.ends for text in texts):
                    left_out = depth - level - 1
                    copies = torch.arange(len(texts)).repeat_interleave(self.branching**left_out)
                    of = of[copies]
                    texts, nodes = ([rows[n] for n in copies] for rows in (texts, nodes))
                    break
                last = torch.tensor([new[-1] for new in drawn], device=state.attention.device)
                if level + 1 < depth:
                    state.append(last)
        batch = prompts.batch(of, texts)
        node = torch.full(batch.shape, -1, device=batch.ids.device)
        node[batch.target] = torch.tensor([*chain(*nodes)], device=batch.ids.device)
        return batch.with_columns(node=node)
