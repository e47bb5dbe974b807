"""Turns with an environment: the policy speaks, something answers, the policy goes on.

    x, a_1, o_1, a_2, o_2, ..., a_k        a: the policy's turns, targets; o: what came back, none

A turn ends with an end token. The environment reads what was said so far and gives the tokens that
come back (a tool's output in the chat's own format, say), or None when the episode is over. All of
a row behind its prompt takes at most max_new_tokens; what does not fit any more ends the episode.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from tokenry.core.batch import TokenBatch
from tokenry.core.checks import within
from tokenry.decode.sample import sample
from tokenry.learn.policy.rollouts import RolloutSettings
from tokenry.learn.policy.sources.base import Prompts, rollout_source


class Environment(Protocol):
    """What answers the policy; it may remember nothing but what it is given."""

    def __call__(self, prompt: Sequence[int], said: Sequence[int]) -> Sequence[int] | None:
        """The ids that come back after a prompt and all that was said behind it, or None."""
        ...


@dataclass(frozen=True)
class TextEnvironment:
    """An environment that reads and writes text.

    Args:
        tokenizer: of the policy.
        reply: (prompt, all that was said) -> what comes back, or None.
    """

    tokenizer: Any
    reply: Callable[[str, str], str | None]

    def __call__(self, prompt: Sequence[int], said: Sequence[int]) -> Sequence[int] | None:
        text = self.reply(self.tokenizer.decode(list(prompt)), self.tokenizer.decode(list(said)))
        return None if text is None else self.tokenizer(text, add_special_tokens=False)["input_ids"]


@dataclass
class _Episode:
    prompt: list[int]
    said: list[int] = field(default_factory=list)
    chosen: list[bool] = field(default_factory=list)

    def add(self, ids: Sequence[int], own: bool) -> None:
        self.said += ids
        self.chosen += [own] * len(ids)


def _examples() -> list[Any]:
    return [Turns(lambda prompt, said: [20, 21], turns=3)]


@rollout_source("environment", examples=_examples)
@dataclass(frozen=True)
class Turns:
    """Episodes of several turns, `settings.samples` of each prompt.

    Args:
        environment: what answers. turns: of the policy in an episode, at most, >= 1.
    """

    environment: Environment
    turns: int = 4

    def __post_init__(self) -> None:
        within(self, "[1, inf)", "turns", integer=True)

    def __call__(self, policy: Any, prompts: Prompts, settings: RolloutSettings) -> TokenBatch:
        of = torch.arange(len(prompts)).repeat(settings.samples)
        texts = prompts.texts()
        episodes = [_Episode(texts[number]) for number in of.tolist()]
        going = episodes
        for turn in range(self.turns):
            if turn:
                going = self._answered(going, settings.max_new_tokens)
            if not going:
                break
            going = self._turn(policy, prompts, settings, going)
        said = [episode.said for episode in episodes]
        return prompts.batch(of, said, [episode.chosen for episode in episodes])

    def _turn(
        self, policy: Any, prompts: Prompts, settings: RolloutSettings, going: list[_Episode]
    ) -> list[_Episode]:
        """The policy's turn in these episodes; those that it has ended, not the limit."""
        left = [settings.max_new_tokens - len(episode.said) for episode in going]
        start = TokenBatch.from_ids(
            [episode.prompt + episode.said for episode in going],
            pad_id=prompts.pad_id,
            padding_side="left",
        ).to(prompts.ids.device)
        drawn = sample(
            policy,
            start.ids,
            start.attention,
            max_new_tokens=max(left),
            ends=prompts.ends,
            temperature=settings.temperature,
        )
        for episode, turn, most in zip(going, drawn, left, strict=True):
            episode.add(turn[:most], True)
        return [episode for episode in going if episode.said[-1] in prompts.ends]  # not cut off

    def _answered(self, going: list[_Episode], longest: int) -> list[_Episode]:
        """The episodes in which something comes back that leaves space for another turn."""
        further = []
        for episode in going:
            answer = self.environment(episode.prompt, episode.said)
            if answer is not None and len(episode.said) + len(answer) < longest:
                episode.add(answer, False)
                further.append(episode)
        return further
