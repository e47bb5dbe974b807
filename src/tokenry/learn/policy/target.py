"""Explicit targets p(x) = P(x) / Z over texts: their normaliser Z on the run, and their weights.

    Z = E_{x ~ q}[ P(x) / q(x) ]        whatever q the samples come from, so that all of them count

Source: the running estimate and the exponential family of Aligning Language Models with Preferences
through f-divergence Minimization (arXiv 2302.08215) and the work that it unifies.
"""

from __future__ import annotations

import hashlib
import math
from typing import Any

import torch
from torch import Tensor, nn

from tokenry.core.batch import TokenBatch
from tokenry.core.errors import InputError


class RunningTarget(nn.Module):
    """What f-DPG remembers: Z of each prompt and the last pseudo-rewards. All state is in buffers.

    When there are more prompts than places, the oldest prompt is forgotten.
    """

    prompt: Tensor
    log_total: Tensor
    count: Tensor
    known: Tensor
    recent: Tensor
    seen: Tensor

    def __init__(self, window: int = 1024, prompts: int = 4096):
        super().__init__()
        self.register_buffer("prompt", torch.zeros(prompts, dtype=torch.long))
        self.register_buffer("log_total", torch.full((prompts,), -math.inf, dtype=torch.float64))
        self.register_buffer("count", torch.zeros(prompts, dtype=torch.long))
        self.register_buffer("known", torch.zeros((), dtype=torch.long))
        self.register_buffer("recent", torch.zeros(window))
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))

    def log_z(self, keys: list[int], log_weight: Tensor) -> Tensor:
        """Takes the samples' log P / q into their prompts' means; log Z of each sample, [B]."""
        found = torch.empty_like(log_weight)
        for key in dict.fromkeys(keys):
            rows = torch.tensor([other == key for other in keys], device=log_weight.device)
            place = self._place(key)
            total = log_weight[rows].double().logsumexp(0).to(self.log_total.device)
            self.log_total[place] = torch.logaddexp(self.log_total[place], total)
            self.count[place] += int(rows.sum())
            found[rows] = (self.log_total[place] - self.count[place].log()).to(found)
        return found

    def baseline(self, like: Tensor) -> Tensor:
        """Mean of the remembered pseudo-rewards; 0 before there are any."""
        kept = min(int(self.seen), len(self.recent))
        return self.recent[:kept].sum().to(like) / max(kept, 1)

    def remember(self, rewards: Tensor) -> None:
        rewards = rewards[-len(self.recent) :]
        places = (self.seen + torch.arange(len(rewards), device=self.seen.device)) % len(
            self.recent
        )
        self.recent[places] = rewards.to(self.recent)
        self.seen += len(rewards)

    def _place(self, key: int) -> int:
        size, known = len(self.prompt), int(self.known)
        used = (self.prompt[: min(known, size)] == key).nonzero()
        if len(used):
            return int(used[0])
        place = known % size
        self.prompt[place], self.log_total[place], self.count[place] = key, -math.inf, 0
        self.known += 1
        return place


def prompt_keys(batch: TokenBatch) -> list[int]:
    """A number for each row that is the same for the same prompt, in every process and run.

    Rows of one group have one prompt; it is read off the first of them.
    """
    prompts = batch.attention & ~batch.target & (batch.target.cumsum(-1) == 0)
    groups = [*range(len(batch.ids))] if batch.group is None else batch.group.tolist()
    keys: dict[int, int] = {}
    for row, group in enumerate(groups):
        if group not in keys:
            text = ",".join(map(str, batch.ids[row][prompts[row]].tolist()))
            digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
            keys[group] = int.from_bytes(digest, "big", signed=True)
    return [keys[group] for group in groups]


def fit_weights(features: Tensor, mean: Tensor, *, tolerance: float = 1e-4) -> Tensor:
    """The w for which a exp(w . phi) has E[phi] = mean, [n], from phi of samples of a, [N, n].

    The distribution of given moments that is nearest to a in KL. Minimises the convex dual
    log mean exp(w . phi) - w . mean, whose gradient is the moments' error; InputError when they
    cannot be reached by weighting these samples.
    """
    if features.ndim != 2 or mean.shape != features.shape[1:]:
        raise InputError(
            f"features must be [N, n] and mean [n], got {list(features.shape)}, {list(mean.shape)}"
        )
    features, mean = features.double(), mean.double()
    weights = torch.zeros_like(mean, requires_grad=True)
    options: dict[str, Any] = {"max_iter": 200, "line_search_fn": "strong_wolfe"}
    optimizer = torch.optim.LBFGS([weights], **options, tolerance_grad=tolerance / 10)

    def dual() -> Tensor:
        optimizer.zero_grad()
        value = (features @ weights).logsumexp(0) - weights @ mean
        value.backward()
        return value.detach()

    optimizer.step(dual)  # pyright: ignore[reportArgumentType]
    weights = weights.detach()
    error = (features.T @ (features @ weights).softmax(0) - mean).abs().max()
    if not error < tolerance:
        raise InputError(
            f"no weights give these samples the wanted means (off by {float(error):.2g}): the "
            "means must lie inside the range of the features, and the samples must cover them"
        )
    return weights
