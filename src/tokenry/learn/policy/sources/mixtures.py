"""Mixtures of embeddings: thoughts that are several tokens at once, then an answer in tokens.

    thought:  e_1 .. e_K ~ pi(. | s_t) independently;   the policy reads  (1/K) sum_k E(e_k)
    answer:   y_t ~ pi(. | s_t), as ever

After `thoughts` steps of the first kind come those of the second. K = 1 is an ordinary chain of
thought; with more, a step goes on along several paths at once, and what was drawn is known, so that
policy gradients apply: a thought's log-probability is the mean of its K draws', its ratio their
geometric mean. The draws are the column "mixture" [rows, T, K], -1 where a token is a token;
`model.score` reads it.

Source: Continuous Chain of Thought Enables Parallel Exploration and Reasoning (arXiv 2505.23648),
multi-token sampling. Reconstructed: the mean of log-probabilities, a fixed number of thoughts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tokenry.core.batch import TokenBatch
from tokenry.core.checks import within
from tokenry.core.errors import InputError
from tokenry.decode.sample import sample
from tokenry.learn.policy.rollouts import RolloutSettings
from tokenry.learn.policy.sources.base import Prompts, rollout_source
from tokenry.model.decoding import DecodingState
from tokenry.model.modes import evaluating
from tokenry.model.score import MIXTURE, unwrap


def _examples() -> list[Any]:
    return [Mixtures(tokens=3, thoughts=2)]


@rollout_source("mixtures", examples=_examples)
@dataclass(frozen=True)
class Mixtures:
    """Completions that begin with thoughts.

    Args:
        tokens: K, of a thought, >= 1. thoughts: of a completion, >= 1; they count as tokens of
            max_new_tokens and stand as padding tokens among the ids.
    """

    tokens: int = 4
    thoughts: int = 8

    def __post_init__(self) -> None:
        within(self, "[1, inf)", "tokens", "thoughts", integer=True)

    @torch.no_grad()
    def __call__(self, policy: Any, prompts: Prompts, settings: RolloutSettings) -> TokenBatch:
        left = settings.max_new_tokens - self.thoughts
        if left < 1:
            raise InputError(
                f"{self.thoughts} thoughts leave nothing of max_new_tokens="
                f"{settings.max_new_tokens} for an answer"
            )
        of = torch.arange(len(prompts)).repeat(settings.samples)
        with evaluating(policy):
            state = DecodingState.start(policy, prompts.ids, prompts.attention)
            state.select(of)
            drawn = torch.stack(
                [self._think(policy, state, settings.temperature) for _ in range(self.thoughts)], 1
            )
            answers = sample(
                policy,
                prompts.ids[of.to(prompts.ids.device)],
                state=state,
                max_new_tokens=left,
                ends=prompts.ends,
                temperature=settings.temperature,
                leave=False,
            )
        blank = [prompts.pad_id] * self.thoughts
        batch = prompts.batch(of, [blank + answer for answer in answers])
        mixture = torch.full((*batch.shape, self.tokens), -1, device=batch.ids.device)
        first = prompts.ids.shape[1]
        mixture[:, first : first + self.thoughts] = drawn.to(mixture.device)
        return batch.with_columns(**{MIXTURE: mixture})

    def _think(self, policy: Any, state: DecodingState, temperature: float) -> Tensor:
        """One more thought of every row: the ids that were drawn, [rows, K]."""
        chance = (state.logits.float() / temperature).softmax(-1)
        drawn = torch.multinomial(chance, self.tokens, replacement=True)
        embedded = unwrap(policy).get_input_embeddings()(drawn).mean(1, keepdim=True)
        state.tree(drawn[:, :1], torch.full_like(drawn[:, :1], -1), inputs_embeds=embedded)
        state.keep(torch.zeros_like(drawn[:, :1]))
        return drawn
