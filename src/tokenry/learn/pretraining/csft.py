"""CSFT: a continuous chain of thought is taught the distribution of several traces at once.

    alpha*_t(v) = (1/B) |{ traces whose token at step t is v }|        thoughts t < m
    loss        = mean over rows of  sum_{t<m} KL( alpha*_t || pi(. | s_t) ) - log pi(answer | s_m)

s_t has read the mixed embeddings E^T alpha*_1 .. E^T alpha*_{t-1} (teacher forcing). A thought is
the B tokens of its traces, column "mixture" [rows, T, B] (`model.score` reads it), so that nothing
as large as the vocabulary is kept: the cross-entropy is minus the mean of their log-probabilities,
and the entropy of alpha* follows from which of them are equal. B = 1 is an ordinary chain of
thought, and a row without thoughts plain likelihood.

Source: Continuous Chain of Thought Enables Parallel Exploration and Reasoning (arXiv 2505.23648),
"hard teacher". The released code adds 1e-8 to alpha* inside the logarithm; here 0 log 0 = 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tokenry.core.aggregate import masked_sum
from tokenry.core.batch import TokenBatch
from tokenry.core.errors import ShapeError
from tokenry.core.scores import Scores
from tokenry.learn.objective import Loss, Objective, Unit, objective
from tokenry.model.score import MIXTURE


def trace_entropy(mixture: Tensor) -> Tensor:
    """Entropy of alpha* in nats, [...], from the traces' tokens [..., B]; 0 where they are -1."""
    same = (mixture[..., :, None] == mixture[..., None, :]).sum(-1).float()
    return -(same / mixture.shape[-1]).log().mean(-1)


def traced_batch(
    prompts: Sequence[Sequence[int]],
    traces: Sequence[Sequence[Sequence[int]]],
    answers: Sequence[Sequence[int]],
    pad_id: int = 0,
) -> TokenBatch:
    """Rows of prompt, thoughts and answer; thoughts and answers are the targets.

    Args:
        prompts: N lists of ids, none empty.
        traces: N lists of B traces, each of as many thoughts as the others of its row; B is the
            same for all rows, thoughts may be none.
        answers: N lists of ids, none empty.
    """
    width = {len(rows) for rows in traces}
    if len(width) != 1 or any(len({len(t) for t in rows}) != 1 for rows in traces):
        raise ShapeError("all rows need as many traces, and all traces of a row as many thoughts")
    rows, targets = [], []
    for prompt, own, answer in zip(prompts, traces, answers, strict=True):
        said = [pad_id] * len(own[0]) + [*answer]
        rows.append([*prompt, *said])
        targets.append([False] * len(prompt) + [True] * len(said))
    batch = TokenBatch.from_ids(rows, targets, pad_id=pad_id)
    mixture = torch.full((*batch.shape, *width), -1)
    for row, (prompt, own) in enumerate(zip(prompts, traces, strict=True)):
        thoughts = torch.tensor(own).T  # [steps, B]
        if thoughts.numel():
            mixture[row, len(prompt) : len(prompt) + len(thoughts)] = thoughts
    return batch.with_columns(**{MIXTURE: mixture})


@objective("csft", paper=129)
@dataclass(frozen=True)
class CSFT(Objective):
    """Continuous supervised fine-tuning, on batches of `traced_batch`; without thoughts the
    likelihood of whole completions."""

    needs: ClassVar[tuple[str, ...]] = ("policy.logprob",)
    unit: ClassVar[Unit] = "row"
    completions: ClassVar[tuple[str, ...]] = ("completion",)
    supervised: ClassVar[bool] = True

    def __call__(
        self, batch: TokenBatch, policy: Scores, reference: Scores | None = None, **_: object
    ) -> Loss:
        values = -policy.need("logprob")
        if MIXTURE in batch.columns:
            values = values - trace_entropy(batch.column(MIXTURE)).to(values.dtype)
        rows = masked_sum(values, batch.target, -1)
        return Loss(rows.mean(), {"loss": rows.detach()})
