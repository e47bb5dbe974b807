"""Verbosity: how much longer a model's texts get when its continuous input is perturbed.

A stress test by projected sign gradient on an input x (pixels of a captioner, embeddings of a
prompt) within |delta| <= eps. With p_t the next-token distributions over the text that the model
itself generated from x + delta, and H the hidden states of all layers and positions as rows:

    L_unc = sum_t KL(U || p_t)            flat distributions (U: uniform)
    L_eos = mean_t p_t(EOS)               a late end
    L_div = - || |H| ||_*                 diverse states (nuclear norm: sum of singular values)
    L = L_unc + l1 L_eos + l2 L_div       delta <- clip(delta - alpha sign grad L, -eps, eps)

l1 and l2 keep the terms in a fixed proportion that changes over time (`TemporalWeights`); they are
constants to the gradient. What answers the attack stands here too: a cap at a percentile of clean
lengths, and a score for outputs that are too flat and too far from their end.

Source: Inducing High Energy-Latency of Large Vision-Language Models with Verbose Images (arXiv
2401.11170); constants of the authors' release. Reconstructed: the detector; and lengths are kept
per row, not as the average over a batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tokenry.core.checks import in_range, within
from tokenry.core.errors import InputError, ShapeError

Ends = int | Collection[int]
LOSSES = ("uniformity", "eos", "diversity")


def eos_delay_loss(logits: Tensor, eos_id: Ends, mask: Tensor | None = None) -> Tensor:
    """Mean probability of the end over positions; logits [..., T, V], mask [..., T] -> [...].

    Args:
        eos_id: one id or several, whose probabilities add up; none at all gives 0.
    """
    probability = eos_probability(logits, eos_id)
    mask = _mask(mask, probability)
    return (probability * mask).sum(-1) / mask.sum(-1).clamp_min(1)


def uniformity_loss(logits: Tensor, mask: Tensor | None = None) -> Tensor:
    """sum_t KL(U || p_t), nats: logits [..., T, V], mask [..., T] -> [...]; 0 when all are flat."""
    logprobs = logits.float().log_softmax(-1)
    each = -math.log(logits.shape[-1]) - logprobs.mean(-1)
    return (each * _mask(mask, each)).sum(-1)


def hidden_diversity_loss(hidden_states: Sequence[Tensor], mask: Tensor | None = None) -> Tensor:
    """Minus the nuclear norm of |h| over all layers and positions: layers of [..., T, D] -> [...].

    The singular values' gradient is bounded everywhere (their vectors are never differentiated),
    so no noise is added; where a state is exactly 0 its gradient is 0.
    """
    states = torch.stack([layer.float().abs() for layer in hidden_states], -3)  # [..., L, T, D]
    if mask is not None:
        states = states * mask[..., None, :, None].to(states.dtype)
    return -torch.linalg.svdvals(states.flatten(-3, -2)).sum(-1)


@dataclass
class TemporalWeights:
    """l1, l2 per row, running averages of what balances the losses to the uniformity loss.

    At iteration t (from 1): |L_unc / (L_eos r1)| and |L_unc / (L_div r2)| with r1 = 10 ln t - 20
    and r2 = 0.5 ln t + 1. r1 changes sign at t = e^2 and is kept at least `guard` away from 0.

    Args:
        momentum: of the averages, in [0, 1).
        guard: in (0, inf).
    """

    momentum: float = 0.9
    guard: float = 1e-3
    weights: tuple[Tensor, Tensor] | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        within(self, "[0, 1)", "momentum")
        within(self, "(0, inf)", "guard")

    def step(self, t: int, uniformity: Tensor, eos: Tensor, diversity: Tensor) -> tuple:
        """(l1, l2) for iteration t, detached."""
        rates = max(abs(10 * math.log(t) - 20), self.guard), 0.5 * math.log(t) + 1
        raw = tuple(
            (uniformity / (loss * rate).abs().clamp_min(1e-12)).abs().detach()
            for loss, rate in zip((eos, diversity), rates, strict=True)
        )
        if self.weights is not None:
            raw = tuple(
                self.momentum * before + (1 - self.momentum) * now
                for before, now in zip(self.weights, raw, strict=True)
            )
        self.weights = raw[0], raw[1]
        return self.weights


@dataclass(frozen=True)
class Generated:
    """Texts that a model generated: tokens [B, T], the end token included; lengths [B]."""

    tokens: Tensor
    lengths: Tensor


@dataclass(frozen=True)
class Read:
    """A model's forward pass over input and text: logits [B, T, V], layers of [B, T, D], mask."""

    logits: Tensor
    hidden_states: Sequence[Tensor]
    mask: Tensor


@dataclass(frozen=True)
class LengthStress:
    """What a stress test found: per row the perturbation with the longest text, and that length.

    With sampling, the longest of many texts is long by luck: then take `last`, which no length has
    chosen, and generate again from it.

    Attributes:
        last: the perturbation after the last step.
        history: [steps + 1, B], the lengths before each step and after the last; where texts are
            not generated at a step, those of the last time.
    """

    delta: Tensor
    last: Tensor
    lengths: Tensor
    history: Tensor


