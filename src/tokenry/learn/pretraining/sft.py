"""SFT: masked likelihood, the baseline of whatever learns from given texts.

    loss = - mean over target tokens t of  log pi(y_t | y_<t)

Target tokens are all of a plain text, what the assistant says in a conversation, or the completion
behind a prompt. (Supervised fine-tuning; of all tokens it is language-model pre-training.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tokenry.core.aggregate import masked_mean
from tokenry.core.batch import TokenBatch
from tokenry.core.scores import Scores
from tokenry.learn.objective import Loss, Objective, Unit, objective


@objective("sft", paper=None)
@dataclass(frozen=True)
class SFT(Objective):
    """Supervised fine-tuning on `text`, `messages` or `prompt` with `completion`.

    It has no hyper-parameters; what counts as target is decided by the data (`learn.data`).
    """

    needs: ClassVar[tuple[str, ...]] = ("policy.logprob",)
    unit: ClassVar[Unit] = "token"
    completions: ClassVar[tuple[str, ...]] = ("completion",)
    supervised: ClassVar[bool] = True

    def __call__(
        self, batch: TokenBatch, policy: Scores, reference: Scores | None = None, **_: object
    ) -> Loss:
        logprob = policy.need("logprob")
        loss = -masked_mean(logprob, batch.target)
        return Loss(loss, {"loss": -logprob[batch.target].detach()})
