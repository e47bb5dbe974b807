"""Best of n: draw n valid texts, keep the one with the highest score.

    y* = argmax_{y_1 ... y_n} score(y_i),      y_i from any sampler of texts

By default the score is the model's own log p(y), so that the text is a guess at the likeliest one;
a verifier or a reward model goes in its place. A search, not a sample: the more texts, the further
from the model's distribution (in KL, log n - (n - 1) / n at most).

`decode.search.best_of_n` does the same for free text, without a constraint.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, cast

import torch
from torch import Tensor

from tokenry.core.checks import within
from tokenry.core.errors import InputError
from tokenry.decode.samplers.base import DEAD
from tokenry.decode.samplers.request import Request, TextSampler, text_sampler
from tokenry.decode.samplers.samples import Samples
from tokenry.decode.samplers.texts import text_logprobs

Scorer = Callable[[list[int], list[list[int]]], Sequence[float] | Tensor]


@text_sampler("best-of-n")
@dataclass(frozen=True)
class BestOfN:
    """Each returned text is the best of n that `sampler` drew; its weight is one and means nothing.

    A text without a valid candidate weighs nothing. The evidence is that of all candidates, as
    their sampler estimates it.

    Args:
        sampler: a sampler of texts or its name.
        scorer: (prompt ids, texts as ids) -> one number each; None: the model's log-probability.
    """

    n: int = 8
    sampler: str | TextSampler = "mask"
    scorer: Scorer | None = None
    exact: ClassVar[bool] = False

    def __post_init__(self) -> None:
        within(self, "[1, inf)", "n", integer=True)

    def __call__(self, request: Request, particles: int) -> Samples:
        sampler = self.sampler
        if isinstance(sampler, str):
            sampler = cast(TextSampler, text_sampler[sampler]())
        drawn = sampler(request, self.n * particles)
        scores = self.scores(request, drawn).masked_fill(drawn.log_weights == DEAD, DEAD)
        missing = self.n * particles - len(scores)  # samplers may return fewer texts
        scores = torch.nn.functional.pad(scores, (0, missing), value=DEAD).view(particles, self.n)
        best, columns = scores.max(-1)
        chosen = [row * self.n + column for row, column in enumerate(columns.tolist())]
        chosen = [index if index < len(drawn.ids) else 0 for index in chosen]
        return replace(
            drawn,
            ids=[drawn.ids[index] for index in chosen],
            finished=[drawn.finished[index] for index in chosen],
            log_weights=torch.where(best > DEAD, 0.0, DEAD).double(),
        )

    def scores(self, request: Request, drawn: Samples) -> Tensor:
        """float64 `[n]`: the score of every candidate."""
        if self.scorer is None:
            return text_logprobs(request, drawn.ids, drawn.finished)
        scores = torch.as_tensor(self.scorer(list(request.prompt_ids), drawn.ids)).double()
        if scores.shape != (len(drawn.ids),) or bool(scores.isnan().any()):
            raise InputError(
                f"the scorer gave {scores.tolist()} for {len(drawn.ids)} texts: it must give one "
                "number for each"
            )
        return scores
