"""A chain of judged states: completions, and at their cutpoints further ones that say what the
state is worth.

    completion     y ~ pi(. | x),    `settings.samples` of each prompt
    cutpoints      states before every `interval`-th token of probability below `threshold`, or
                   every `segment` tokens (`learn.policy.segments`)
    judges         `judges` completions from each of these states; the mean of what they earn
                   estimates its value

All are rows with rewards. Columns: "state" [rows], the number of the state that a judge started
from, -1 for completions; "boundary" [rows, T], in completions the number of the judged state behind
a token, -1 where there is none; "node" [rows, T]: two tokens at one place of their rows are one
draw where their numbers are equal. The completions of a prompt share the state of the prompt. Only
they are learned from: judges are for the advantage.

    train("spo", prompts, source=Chain(interval=5), samples=8)

Source: Segment Policy Optimization: Effective Segment-Level Credit Assignment in RL for Large
Language Models (arXiv 2505.23564) and its code. Ours: one judged state for all completions of a
prompt; probabilities are the policy's at temperature 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tokenry.core.batch import TokenBatch
from tokenry.core.checks import within
from tokenry.decode.sample import sample
from tokenry.learn.policy.rollouts import RolloutSettings
from tokenry.learn.policy.segments import cutpoints, fixed_segments
from tokenry.learn.policy.sources.base import Prompts, rollout_source
from tokenry.learn.policy.sources.plain import PlainSampling
from tokenry.model.modes import evaluating
from tokenry.model.score import score


def _examples() -> list[Any]:
    return [Chain(judges=2, interval=2), Chain(judges=1, segment=3)]


@rollout_source("chain", examples=_examples)
@dataclass(frozen=True)
class Chain:
    """Completions with judged states.

    Args:
        judges: n, completions of each state, >= 1; the paper's are 9, and 4 for long ones.
        threshold: of cutpoints, in (0, 1].
        interval: K, cutpoints between two states, >= 1.
        segment: tokens between two states instead, >= 1; None: by cutpoints.
    """

    judges: int = 9
    threshold: float = 0.9
    interval: int = 5
    segment: int | None = None

    def __post_init__(self) -> None:
        within(self, "[1, inf)", "judges", "interval", integer=True)
        within(self, "(0, 1]", "threshold")
        within(self, "[1, inf)", "segment", integer=True, optional=True)

    @torch.no_grad()
    def __call__(self, policy: Any, prompts: Prompts, settings: RolloutSettings) -> TokenBatch:
        own = PlainSampling()(policy, prompts, settings)
        assert own.group is not None
        row, place = self._boundaries(policy, own).nonzero(as_tuple=True)
        # a state: the prompt's, or that behind one token of one completion
        inner = own.target[row, place]
        key = torch.where(inner, len(prompts) + row * own.shape[1] + place, own.group[row])
        states, number = key.unique(return_inverse=True)
        count = len(states)
        boundary = torch.full_like(own.ids, -1).index_put((row, place), number)
        some = torch.empty_like(states).index_put((number,), torch.arange(len(row)).to(number))
        said = [self._said(own, int(row[n]), int(place[n])) for n in some]
        asked = [int(own.group[row[n]]) for n in some]
        continued = self._judge(policy, prompts, settings, said, asked)
        of = own.group.tolist() + [one for one in asked for _ in range(self.judges)]
        completions = [ids[mask].tolist() for ids, mask in zip(own.ids, own.target, strict=True)]
        begun = [(n, said[n]) for n in range(count) for _ in range(self.judges)]
        completions += [[*text, *new] for (_, text), new in zip(begun, continued, strict=True)]
        batch = prompts.batch(of, completions)
        state = torch.tensor([-1] * len(own.ids) + [n for n, _ in begun]).to(own.group)
        missing = (0, batch.shape[1] - own.shape[1], 0, len(begun))
        columns = torch.nn.functional.pad(boundary, missing, value=-1)
        # a judge's tokens are new draws behind those that it shares with a completion
        nodes = torch.arange(len(of), device=state.device)[:, None].repeat(1, batch.shape[1])
        for judge, (n, text) in enumerate(begun, start=len(own.ids)):
            nodes[judge, : prompts.ids.shape[1] + len(text)] = row[some[n]]
        nodes = torch.where(batch.target, nodes, -1)
        return batch.with_columns(state=state, boundary=columns, node=nodes)

    def _boundaries(self, policy: Any, own: TokenBatch) -> Tensor:
        if self.segment is not None:
            return fixed_segments(own.target, self.segment)
        with evaluating(policy):
            probability = score(policy, own).need("logprob").exp()
        return cutpoints(probability, own.target, self.threshold, self.interval).to(own.ids.device)

    def _said(self, own: TokenBatch, row: int, place: int) -> list[int]:
        """A completion's tokens up to a state."""
        return own.ids[row, : place + 1][own.target[row, : place + 1]].tolist()

    def _judge(
        self,
        policy: Any,
        prompts: Prompts,
        settings: RolloutSettings,
        said: list[list[int]],
        asked: list[int],
    ) -> list[list[int]]:
        """What comes behind each state, `judges` times."""
        if not said:
            return []
        texts = prompts.texts()
        start = TokenBatch.from_ids(
            [texts[prompt] + text for prompt, text in zip(asked, said, strict=True)],
            pad_id=prompts.pad_id,
            padding_side="left",
        ).to(prompts.ids.device)
        left = [settings.max_new_tokens - len(text) for text in said]
        drawn = sample(
            policy,
            start.ids,
            start.attention,
            of=torch.arange(len(said)).repeat_interleave(self.judges),
            max_new_tokens=max(left),
            ends=prompts.ends,
            temperature=settings.temperature,
            leave=False,
        )
        return [new[: left[n // self.judges]] for n, new in enumerate(drawn)]
