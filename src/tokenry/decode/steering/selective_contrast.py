"""USCD: subtract what a prompt without examples predicts, only where the model is uncertain.

With p^d and p^n the next-token distributions over V tokens after the full prompt and after one from
which the examples were taken out, and w < 0:

    s = sqrt( Σ_v (p^d_v - 1/V)² / (V - 1) )                spread; low is flat, hence uncertain
    s √V <= threshold:   score_v = log( p^d_v + w p^n_v )   where p^d_v >= r / V and the sum is
                                                            positive, else -inf
    otherwise:           score_v = log p^d_v

A one-hot distribution has s ≈ V^(-1/2), so s √V lies between 0 and about 1 for every vocabulary.
Where no token has a positive sum, the scores are log p^d. `space="logit"` takes
(1 - w) log p^d_v + w log p^n_v instead of the logarithm of the sum, and log p^d_v where p^n_v = 0,
as the sum does.

Source: Improving Code Generation of LLMs by Uncertainty-Aware Selective Contrastive Decoding (arXiv
2409.05923). The paper's thresholds are of s itself, for 32,016 tokens: 0.005 (s √V = 0.9) and
0.0035 (0.63). There each prompt's text goes on with its own tokens while the gate is shut; here
both always go on with the chosen ones, and the second prompt is read only when it is needed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from transformers import LogitsProcessor

from tokenry.core.batch import TokenBatch
from tokenry.core.checks import in_range, one_of
from tokenry.core.errors import InputError, ShapeError
from tokenry.core.extrapolate import extrapolated
from tokenry.decode.branches import Branch
from tokenry.decode.steering.base import Example, controller

Space = Literal["prob", "logit"]
Negative = Sequence[int] | Callable[[list[int]], Sequence[int]]
EXAMPLES = re.compile(r"\s*(for )?(examples?|sample (input|output|test)s?)\b[^:]*:\s*$", re.I)
DOCTEST = re.compile(r"\s*(>>>|\.\.\. )")
ASSERTION = re.compile(r"\s*assert\b")


def selective_contrast(
    logits_pos: Tensor,
    logits_neg: Tensor,
    weight: float = -0.7,
    keep_ratio: float = 2 / 3,
    threshold: float = 0.9,
    space: Space = "prob",
    scale_free: bool = True,
) -> tuple[Tensor, Tensor]:
    """(scores [B, V], active bool [B]) from the logits of the two prompts [B, V].

    Args:
        threshold: of s √V, or of s itself if not `scale_free`; 0 never contrasts, inf always does.
    """
    if logits_pos.shape != logits_neg.shape:
        raise ShapeError(f"logits of {list(logits_pos.shape)} and {list(logits_neg.shape)}")
    check_contrast(weight, keep_ratio, threshold, space)
    active = distribution_spread(logits_pos, scale_free) <= threshold
    own = logits_pos.log_softmax(-1)
    other = logits_neg.log_softmax(-1)
    if space == "prob":
        score = (own.exp() + weight * other.exp()).clamp_min(0.0).log()
    else:
        score = extrapolated(own, other, -weight)
    kept = own.exp() >= keep_ratio / own.shape[-1]
    score = torch.where(kept, score, -torch.inf)
    empty = score.isneginf().all(-1, keepdim=True)
    return torch.where(active[:, None] & ~empty, score, own), active


def check_contrast(weight: float, keep_ratio: float, threshold: float, space: Space) -> None:
    """Raise InputError for settings outside their ranges."""
    in_range("weight", weight, "(-inf, 0]")
    in_range("keep_ratio", keep_ratio, "[0, 1]")
    in_range("threshold", threshold, "[0, inf]")
    one_of("space", space, get_args(Space))


def distribution_spread(logits: Tensor, scale_free: bool = False) -> Tensor:
    """[B]: standard deviation (over V - 1) of the probabilities, times √V if `scale_free`."""
    spread = logits.softmax(-1).std(-1)
    return spread * logits.shape[-1] ** 0.5 if scale_free else spread


@controller("uscd", paper=161, examples=lambda: _examples())
class SelectiveContrastProcessor(LogitsProcessor):
    """Contrasts a prompt with another, where the model is uncertain; for `logits_processor=[...]`.

        lame = tokenizer(strip_examples(prompt))["input_ids"]
        contrast = SelectiveContrastProcessor(model, lame)
        model.generate(**inputs, logits_processor=[contrast])

    One processor serves one call of `generate`. Put it before processors that cut tokens off.
    `branch` counts the passes of the other prompt; rows whose gate is shut keep their logits.

    Args:
        negative: the ids of the other prompt, one for all rows, or a function from a row's prompt
            ids (padding included) to its other prompt's. None: nothing is contrasted.
        prompt_length: how many columns of `input_ids`, padding included, are the prompt. None:
            those of the first call.
        weight: as for `selective_contrast`; the paper also uses keep_ratio 1/3 and threshold 0.63.
        keep_ratio: as `weight`.
        threshold: as `weight`.
        space: as `weight`.
        scale_free: as `weight`.
    """

    def __init__(
        self,
        model: Any,
        negative: Negative | None,
        *,
        prompt_length: int | None = None,
        weight: float = -0.7,
        keep_ratio: float = 2 / 3,
        threshold: float = 0.9,
        space: Space = "prob",
        scale_free: bool = True,
    ):
        check_contrast(weight, keep_ratio, threshold, space)
        in_range("prompt_length", prompt_length, "[0, inf)", integer=True, optional=True)
        self.model, self.negative, self.prompt_length = model, negative, prompt_length
        self.weight, self.keep_ratio, self.threshold = weight, keep_ratio, threshold
        self.space: Space = space
        self.scale_free = scale_free
        self.branch: Branch | None = None
        self._ids: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores [B, V] of the next tokens after `input_ids` [B, T]."""
        if len(input_ids) != len(scores):
            raise ShapeError(f"{len(input_ids)} rows of ids, but {len(scores)} rows of logits")
        if self.negative is None or not self.threshold:
            return scores
        if self.prompt_length is None:
            self.prompt_length = input_ids.shape[1]
        self._follow(input_ids)
        exact = scores if scores.dtype == torch.float64 else scores.float()
        active = distribution_spread(exact, self.scale_free) <= self.threshold
        if not active.any():
            return scores
        assert self.branch is not None
        other = self.branch.logits.to(exact)[:, : scores.shape[-1]]
        contrasted, _ = selective_contrast(
            exact,
            other,
            self.weight,
            self.keep_ratio,
            self.threshold,
            self.space,
            self.scale_free,
        )
        return torch.where(active[:, None], contrasted.to(scores.dtype), scores)

    def _follow(self, ids: Tensor) -> None:
        """Bring the branch to these rows: the ones before, perhaps in another order, and more."""
        before, self._ids = self._ids, ids
        if before is not None and self.branch is not None and before.shape[1] <= ids.shape[1]:
            same = (ids[:, None, : before.shape[1]] == before[None]).all(-1)  # [now, before]
            if same.any(1).all():
                index = same.int().argmax(1)
                if len(index) != len(before) or not torch.equal(
                    index.cpu(), torch.arange(len(ids))
                ):
                    self.branch.select(index)
                self.branch.append(ids[:, before.shape[1] :])
                return
        assert self.prompt_length is not None
        if ids.shape[1] < self.prompt_length:
            raise InputError(
                f"the text has {ids.shape[1]} columns, less than the prompt's "
                f"{self.prompt_length}: make a new processor for each call of generate"
            )
        prompts = [self._negative(row) for row in ids[:, : self.prompt_length].tolist()]
        other = TokenBatch.from_ids(prompts, padding_side="left").to(ids.device)
        self.branch = Branch(self.model, other.ids, other.attention)
        self.branch.append(ids[:, self.prompt_length :])

    def _negative(self, prompt: list[int]) -> list[int]:
        assert self.negative is not None
        return list(self.negative(prompt) if callable(self.negative) else self.negative)


def strip_examples(prompt: str) -> str:
    """A programming task without its examples: doctest lines and what they print, blocks that begin
    with "Example:" or the like (up to an empty line, or the docstring's end), and assertions."""
    kept: list[str] = []
    inside: Literal["", "doctest", "block"] = ""
    for line in prompt.splitlines(keepends=True):
        closing = any(mark in line for mark in ('"""', "'''"))
        if EXAMPLES.match(line):
            inside = "block"
        elif DOCTEST.match(line):
            inside = inside or "doctest"
        elif (not line.strip() and inside == "doctest") or closing or (not line.strip() and inside):
            inside = ""
            kept.append(line)
        elif not inside and not ASSERTION.match(line):
            kept.append(line)
    return "".join(kept)


def _examples() -> list[Example]:
    made = SelectiveContrastProcessor
    return [
        Example(
            lambda _, length, model: made(model, [5, 6], prompt_length=length),
            lambda *_: made(None, None),
        )
    ]
