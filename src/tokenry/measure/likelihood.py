"""How likely texts are to a language model, by the token.

    mean log p = (1 / n) sum_t log p(y_t | y_<t)                                  nats

over the n tokens that something stands before: what the tokenizer puts before a text by itself, or
the first token, which then is not counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tokenry.core.aggregate import per_sequence
from tokenry.core.batch import TokenBatch
from tokenry.core.boundaries import encoded, start_ids
from tokenry.core.errors import InputError
from tokenry.model.score import score


@dataclass(frozen=True)
class LikelihoodScorer:
    """Any causal model of transformers with its tokenizer."""

    model: Any
    tokenizer: Any

    def __call__(self, texts: Sequence[str]) -> list[float]:
        """The mean log p per token of each text, nats. InputError for one without any."""
        if not texts:
            return []
        start = start_ids(self.tokenizer)
        rows = [[*start, *encoded(self.tokenizer, text)] for text in texts]
        before = max(1, len(start))
        if short := [text for text, ids in zip(texts, rows, strict=True) if len(ids) <= before]:
            raise InputError(f"{short[0]!r} has no token with another before it")
        target = [[False] * before + [True] * (len(ids) - before) for ids in rows]
        batch = TokenBatch.from_ids(rows, target)
        logprob = score(self.model, batch).need("logprob").cpu()
        return per_sequence(logprob, batch.target, "mean").tolist()
