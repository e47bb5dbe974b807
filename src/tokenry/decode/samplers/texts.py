"""Whole texts: how probable the model finds them, several runs of a sampler as one, and samples
that hold more."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import fields
from typing import Any, TypeVar

import torch
from torch import Tensor

from tokenry.decode.samplers.request import Request
from tokenry.decode.samplers.samples import Samples

Kind = TypeVar("Kind", bound=Samples)


@torch.no_grad()
def text_logprobs(
    request: Request, texts: Sequence[Sequence[int]], ended: Sequence[bool], rows: int = 64
) -> Tensor:
    """float64 `[n]`: log p(y) of texts under the model that a request samples from.

    Args:
        texts: ids without the end token.
        ended: whether the end counts; with several end tokens it counts as any of them, since a
            text does not tell which one ended it.
        rows: texts that are read together.
    """
    order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
    logprobs = torch.zeros(len(texts), dtype=torch.float64)
    for start in range(0, len(order), rows):
        part = order[start : start + rows]
        logprobs[part] = _read(
            [list(texts[i]) for i in part], [bool(ended[i]) for i in part], request
        )
    return logprobs


def joined(rounds: Sequence[Samples]) -> Samples:
    """Independent runs as one sample: weights keep their scale, the evidence is their mean."""
    log_weights = torch.cat([samples.log_weights for samples in rounds])
    counts = [len(samples.ids) for samples in rounds]
    shares = torch.tensor([samples.log_evidence for samples in rounds], dtype=torch.float64)
    shares += torch.tensor(counts, dtype=torch.float64).log()
    ends = [samples.dead_end for samples in rounds]
    dead_end = max((end for end in ends if end is not None), key=len, default=None)
    return Samples(
        ids=[ids for samples in rounds for ids in samples.ids],
        log_weights=log_weights,
        log_evidence=float(shares.logsumexp(0)) - math.log(sum(counts)),
        finished=[done for samples in rounds for done in samples.finished],
        tokens=sum(samples.tokens for samples in rounds),
        passes=sum(samples.passes for samples in rounds),
        checks=sum(samples.checks for samples in rounds),
        masks=sum(samples.masks for samples in rounds),
        resampled=sum(samples.resampled for samples in rounds),
        seconds=sum(samples.seconds for samples in rounds),
        dead_end=dead_end if None not in ends else None,
    )


def extended(kind: type[Kind], samples: Samples, **more: Any) -> Kind:
    """The same samples as a `kind` that holds more; `more` also replaces what they held."""
    values = {field.name: getattr(samples, field.name) for field in fields(samples)}
    return kind(**{**values, **more})


def _read(texts: list[list[int]], ended: list[bool], request: Request) -> Tensor:
    """log p of texts [n], shortest first, in one batch that loses the rows that are through."""
    lengths = torch.tensor([len(text) + end for text, end in zip(texts, ended, strict=True)])
    total = torch.zeros(len(texts), dtype=torch.float64)
    ends = torch.tensor(sorted(request.constraint.eos))
    going = lengths.nonzero()[:, 0]
    decoding = request.rows(len(going)) if len(going) else None
    position = 0
    while decoding is not None:
        before = [texts[row][:position] for row in going.tolist()]
        logprobs = request.logprobs(decoding, before).double().cpu()
        more = torch.tensor([len(texts[row]) > position for row in going.tolist()])
        tokens = torch.tensor([(texts[row][position:] or [0])[0] for row in going.tolist()])
        read = logprobs.gather(-1, tokens[:, None])[:, 0]
        total[going] += torch.where(more, read, logprobs[:, ends].logsumexp(-1))
        position += 1
        stay = (lengths[going] > position).nonzero()[:, 0]
        if not len(stay):
            break
        if len(stay) < len(going):
            decoding.select(stay)
        decoding.append(tokens[stay])
        going = going[stay]
    return total
