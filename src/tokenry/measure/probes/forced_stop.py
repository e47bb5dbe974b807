"""Forced stops: what a model would have answered had it stopped thinking sooner.

    curve(L) = share of right answers behind  x, z_<=L, </think>,     z the model's own thinking
    room     = max_L curve(L) - share of right answers at the model's own stop
    near     = share of tokens, no stop, at which the stop was among the k likeliest

A trace that is shorter than L stops where it did; one without a stop is cut at the limit. The room
is what knowing when to stop could gain.

Source: Making Small Language Models Efficient Reasoners: Intervention, Supervision, Reinforcement
(arXiv 2505.07961), the diagnosis.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tokenry.core.checks import in_range
from tokenry.core.errors import InputError, ShapeError
from tokenry.core.scores import Scores
from tokenry.decode.rollouts import rollouts


@dataclass(frozen=True)
class StopCurve:
    """Accuracy and mean tokens of thinking at each cut, and at the model's own stop."""

    cuts: tuple[int, ...]
    accuracy: tuple[float, ...]
    length: tuple[float, ...]
    own_accuracy: float
    own_length: float

    @property
    def room(self) -> float:
        """How much more often right the best cut is than the model's own stop; may be negative."""
        return max(self.accuracy) - self.own_accuracy


def forced_stop_curve(
    model: Any,
    prompts: Sequence[Sequence[int]],
    cuts: Sequence[int],
    is_correct: Callable[[int, list[int]], bool],
    *,
    stop: int,
    ends: Collection[int] = (),
    thinking: int,
    answer: int,
    copies: int = 1,
    seed: int | torch.Generator = 0,
) -> StopCurve:
    """The curve over sampled thinking; every cut is answered anew.

    Args:
        prompts: ids of each, after which the model thinks.
        cuts: L, tokens of thinking, each >= 0.
        is_correct: (number of the prompt, ids of the answer) -> whether it is right.
        stop: id of the end of thinking. ends: ids that end an answer.
        thinking: tokens of either at most, >= 1. copies: traces of each prompt.
        answer: see `thinking`.
    """
    if not cuts or not prompts:
        raise InputError("a curve needs cuts and prompts")
    for cut in cuts:
        in_range("cut", cut, "[0, inf)", integer=True)
    generator = torch.Generator().manual_seed(seed) if isinstance(seed, int) else seed
    options: dict[str, Any] = {"seed": generator, "ends": [stop]}
    drawn = rollouts(model, prompts, copies, max_new_tokens=thinking, **options)
    traces = [
        (number, trace[:-1] if trace[-1] == stop else trace)
        for number, copied in enumerate(drawn)
        for trace in copied
    ]

    def answered(cut: int) -> tuple[float, float]:
        starts = [[*prompts[number], *trace[:cut], stop] for number, trace in traces]
        answers = rollouts(model, starts, max_new_tokens=answer, ends=ends, seed=generator)
        right = [is_correct(n, ids) for (n, _), (ids,) in zip(traces, answers, strict=True)]
        lengths = [min(cut, len(trace)) for _, trace in traces]
        return sum(right) / len(right), sum(lengths) / len(lengths)

    curve = [answered(cut) for cut in cuts]
    own_accuracy, own_length = answered(thinking)
    return StopCurve(
        tuple(cuts),
        tuple(a for a, _ in curve),
        tuple(n for _, n in curve),
        own_accuracy,
        own_length,
    )


def near_stops(scores: Scores, stop: int, k: int = 5, mask: Tensor | None = None) -> float:
    """The share of tokens that are no stop at which the stop was among the k likeliest.

    Args:
        scores: made with "topk", of at least k tokens. mask: [B, T] bool, the tokens that count
            (step boundaries, say); None: all that were scored.
    """
    in_range("k", k, "[1, inf)", integer=True)
    likeliest = scores.need("topk_ids")
    if likeliest.shape[-1] < k:
        raise ShapeError(f"scores of the {likeliest.shape[-1]} likeliest tokens, {k} are needed")
    counted = scores.mask if mask is None else scores.mask & mask
    counted = counted & (scores.ids != stop)
    near = (likeliest[..., :k] == stop).any(-1) & counted
    return float(near.sum() / counted.sum().clamp_min(1))
