"""A language model that answers the requests of tasks.

    evaluate(LanguageModel(*tokenry.load()), task)

log p(candidate | prompt) is the sum over the candidate's tokens, which are those of the candidate
alone; texts are the likeliest token, again and again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import torch

from tokenry.core.batch import TokenBatch
from tokenry.decode.generate import ends, prompt_ids
from tokenry.decode.sample import sample
from tokenry.model.score import score
from tokenry.tasks.task import Generate, Loglikelihood


@dataclass(frozen=True)
class LanguageModel:
    """Any causal model of transformers with its tokenizer."""

    model: Any
    tokenizer: Any

    def loglikelihood(self, requests: Sequence[Loglikelihood]) -> list[list[float]]:
        """log p of every candidate behind its prompt, nats."""
        pairs = [
            (prompt, self._ids(candidate))
            for request in requests
            for prompt in [prompt_ids(self.tokenizer, request.prompt)]
            for candidate in request.candidates
        ]
        target = [[False] * len(prompt) + [True] * len(text) for prompt, text in pairs]
        batch = TokenBatch.from_ids([[*prompt, *text] for prompt, text in pairs], target)
        values = score(self.model, batch).need("logprob").sum(-1).tolist()
        cuts = accumulate((len(request.candidates) for request in requests), initial=0)
        return [values[begin:end] for begin, end in pairwise(cuts)]

    def generate(self, requests: Sequence[Generate]) -> list[str]:
        """The greedy continuation of every prompt, up to the first of its stops."""
        texts = []
        device = next(self.model.parameters()).device
        for request in requests:
            ids = torch.tensor([prompt_ids(self.tokenizer, request.prompt)], device=device)
            (drawn,) = sample(
                self.model,
                ids,
                max_new_tokens=request.limit,
                ends=ends(self.model, self.tokenizer),
                temperature=0.0,
            )
            text = self.tokenizer.decode(drawn, skip_special_tokens=True)
            texts.append(min((text.split(stop)[0] for stop in request.stop), key=len, default=text))
        return texts

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]
