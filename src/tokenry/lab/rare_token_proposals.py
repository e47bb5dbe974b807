"""Proposals for texts that must contain a rare token: a small world, and a judge of proposals.

A transformer is fitted to a Markov chain over 16 tokens, eight of them a text, of which few contain
token 0. Behind another first token, the hint, it has learned an eager version of the language,
every step of which likes that token so much that most texts contain it, some of them several
times: a prompt that mostly gets what it asks for, and overdoes it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from tokenry.core.batch import TokenBatch
from tokenry.decode.samplers.divergences import Divergences, guard_divergences
from tokenry.decode.samplers.guard import Guard, start
from tokenry.decode.samplers.rejection import Rejection
from tokenry.decode.samplers.request import Request
from tokenry.decode.samplers.texts import text_logprobs
from tokenry.lab.token_rule import TokenRule
from tokenry.lab.toy_training import fit_toy
from tokenry.learn.policy.proposal import ProposalPoint, alive, columns, train_proposal
from tokenry.tasks.worlds.preference import PreferenceWorld

WANTED, END, START, HINT, VOCABULARY = 0, 16, 17, 18, 19
RULE = TokenRule(lambda text: WANTED in text, vocab_size=VOCABULARY, end=END)


@dataclass(frozen=True)
class RareTokenWorld:
    """The world of one seed.

    share, hinted_share: of the texts that contain the token, in the language and behind the hint.
    fit_steps: of the model's training. steps, samples: of a proposal's; warm_texts, warm_steps: of
    its warm start. target_texts, output_texts: drawn to judge proposals.
    """

    seed: int
    share: float = 0.02
    hinted_share: float = 0.6
    fit_steps: int = 300
    steps: int = 80
    samples: int = 256
    warm_texts: int = 256
    warm_steps: int = 20
    target_texts: int = 300
    output_texts: int = 600

    @cached_property
    def language(self) -> PreferenceWorld:
        return PreferenceWorld(seed=self.seed, vocabulary=16, length=8, spread=1.2)

    @property
    def limit(self) -> int:
        """Tokens of a text, with its end."""
        return self.language.length + 1

    @cached_property
    def model(self) -> Any:
        """The model of both prompts; kept."""
        plain = self.language.language.with_share(WANTED, self.share)
        eager = self.language.language.with_share(WANTED, self.hinted_share)

        def batches(generator: torch.Generator) -> TokenBatch:
            halves = plain.sample(96, generator), eager.sample(32, generator)
            ids = torch.cat(
                [
                    pad(pad(half, (1, 0), value=first), (0, 1), value=END)
                    for half, first in zip(halves, (START, HINT), strict=True)
                ]
            )
            every = torch.ones_like(ids, dtype=torch.bool)
            target = every.clone()
            target[:, 0] = False
            return TokenBatch(ids, every, target)

        options: Any = {
            "data": (self.share, self.hinted_share),
            "steps": self.fit_steps,
            "start": START,
        }
        return fit_toy(batches, VOCABULARY, 12, self.seed, **options)

    def train(self, *, steps: int, warm: bool) -> tuple[Any, list[ProposalPoint]]:
        """A proposal of so many policy gradient steps, and its measurements on the way; warm: from
        one that was fitted to accepted texts of the hinted model."""
        hinted = {"warm_texts": self.warm_texts, "warm_steps": self.warm_steps}
        return train_proposal(
            (self.model, None),
            [START],
            RULE,
            steps=steps,
            samples=self.samples,
            rows=self.samples,
            learning_rate=1e-3,
            max_new_tokens=self.limit,
            seed=self.seed,
            **({"warm_prompt": [HINT], **hinted} if warm else {}),
        )

    def request(self, model: Any, first: int) -> Request:
        return Request(
            start(model, [first]),
            RULE,
            prompt_ids=(first,),
            max_new_tokens=self.limit,
            generator=torch.Generator().manual_seed(self.seed),
        )

    @cached_property
    def _target(self) -> tuple[Request, float, tuple[Any, Any], Tensor]:
        """The model's own request, Z, texts of the target with their ends, and their log p."""
        base = self.request(self.model, START)
        texts = Rejection(rows=1024, max_trials=10**6)(base, self.target_texts)
        target = columns(alive(texts))
        return base, texts.acceptance, target, text_logprobs(base, *target, rows=512)

    @property
    def z(self) -> float:
        """The probability of the constraint under the model."""
        return self._target[1]

    def judge(self, model: Any, first: int) -> tuple[Divergences, float]:
        """A proposal behind its first token, and the share of its accepted texts that are valid.

        Measured on texts of the target, drawn once, and on the proposal's own accepted ones.
        """
        base, z, target, of_target = self._target
        if model is self.model and first == START:
            nothing = torch.zeros(1)
            return guard_divergences(nothing, nothing, math.log(z), math.log(z)), 1.0
        proposal = self.request(model, first)
        guard = Guard(decoding=proposal.decoding, rows=512, max_trials=10**6)
        output = guard(base, self.output_texts)
        ratio = of_target - text_logprobs(proposal, *target, rows=512)
        log_acceptance = math.log(output.acceptance)
        valid = sum(WANTED in text for text in output.ids) / len(output.ids)
        return guard_divergences(ratio, output.log_ratio, math.log(z), log_acceptance), valid