def length_stress_test(
    generate: Callable[[Tensor], Generated],
    forward: Callable[[Tensor, Generated], Read],
    x: Tensor,
    eos_id: Ends,
    *,
    eps: float | Tensor = 8 / 255,
    alpha: float | Tensor = 1 / 255,
    steps: int = 100,
    losses: Collection[str] = LOSSES,
    low: float | None = None,
    high: float | None = None,
    start: Tensor | None = None,
    regenerate_every: int = 1,
    generator: torch.Generator | None = None,
    progress: Callable[[int], None] | None = None,
) -> LengthStress:
    """Perturb x [B, ...] within eps so that the texts generated from it get long.

    Args:
        generate: texts from an input, without gradient.
        forward: the model's pass over the input and such texts, differentiable in the input.
        losses: which of the three to use; () is no attack but random noise of the same size, drawn
            anew at each step.
        low: the least value of a valid input.
        high: the greatest.
        start: the first delta, default normal noise, clipped to the ball.
        regenerate_every: steps for which the same texts are used.
    """
    if unknown := set(losses) - set(LOSSES):
        raise InputError(f"unknown losses {sorted(unknown)}; known: {', '.join(LOSSES)}")
    in_range("steps", steps, "[0, inf)", integer=True)
    in_range("regenerate_every", regenerate_every, "[1, inf)", integer=True)
    draw = generator or torch.Generator().manual_seed(0)

    def projected(delta: Tensor) -> Tensor:
        inside = (x + delta).clamp(low, high) - x if (low, high) != (None, None) else delta
        return torch.minimum(torch.maximum(inside, -bound), bound)

    def noise() -> Tensor:
        return torch.randn(x.shape, generator=draw, device=draw.device).to(x)

    bound = torch.as_tensor(eps, dtype=x.dtype, device=x.device)
    delta = projected(noise() if start is None else start.to(x))
    texts = generate(x + delta)
    best, lengths, history = delta, texts.lengths, [texts.lengths]
    weights = TemporalWeights()
    for step in range(1, steps + 1):
        if losses:
            delta = delta.detach().requires_grad_()
            loss = _total(forward(x + delta, texts), eos_id, losses, weights, step)
            (gradient,) = torch.autograd.grad(loss.sum(), delta)
            delta = projected(delta.detach() - alpha * gradient.sign())
        else:
            delta = projected(bound * noise().sign())
        if step % regenerate_every == 0 or step == steps:
            texts = generate(x + delta)
            longer = texts.lengths > lengths
            chosen = longer.to(x.device).view(-1, *[1] * (x.ndim - 1))  # lengths may lie elsewhere
            best = torch.where(chosen, delta, best)
            lengths = torch.where(longer, texts.lengths, lengths)
        history.append(texts.lengths)
        if progress:
            progress(step)
    return LengthStress(best, delta, lengths, torch.stack(history))


def length_anomaly(entropies: Tensor, eos_probs: Tensor, mask: Tensor | None = None) -> Tensor:
    """How much a text looks like one that was made long: [..., T] -> [...], nats.

        mean_t entropy_t - ln mean_t p_t(EOS)

    Both parts rise when the losses above fall. What is unusual depends on the model: compare with
    the scores of clean texts, such as their 99th percentile.
    """
    if entropies.shape != eos_probs.shape:
        raise ShapeError(
            f"entropies and eos_probs must have one shape, got {list(entropies.shape)} and "
            f"{list(eos_probs.shape)}"
        )
    mask = _mask(mask, entropies)
    count = mask.sum(-1).clamp_min(1)
    ending = (eos_probs.float() * mask).sum(-1) / count
    return (entropies.float() * mask).sum(-1) / count - ending.clamp_min(1e-12).log()


def length_cap(clean_lengths: Tensor | Sequence[int], percentile: float = 99.5) -> int:
    """The limit on new tokens that so many percent of clean texts stay within."""
    lengths = torch.as_tensor(clean_lengths, dtype=torch.float64)
    if not lengths.numel():
        raise InputError("a limit needs at least one clean length; there is none")
    in_range("percentile", percentile, "(0, 100]")
    return math.ceil(lengths.quantile(percentile / 100, interpolation="higher").item())


def eos_probability(logits: Tensor, eos_id: Ends) -> Tensor:
    """Probability that the text ends here: logits [..., V] -> [...]."""
    ids = [eos_id] if isinstance(eos_id, int) else list(eos_id)
    return logits.float().log_softmax(-1)[..., ids].exp().sum(-1)


def _total(
    read: Read, eos_id: Ends, losses: Collection[str], weights: TemporalWeights, step: int
) -> Tensor:
    """The weighted sum of the losses that are wanted, [B].

    The weights balance against the uniformity loss whether or not it is one of them.
    """
    uniformity = uniformity_loss(read.logits, read.mask)
    eos = eos_delay_loss(read.logits, eos_id, read.mask)
    diversity = eos.detach() * 0 - 1.0
    if "diversity" in losses:
        diversity = hidden_diversity_loss(read.hidden_states, read.mask)
    on_eos, on_diversity = weights.step(step, uniformity, eos, diversity)
    total = eos * 0
    if "uniformity" in losses:
        total = total + uniformity
    if "eos" in losses:
        total = total + on_eos * eos
    if "diversity" in losses:
        total = total + on_diversity * diversity
    return total


def _mask(mask: Tensor | None, like: Tensor) -> Tensor:
    if mask is None:
        return torch.ones_like(like, dtype=torch.float32)
    if mask.shape != like.shape:
        raise ShapeError(f"mask must be {list(like.shape)}, got {list(mask.shape)}")
    return mask.to(torch.float32)
