"""Step-unrolled denoising: a masked language model learns to write a text whole.

A decoder f gives, for a noisy text x and a source s, a distribution over every token of the clean
text y. It learns from noise, and from what it writes itself:

    a ~ U(0, 1);  x0: each token of y replaced with probability a
    x(k) ~ f(x(k-1), s), no gradient through the draw
    loss = mean over k < steps, and over the tokens of y, of -log f(y | x(k), s)

Replaced tokens are uniform ones, a share of them the mask token, which stays near to what the model
was pretrained on.

    model = DenoisingSeq2Seq.from_masked_lm(AutoModelForMaskedLM.from_pretrained(...))
    loss = unrolled_denoising_loss(model, Padded.of(sources), Padded.of(targets))
    texts = iterative_decode(model, Padded.of(sources), iterations=8, candidates=3)

Source: Making the Most of your Model: Methods for Finetuning and Applying Pretrained Transformers
(arXiv 2408.16241), after Step-unrolled Denoising Autoencoders for Text Generation (arXiv
2112.06749). The share of masks is reconstructed.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from tokenry.core.aggregate import masked_mean
from tokenry.core.checks import in_range
from tokenry.core.errors import InputError
from tokenry.decode.denoising import draw
from tokenry.model.layers.denoising import DenoisingSeq2Seq, Padded

Predict = Callable[[Tensor], Tensor]
"""Noisy ids [B, T] -> logits of the clean ones [B, T, V]."""


def unrolled_denoising_loss(
    model: DenoisingSeq2Seq,
    source: Padded,
    target: Padded,
    *,
    steps: int = 2,
    mask_share: float = 0.5,
    length_weight: float = 1.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The loss of a batch, that of the length included.

    Args:
        generator: of the noise (default: a new one, seeded from torch's global one).
    """
    if generator is None:
        generator = torch.Generator().manual_seed(int(torch.randint(2**31, ())))
    target = target.aligned(model.pad_id)
    lengths = target.mask.sum(1)
    if int(lengths.max()) > model.max_length:
        raise InputError(
            f"a target has {int(lengths.max())} tokens, the model writes {model.max_length} at most"
        )
    encoded = model.encode(source)
    rate = torch.rand(len(target.ids), generator=generator)
    noisy = corrupt(target.ids, rate, model.vocab_size, model.mask_id, mask_share, generator)
    loss = unrolled_loss(
        lambda ids: model(ids, target.mask, encoded),
        target.ids,
        target.mask,
        noisy,
        steps=steps,
        generator=generator,
    )
    return loss + length_weight * cross_entropy(model.length_logits(encoded).float(), lengths)


def unrolled_loss(
    predict: Predict,
    target: Tensor,
    mask: Tensor,
    first: Tensor,
    *,
    steps: int = 2,
    generator: torch.Generator,
) -> Tensor:
    """The mean loss of `steps` denoising steps from the noisy text `first` [B, T] on."""
    in_range("steps", steps, "[1, inf)", integer=True)
    losses, noisy = [], first
    for step in range(steps):
        logits = predict(noisy).float()
        nll = cross_entropy(logits.transpose(1, 2), target, reduction="none")  # [B, T]
        losses.append(masked_mean(nll, mask))
        if step + 1 < steps:
            noisy = draw(logits.detach(), 1.0, generator)
    return torch.stack(losses).mean()


def corrupt(
    target: Tensor,
    rate: Tensor,
    vocab_size: int,
    mask_id: int | None,
    mask_share: float,
    generator: torch.Generator,
) -> Tensor:
    """Each token of row b of target [B, T] replaced with probability rate[b]: by `mask_id` with
    probability mask_share, else by a uniform token."""
    noise = torch.randint(vocab_size, target.shape, generator=generator)
    if mask_id is not None:
        masked = torch.rand(target.shape, generator=generator) < mask_share
        noise = noise.masked_fill(masked, mask_id)
    replaced = torch.rand(target.shape, generator=generator) < rate[:, None]
    return torch.where(replaced.to(target.device), noise.to(target.device), target)
