"""A language model as what answers a task: greedy texts, and log-likelihoods of candidates.

    loglikelihood(x, c) = sum_t log p(c_t | x, c_<t)      nats, c's end not counted

Prompt and candidate are tokenized as one text; a token that holds characters of both counts as the
candidate's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tokenry.core.batch import TokenBatch
from tokenry.core.chat import Chat, messages_of
from tokenry.decode.constraints.stop import Stop
from tokenry.decode.generate import generate
from tokenry.model.score import score
from tokenry.tasks.task import Generate, Loglikelihood, Prompt


@dataclass(frozen=True)
class ModelAnswers:
    """Answers of a causal model: `evaluate(ModelAnswers(tokenry.load()), task)`.

    Args:
        loaded: (model, tokenizer), as `tokenry.load` gives it.
        batch_size: candidates scored at once.
        as_chat: put a prompt that is a text as a user's message, as a model that was trained on
            chats expects it; default False.
    """

    loaded: tuple[Any, Any]
    batch_size: int = 16
    as_chat: bool = False

    def generate(self, requests: Sequence[Generate]) -> list[str]:
        """The likeliest next token at every step, cut at the first stop text."""
        return [self._text(request) for request in requests]

    def _text(self, request: Generate) -> str:
        end = (
            Stop(request.stop, self.loaded[1], overshoot=True, early=True) if request.stop else None
        )
        text = generate(
            self.loaded,
            self._prompt(request.prompt),  # type: ignore[arg-type]
            end,
            "greedy",
            max_new_tokens=request.limit,
            must_end=False,
        ).texts[0]
        return text if end is None else end.before(text)

    def loglikelihood(self, requests: Sequence[Loglikelihood]) -> list[list[float]]:
        """log p(candidate | prompt) of every candidate."""
        pairs = [(self._context(one.prompt), c) for one in requests for c in one.candidates]
        values: list[float] = []
        for start in range(0, len(pairs), self.batch_size):
            chunk = pairs[start : start + self.batch_size]
            batch = TokenBatch.from_pairs(self.loaded[1], chunk, end=False)
            values += score(self.loaded[0], batch).need("logprob").sum(-1).tolist()
        rest = iter(values)
        return [[next(rest) for _ in one.candidates] for one in requests]

    def _prompt(self, prompt: Prompt) -> Prompt:
        chat = self.as_chat and isinstance(prompt, str)
        return [{"role": "user", "content": prompt}] if chat else prompt

    def _context(self, prompt: Prompt) -> str:
        prompt = self._prompt(prompt)
        if isinstance(prompt, str):
            return prompt
        return Chat(self.loaded[1]).prompt(messages_of([dict(message) for message in prompt]))
