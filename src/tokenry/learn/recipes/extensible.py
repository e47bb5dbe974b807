"""Two-stream training of an extensible tokenizer, the language model frozen.

A text of N chunks of L tokens; m = ⌈L/k⌉ extensible embeddings for each chunk but the last. Every
token behind the first chunk is predicted from the embeddings of the chunks before its own and from
the plain tokens before it in its chunk:

    max  Σ_{i>1} Σ_j log p(x_{i,j} | et_1 .. et_{i-1}, x_{i,1..j-1})

in one pass over [et_1 .. et_{N-1}, X_2, .., X_N]: an embedding sees those up to itself; a token of
X_i sees the embeddings of the chunks before i, and its own chunk up to itself; x_{i,j} stands at
position (i - 1)·m + j. The first token of a chunk is predicted at the last embedding before it.
k is drawn anew for every step. Gradients reach the tokenizer through the frozen model.

    tokenizer = ExtensibleTokenizer.from_lm(model, layers=8)
    train_extensible(model, tokenizer, ids, chunk=512, steps=1000)

Source: Flexibly Scaling Large Language Models Contexts Through Extensible Tokenization (arXiv
2401.07793). The mask for one pass and the convention for the first token are reconstructed; k is
drawn for a batch, in the paper for each text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tokenry.core.aggregate import masked_mean
from tokenry.core.checks import in_range
from tokenry.core.errors import InputError, ShapeError
from tokenry.core.fused import fused_scores
from tokenry.learn.fit import fit, frozen, linear
from tokenry.model import compat
from tokenry.model.memory.extensible import ExtensibleTokenizer, strided_downscale
from tokenry.model.score import linear_head, unwrap

Downscale = Callable[[Tensor, int, int], Tensor]
"""(states [B, T, D], ratio, chunk) -> embeddings [B, E, D]."""


@dataclass(frozen=True)
class TwoStreamBatch:
    """One mixed sequence of S = (N - 1)(m + L) positions, at most.

    Attributes:
        embeddings: [B, S, D].
        allowed: [S, S] bool, which keys a query sees.
        positions: [S].
        predictors: [P], where the labels [B, P] are predicted.
        attention: [B, P] bool, real labels.
    """

    embeddings: Tensor
    allowed: Tensor
    positions: Tensor
    predictors: Tensor
    labels: Tensor
    attention: Tensor


def extensible_loss(
    model: Any,
    tokenizer: ExtensibleTokenizer,
    ids: Tensor,
    chunk: int,
    ratio: int,
    *,
    target: Tensor | None = None,
    downscale: Downscale = strided_downscale,
) -> Tensor:
    """The mean of -log p over the tokens of all chunks but the first, nats.

    Args:
        ids: [B, T], T > chunk.
        target: [B, T] bool, the tokens that count (default: all); padding on the right is left out
            by it.
    """
    batch = two_stream_batch(
        model, tokenizer, ids, chunk, ratio, target=target, downscale=downscale
    )
    return masked_mean(-two_stream_logprob(model, batch), batch.attention)


def two_stream_batch(
    model: Any,
    tokenizer: ExtensibleTokenizer,
    ids: Tensor,
    chunk: int,
    ratio: int,
    *,
    target: Tensor | None = None,
    downscale: Downscale = strided_downscale,
) -> TwoStreamBatch:
    """The mixed sequence of ids [B, T]; the last chunk may be shorter than `chunk`."""
    if ids.ndim != 2 or ids.shape[1] <= chunk:
        raise ShapeError(
            f"ids must be [B, T] with more than one chunk of {chunk} tokens, got {list(ids.shape)}"
        )
    target = torch.ones_like(ids, dtype=torch.bool) if target is None else target
    if target.shape != ids.shape:
        raise ShapeError(f"target must be {list(ids.shape)}, got {list(target.shape)}")
    T = ids.shape[1]
    before_last = (T - 1) // chunk * chunk  # tokens that are compressed
    states = tokenizer.encode(ids[:, :before_last], chunk)
    compressed = downscale(states, ratio, chunk)  # [B, E, D]
    embedded = unwrap(model).get_input_embeddings()(ids[:, chunk:])
    per_chunk = -(-chunk // ratio)
    E, device = compressed.shape[1], ids.device
    # of every place of the sequence: its chunk, and whether it is an embedding
    position = torch.arange(chunk, T, device=device)
    index = torch.arange(E, device=device)
    chunk_of = torch.cat([index // per_chunk, position // chunk])
    plain = torch.arange(E + len(position), device=device) >= E
    positions = torch.cat([index, position // chunk * per_chunk + position % chunk])
    window = compat.window(unwrap(model))
    if window and int(positions.max()) >= window:
        raise InputError(
            f"{E} embeddings and a chunk of {chunk} tokens reach position {int(positions.max())}; "
            f"the model has {window}: take shorter texts or a larger ratio than {ratio}"
        )
    order = torch.arange(len(plain), device=device)
    causal = order[None, :] <= order[:, None]
    earlier = chunk_of[None, :] < chunk_of[:, None]
    same = chunk_of[None, :] == chunk_of[:, None]
    allowed = torch.where(
        plain[:, None],
        torch.where(plain[None, :], same & causal, earlier),
        causal & ~plain[None, :],
    )
    # behind its chunk's first token, each is predicted at the one before it
    first = position % chunk == 0
    predictors = torch.where(first, position // chunk * per_chunk - 1, E + position - chunk - 1)
    return TwoStreamBatch(
        torch.cat([compressed.to(embedded.dtype), embedded], dim=1),
        allowed,
        positions,
        predictors,
        ids[:, chunk:],
        target[:, chunk:].bool(),
    )


def two_stream_logprob(model: Any, batch: TwoStreamBatch) -> Tensor:
    """log p of each label [B, P], float32; the logits are never held where the head is linear."""
    B = len(batch.embeddings)
    plain = unwrap(model)
    inputs: dict[str, Any] = {
        "inputs_embeds": batch.embeddings,
        "attention_mask": compat.mask_argument(
            plain,
            batch.allowed.expand(B, -1, -1),
            batch.positions[None],
            batch.positions[None],
            batch.embeddings.dtype,
        ),
        "position_ids": batch.positions[None].expand(B, -1),
        "use_cache": False,
    }
    head = linear_head(model)
    if head is None:
        logits = model(**inputs, logits_to_keep=batch.predictors).logits.float()
        return logits.log_softmax(-1).gather(-1, batch.labels[..., None])[..., 0]
    hidden = compat.decoder_of(plain)(**inputs).last_hidden_state[:, batch.predictors]
    return fused_scores(hidden.flatten(0, 1), head, batch.labels.flatten()).logprob.view(B, -1)


def train_extensible(
    model: Any,
    tokenizer: ExtensibleTokenizer,
    ids: Tensor,
    *,
    chunk: int = 512,
    ratios: Sequence[int] = (2, 4, 8, 16, 32),
    steps: int = 1000,
    batch_size: int = 8,
    learning_rate: float = 5e-5,
    target: Tensor | None = None,
    downscale: Downscale = strided_downscale,
    seed: int = 0,
    watch: Callable[[int, float], None] | None = None,
) -> list[float]:
    """Train the tokenizer in place and return the loss of every step.

    Args:
        model: any causal language model, left as it is.
        ids: texts of one length [N, T], of which each step takes `batch_size`.
        target: as in `extensible_loss`.
        learning_rate: of Adam, falling linearly to 0.
        watch: is told the step and its loss.
    """
    in_range("steps", steps, "[1, inf)", integer=True)
    in_range("batch_size", batch_size, "[1, inf)", integer=True)
    in_range("learning_rate", learning_rate, "(0, inf)")
    if not len(ids) or not ratios:
        raise InputError(f"training needs texts and ratios, got {len(ids)} and {list(ratios)}")
    device = unwrap(model).get_input_embeddings().weight.device

    def loss(step: int, generator: torch.Generator) -> Tensor:
        rows = torch.randint(len(ids), (batch_size,), generator=generator)
        ratio = ratios[int(torch.randint(len(ratios), (), generator=generator))]
        counted = None if target is None else target[rows].to(device)
        return extensible_loss(
            model,
            tokenizer,
            ids[rows].to(device),
            chunk,
            ratio,
            target=counted,
            downscale=downscale,
        )

    tokenizer.train()
    try:
        with frozen(model):
            return fit(
                loss,
                tokenizer,
                steps=steps,
                learning_rate=learning_rate,
                schedule=linear(),
                seed=seed,
                observe=None if watch is None else lambda done, value: watch(done - 1, value),
            )
    finally:
        tokenizer.eval()
