"""Iterative denoising: a text is written whole, and rewritten a few times.

    x(0) all masks, or random tokens, of the lengths that the encoder finds likeliest
    x(k+1) = argmax f(x(k), source), or a draw at a temperature, at all positions or some of them

Of the candidates, one for each length tried, the text wins that the model finds best: the mean of
log f(x_t | x, source) over its tokens.

Source: Making the Most of your Model: Methods for Finetuning and Applying Pretrained Transformers
(arXiv 2408.16241), after Step-unrolled Denoising Autoencoders for Text Generation (arXiv
2112.06749).
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokenry.core.checks import in_range
from tokenry.model.layers.denoising import DenoisingSeq2Seq, Encoded, Padded, masked_mean_rows


@torch.no_grad()
def iterative_decode(
    model: DenoisingSeq2Seq,
    source: Padded,
    *,
    iterations: int = 8,
    candidates: int = 1,
    lengths: Tensor | None = None,
    temperature: float = 0.0,
    fraction: float = 1.0,
    seed: int | torch.Generator = 0,
) -> list[list[int]]:
    """A text for every source.

    Args:
        candidates: the likeliest lengths tried, of which the text that the model finds best (mean
            log p of its tokens, given itself) is returned.
        lengths: [B], to be written in place of guesses.
        temperature: 0 takes the likeliest tokens.
        fraction: of positions rewritten in an iteration, random ones.
    """
    in_range("iterations", iterations, "[1, inf)", integer=True)
    in_range("candidates", candidates, "[1, inf)", integer=True)
    in_range("fraction", fraction, "(0, 1]")
    in_range("temperature", temperature, "[0, inf)")
    generator = torch.Generator().manual_seed(seed) if isinstance(seed, int) else seed
    encoded = model.encode(source)
    if lengths is None:
        count = min(candidates, model.max_length)
        # length 0 has nothing to be written
        chosen = model.length_logits(encoded)[:, 1:].topk(count).indices + 1  # [B, n]
    else:
        chosen = lengths[:, None]
    count = chosen.shape[1]
    encoded = Encoded(
        encoded.states.repeat_interleave(count, 0), encoded.mask.repeat_interleave(count, 0)
    )
    width = int(chosen.max())
    mask = torch.arange(width, device=chosen.device) < chosen.reshape(-1, 1)  # [B n, T]
    if model.mask_id is not None:
        ids = torch.full(mask.shape, model.mask_id, device=mask.device)
    else:
        ids = torch.randint(model.vocab_size, mask.shape, generator=generator).to(mask.device)
    ids = ids.masked_fill(~mask, model.pad_id)
    for _ in range(iterations):
        proposed = draw(model(ids, mask, encoded).float(), temperature, generator)
        if fraction < 1.0:
            rewritten = torch.rand(ids.shape, generator=generator).to(ids.device) < fraction
            proposed = torch.where(rewritten, proposed, ids)
        proposed = proposed.masked_fill(~mask, model.pad_id)
        settled = temperature == 0.0 and fraction == 1.0 and torch.equal(proposed, ids)
        ids = proposed
        if settled:
            break
    logprobs = model(ids, mask, encoded).float().log_softmax(-1)
    scores = masked_mean_rows(logprobs.gather(-1, ids[..., None])[..., 0], mask)
    best = scores.view(-1, count).argmax(1)
    rows = torch.arange(len(best), device=best.device) * count + best
    return [ids[row, mask[row]].tolist() for row in rows.tolist()]


def draw(logits: Tensor, temperature: float, generator: torch.Generator) -> Tensor:
    """A token for each position of logits [B, T, V]; the likeliest at temperature 0."""
    if temperature == 0.0:
        return logits.argmax(-1)
    probabilities = (logits / temperature).softmax(-1).cpu()
    drawn = torch.multinomial(probabilities.flatten(0, 1), 1, generator=generator)
    return drawn.view(logits.shape[:2]).to(logits.device)
