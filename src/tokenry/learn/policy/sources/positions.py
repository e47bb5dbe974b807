"""Positions: one token of each text is thought about and guessed, the others are read.

    of each text y behind its prompt x:
        pos        drawn by a curriculum over the entropies of the policy (`token_curriculum`)
        responses  x y_<pos [ask], then  thinking </think> guess,     `settings.samples` of them
        text       x y, one row, whose targets are all of y but y_pos

Columns, all [rows]: "sampled", 1 for responses, 0 for texts; "match", 1 where the guess is y_pos;
"thinking", tokens before the end of thinking; "budget", what was asked for. A response without a
guess (it ended, or the limit came first) has match 0. All behind a prompt takes at most
max_new_tokens: later positions than that leaves space for are not drawn, a longer text is cut off.

    train("rmt", texts, source=Positions(end_of_thinking), samples=8)

Source: Reinforcement Mid-Training (arXiv 2509.24375). Ours: one position of each text and step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from tokenry.core.batch import TokenBatch
from tokenry.core.checks import within
from tokenry.core.errors import InputError
from tokenry.decode.sample import sample
from tokenry.learn.policy.rollouts import RolloutSettings
from tokenry.learn.policy.sources.base import Prompts, rollout_source
from tokenry.learn.policy.token_curriculum import (
    FIRST,
    LAST,
    Chances,
    curriculum,
    draw_positions,
    entropy_bins,
    token_budget,
)
from tokenry.model.modes import evaluating
from tokenry.model.score import score


def _nothing(budget: int) -> Sequence[int]:
    return ()


def _examples() -> list[Any]:
    return [Positions(15), Positions(15, lambda budget: (16,), start=3)]


@rollout_source("positions", examples=_examples)
@dataclass(frozen=True)
class Positions:
    """Guesses at tokens of texts, after thinking.

    Args:
        end_of_thinking: id of the token behind which the guess stands.
        ask: budget -> ids behind the prefix that ask for so much thinking; default: none.
        start: of `token_budget`.
        least: see `start`.
        gamma: see `start`.
        first: of `curriculum`.
        last: see `first`.
        t1: see `first`.
        t2: see `first`.
    """

    end_of_thinking: int
    ask: Callable[[int], Sequence[int]] = _nothing
    start: int = 800
    least: int = 1
    gamma: float = 0.2
    first: Chances = FIRST
    last: Chances = LAST
    t1: float = 0.3
    t2: float = 0.7

    reads_data: ClassVar[bool] = True

    def __post_init__(self) -> None:
        within(self, "[0, inf)", "end_of_thinking", integer=True)
        token_budget(0.0, self.start, self.least, self.gamma)  # refuses what is out of range
        curriculum(0.0, self.first, self.last, self.t1, self.t2)

    @torch.no_grad()
    def __call__(self, policy: Any, prompts: Prompts, settings: RolloutSettings) -> TokenBatch:
        if prompts.completions is None:
            raise InputError("positions are of texts: give each prompt a completion")
        budget = token_budget(prompts.progress, self.start, self.least, self.gamma)
        asked, limit = [*self.ask(budget)], settings.max_new_tokens
        given = prompts.completions
        at = self._positions(policy, prompts, limit - len(asked) - 2)
        texts = [ids[own].tolist() for ids, own in zip(given.ids, given.target, strict=True)]
        before = [text[:n] + asked for text, n in zip(texts, at, strict=True)]
        of = torch.arange(len(texts)).repeat(settings.samples).tolist()
        said = self._respond(policy, prompts, before, of, settings)
        rows = [before[n] + new for n, new in zip(of, said, strict=True)] + [
            text[:limit] for text in texts
        ]
        chosen = [
            [False] * len(before[n]) + [True] * len(new) for n, new in zip(of, said, strict=True)
        ]
        # a text of this one token has nothing left to read: it stays whole
        chosen += [
            [n != own or len(text) == 1 for n in range(len(text[:limit]))]
            for text, own in zip(texts, at, strict=True)
        ]
        thought = [len(new) - 2 * self._guessed(new) for new in said]
        right = [
            self._guessed(new) and new[-1] == texts[n][at[n]]
            for n, new in zip(of, said, strict=True)
        ]
        none = [0] * len(texts)
        columns = {
            "sampled": [1] * len(said) + none,
            "match": right + none,
            "thinking": thought + none,
            "budget": [budget] * (len(said) + len(texts)),
        }
        device = prompts.ids.device
        made = {name: torch.tensor(v, device=device).float() for name, v in columns.items()}
        return prompts.batch([*of, *range(len(texts))], rows, chosen, **made)

    def _guessed(self, response: list[int]) -> bool:
        """Whether a guess stands behind the first end of thinking."""
        return self.end_of_thinking in response[:-1]

    def _positions(self, policy: Any, prompts: Prompts, last: int) -> list[int]:
        """A position of each text, in [0, last]."""
        given = prompts.completions
        assert given is not None
        rank = given.target.cumsum(-1) - 1
        open_to = given.target & (rank <= last)
        if not bool(open_to.any(-1).all()):
            raise InputError("max_new_tokens leaves no space for a thought and a guess")
        with evaluating(policy):
            entropy = score(policy, given, ("entropy",)).need("entropy")
        bins = entropy_bins(entropy.to(open_to.device), open_to)
        chances = curriculum(prompts.progress, self.first, self.last, self.t1, self.t2)
        return rank.gather(-1, draw_positions(bins, chances)[:, None])[:, 0].tolist()

    def _respond(
        self,
        policy: Any,
        prompts: Prompts,
        before: list[list[int]],
        of: list[int],
        settings: RolloutSettings,
    ) -> list[list[int]]:
        """Thinking up to its end, and one token more, behind each prefix."""
        texts = [ids + text for ids, text in zip(prompts.texts(), before, strict=True)]

        def drawn(starts: list[list[int]], most: int, of: Tensor | None) -> list[list[int]]:
            batch = TokenBatch.from_ids(starts, pad_id=prompts.pad_id, padding_side="left")
            batch, ends = batch.to(prompts.ids.device), (*prompts.ends, self.end_of_thinking)
            options: dict[str, Any] = {"temperature": settings.temperature, "leave": False}
            return sample(
                policy, batch.ids, batch.attention, of=of, max_new_tokens=most, ends=ends, **options
            )

        left = [settings.max_new_tokens - 1 - len(text) for text in before]
        said = drawn(texts, max(left), torch.tensor(of))
        said = [new[: left[n]] for n, new in zip(of, said, strict=True)]
        thought = [row for row, new in enumerate(said) if new[-1] == self.end_of_thinking]
        if thought:
            guesses = drawn([texts[of[row]] + said[row] for row in thought], 1, None)
            for row, guess in zip(thought, guesses, strict=True):
                said[row] += guess
        return said
