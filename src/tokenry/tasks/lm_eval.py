"""Models of lm-evaluation-harness as what answers a task.

Its `LM` answers `loglikelihood` with a pair (log-likelihood, whether greedy decoding gives it) for
each (context, continuation), and `generate_until` with a text for each (context, settings). Nothing
of the library is imported: a request is anything with `args`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from tokenry.tasks.task import Generate, Loglikelihood, Prompt


@dataclass(frozen=True)
class LMEvalAnswers:
    """Answers of an `lm_eval.api.model.LM`: `evaluate(LMEvalAnswers(lm), task)`.

    Args:
        lm: the model. Chat messages go through its own `apply_chat_template`.
    """

    lm: Any

    def generate(self, requests: Sequence[Generate]) -> list[str]:
        """Greedy continuations, cut at the first stop text."""
        asked = [
            SimpleNamespace(
                args=(
                    self._context(one.prompt),
                    {"until": list(one.stop), "max_gen_toks": one.limit, "do_sample": False},
                )
            )
            for one in requests
        ]
        return list(self.lm.generate_until(asked))

    def loglikelihood(self, requests: Sequence[Loglikelihood]) -> list[list[float]]:
        """log p(candidate | prompt), nats, all candidates of all requests in one call."""
        asked = [
            SimpleNamespace(args=(self._context(one.prompt), candidate))
            for one in requests
            for candidate in one.candidates
        ]
        values = iter(self.lm.loglikelihood(asked))
        return [[float(next(values)[0]) for _ in one.candidates] for one in requests]

    def _context(self, prompt: Prompt) -> str:
        return prompt if isinstance(prompt, str) else self.lm.apply_chat_template(list(prompt))
