"""Training a model's masks to predict several tokens ahead (multi-token prediction).

Behind tokens n of a text stand blocks of k masks; all blocks of a text are read in one pass:

    mask j of block n   at position n + j, sees x_{<=n} and the masks 1..j of its own block
                        predicts x_{n+1+j}; its anchor is the state at token n + j
    tokens              see tokens only

With z the states of the masks, h those of the sampler (told the true token before), U the output
layer and a the anchors, over all masks that have a token to predict,

    L = mean CE(U z) + mean CE(U h) + mean over tokens t, over the masks that predict t, of
                                      |z - stop_gradient(a)|^2         (latent consistency)

The model's own predictions are unchanged by construction, so their loss is a constant and left out.

    predictor = train_mtp(model, texts, k=4, rank=16, schedule=Schedule(steps=2000))
    generate_with_drafter(model, ids, MTP(predictor))

Source: Your LLM Knows the Future: Uncovering Its Multi-Token Prediction Potential (arXiv
2507.11851). Weights of 1 for the three terms are reconstructed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from tokenry.core.batch import TokenBatch
from tokenry.core.checks import in_range
from tokenry.core.errors import InputError
from tokenry.learn.fit import frozen
from tokenry.learn.recipes.draft_heads import Pieces, Schedule, Targets, Texts, train_parts
from tokenry.model import compat
from tokenry.model.heads.mtp import MaskPredictor
from tokenry.model.output import last_hidden, output_logits
from tokenry.model.score import unwrap


@dataclass(frozen=True)
class MTPBatch:
    """T tokens of every text and, behind them, N blocks of k masks: L = T + N k columns.

    Attributes:
        ids: [B, L], 0 on masks.
        masks: [B, L], j on mask j, 0 on tokens.
        positions: [B, L].
        allowed: [B, L, L] bool, the row sees the column.
        labels: [B, N k], of the masks in their order: the token to be predicted, -100 for none.
        previous: [B, N k], the true token before it.
        anchors: [N k], the column of the token whose state predicts the same.
    """

    ids: Tensor
    masks: Tensor
    positions: Tensor
    allowed: Tensor
    labels: Tensor
    previous: Tensor
    anchors: Tensor

    @property
    def tokens(self) -> int:
        """T."""
        return self.ids.shape[1] - self.labels.shape[1]


class MTPLoss(NamedTuple):
    """The terms, unweighted, and their weighted sum."""

    total: Tensor
    base: Tensor
    sampler: Tensor
    consistency: Tensor


def mtp_training_batch(batch: TokenBatch, k: int, starts: Tensor | None = None) -> MTPBatch:
    """The pass that trains k masks behind each of the columns `starts` [N] (None: behind all).

    Padding may be on either side; only targets of the batch are predicted.
    """
    B, T = batch.shape
    device = batch.ids.device
    starts = torch.arange(T, device=device) if starts is None else starts.to(device)
    in_range("k", k, "[1, inf)", integer=True)
    if not len(starts) or not 0 <= int(starts.min()) <= int(starts.max()) < T:
        raise InputError(f"blocks start at columns 0 to {T - 1}, got {starts.tolist()}")
    n, j = starts.repeat_interleave(k), torch.arange(1, k + 1, device=device).repeat(len(starts))
    block = torch.arange(len(starts), device=device).repeat_interleave(k)  # each [N k]
    positions = (batch.attention.cumsum(1) - 1).clamp_min(0)  # [B, T]
    columns = torch.arange(T, device=device)

    real = batch.attention[:, None]
    past = columns <= columns[:, None]
    text = torch.cat([past & real, ((columns <= n[:, None]) & real)], dim=1)  # [B, L, T]
    own = (block == block[:, None]) & (j <= j[:, None])
    own = torch.cat([own.new_zeros(T, len(n)), own]).expand(B, -1, -1)  # [B, L, N k]
    allowed = torch.cat([text, own], dim=2)
    allowed = allowed | torch.eye(T + len(n), dtype=torch.bool, device=device)  # padding: itself

    predicted, anchors = n + 1 + j, (n + j).clamp_max(T - 1)
    inside = predicted.clamp_max(T - 1)
    counts = (predicted < T) & batch.target[:, inside] & batch.attention[:, n]
    blank = batch.ids.new_zeros(B, len(n))
    return MTPBatch(
        ids=torch.cat([batch.ids, blank], dim=1),
        masks=torch.cat([torch.zeros_like(batch.ids), j.expand(B, -1)], dim=1),
        positions=torch.cat([positions, positions[:, n] + j], dim=1),
        allowed=allowed,
        labels=torch.where(counts, batch.ids[:, inside], -100),
        previous=batch.ids[:, anchors],
        anchors=anchors,
    )


def mtp_states(model: Any, predictor: MaskPredictor, batch: MTPBatch) -> tuple[Tensor, Tensor]:
    """Last hidden states of the tokens [B, T, d] and of the masks [B, N k, d], in one pass."""
    model = unwrap(model)
    mask = compat.mask_argument(model, batch.allowed, batch.positions, batch.positions)
    with predictor.lora.gate(model, batch.masks > 0), last_hidden(model) as caught:
        model(
            inputs_embeds=predictor.embed(model, batch.ids, batch.masks),
            attention_mask=mask,
            position_ids=batch.positions,
            logits_to_keep=1,
            use_cache=False,
        )
    states = caught[-1]
    return states[:, : batch.tokens], states[:, batch.tokens :]


def mtp_loss(
    logits: Tensor,
    sampler_logits: Tensor | None,
    labels: Tensor,
    states: Tensor,
    anchors: Tensor,
    predicted: Tensor,
    weights: tuple[float, float, float] = (1.0, 1.0, 1.0),
) -> MTPLoss:
    """The loss over n masks.

    Args:
        logits: [n, V], of z.
        sampler_logits: [n, V], of h; None: no sampler.
        labels: [n].
        states: z, [n, d].
        anchors: a, [n, d], which no gradient goes to.
        predicted: [n], equal for masks that predict the same token of the same text.
        weights: of the three terms.
    """
    zero = states.sum() * 0.0
    if not len(labels):
        return MTPLoss(zero, zero, zero, zero)
    base = cross_entropy(logits.float(), labels)
    sampler = zero if sampler_logits is None else cross_entropy(sampler_logits.float(), labels)
    apart = (states.float() - anchors.detach().float()).square().sum(-1)
    _, which, count = predicted.unique(return_inverse=True, return_counts=True)
    consistency = (apart / count[which]).sum() / len(count)
    terms = (base, sampler, consistency)
    total = torch.stack([w * term for w, term in zip(weights, terms, strict=True)]).sum()
    return MTPLoss(total, *terms)


def train_mtp(
    model: Any,
    texts: Texts,
    *,
    targets: Targets | None = None,
    predictor: MaskPredictor | None = None,
    k: int = 8,
    rank: int = 16,
    sampler: bool = True,
    blocks: int = 16,
    schedule: Schedule | None = None,
    weights: tuple[float, float, float] = (1.0, 1.0, 1.0),
    own_weight: float = 0.0,
    observe: Callable[[int, MTPLoss], None] | None = None,
) -> MaskPredictor:
    """Masks, gated LoRA and sampler (new ones, or `predictor` trained on) for `model`.

    Args:
        texts: token ids, best what the model wrote.
        targets: True on the tokens that count, such as the answers.
        k: of a new predictor; the paper's k and rank are 8 and 128.
        rank: of a new predictor; the paper's k and rank are 8 and 128.
        sampler: of a new predictor; the paper's k and rank are 8 and 128.
        blocks: how many places of every text get masks in a step, drawn anew each time.
        weights: of the terms of the loss.
        own_weight: of the model's own next-token loss, see `predictor_loss`.
        observe: called with every step and its loss.
    """
    schedule = schedule or Schedule()
    in_range("blocks", blocks, "[1, inf)", integer=True)
    if predictor is None:
        predictor = MaskPredictor.of(model, k, rank, sampler=sampler, seed=schedule.seed)
    predictor.check(model)
    device = model.get_input_embeddings().weight.device
    pieces = Pieces(texts, targets, schedule.length, least=3)

    def loss(step: int, generator: torch.Generator) -> Tensor:
        _, rows = pieces.batch(schedule.batch_size, generator)
        longest = rows.shape[1]
        starts = torch.randperm(longest - 2, generator=generator)[:blocks].sort().values
        losses = predictor_loss(model, predictor, rows.to(device), starts, weights, own_weight)
        if observe:
            observe(step, losses)
        return losses.total

    with frozen(model):
        train_parts(predictor, loss, schedule)
    return predictor


def predictor_loss(
    model: Any,
    predictor: MaskPredictor,
    batch: TokenBatch,
    starts: Tensor | None = None,
    weights: tuple[float, float, float] = (1.0, 1.0, 1.0),
    own_weight: float = 0.0,
) -> MTPLoss:
    """The loss of a predictor on a batch of texts, with masks behind the columns `starts`.

    Args:
        own_weight: of the model's own next-token loss, which is added to `base`. It is a constant
            under the gate; it matters for an adapter that is on at every token.
    """
    layout = mtp_training_batch(batch, predictor.k, starts)
    tokens, masks = mtp_states(model, predictor, layout)
    counts = layout.labels != -100
    states, labels = masks[counts], layout.labels[counts]
    sampled = None
    if predictor.sampler is not None:
        sampled = predictor.logits(model, states, layout.previous[counts])
    text = torch.arange(len(layout.ids), device=labels.device)[:, None] * layout.ids.shape[1]
    losses = mtp_loss(
        output_logits(model, states),
        sampled,
        labels,
        states,
        tokens[:, layout.anchors][counts],
        (text + layout.anchors)[counts],
        weights,
    )
    if own_weight:
        wanted = batch.target[:, 1:]
        logits = output_logits(model, tokens[:, :-1][wanted])
        own = cross_entropy(logits, batch.ids[:, 1:][wanted])
        base = losses.base + own_weight * own
        losses = losses._replace(base=base, total=losses.total + weights[0] * own_weight * own)
    return losses
