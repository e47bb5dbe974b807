"""Training a draft head on a model's features and distributions (EAGLE, FSPAD).

With f the model's last hidden states, H its output layer, f^ and o what the head predicts from
(f_i, e_{i+1}) about position i+1 (`tokenry.model.heads.fspad`), over the positions that count,

    L = w_feature · mean SmoothL1(f^_{i+1}, f_{i+1})
      + w_logit · mean CE( softmax(H f_{i+1}), softmax(H o_{i+1}) )

with SmoothL1 a mean over the dimensions, and weights 1 and 0.1. Only the head learns. With a draft
vocabulary both distributions are those given that the token is in it.

    head = train_feature_head(model, texts, schedule=Schedule(steps=2000, learning_rate=5e-4))
    generate_with_drafter(model, ids, FSPAD(head, nodes=None))

Source: Boosting Lossless Speculative Decoding via Feature Sampling and Partial Alignment
Distillation (arXiv 2408.15562), which changes EAGLE (arXiv 2401.15077). Noise on the features, to
which the head gets used so that its own errors mislead it less, is EAGLE's; features are measured
in units of their root mean square, which is ours.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear, pad, smooth_l1_loss

from tokenry.core.aggregate import masked_mean
from tokenry.core.batch import TokenBatch
from tokenry.core.checks import in_range
from tokenry.learn.fit import frozen
from tokenry.learn.recipes.draft_heads import Pieces, Schedule, Targets, Texts, train_parts
from tokenry.model.heads.fspad import FeatureHead, features_of


def eagle_distill_loss(
    feature: Tensor,
    logits: Tensor,
    target_feature: Tensor,
    target_logits: Tensor,
    mask: Tensor,
    *,
    feature_weight: float = 1.0,
    logit_weight: float = 0.1,
) -> Tensor:
    """The loss over positions where `mask` [B, T] holds; 0 if there is none.

    Args:
        feature: [B, T, d].
        target_feature: [B, T, d].
        logits: [B, T, V].
        target_logits: [B, T, V].
        feature_weight: in [0, inf).
        logit_weight: in [0, inf).
    """
    in_range("feature_weight", feature_weight, "[0, inf)")
    in_range("logit_weight", logit_weight, "[0, inf)")
    distance = smooth_l1_loss(feature.float(), target_feature.float(), reduction="none").mean(-1)
    wanted = target_logits.float().softmax(-1)
    crossed = -(wanted * logits.float().log_softmax(-1)).sum(-1)
    return feature_weight * masked_mean(distance, mask) + logit_weight * masked_mean(crossed, mask)


def train_feature_head(
    model: Any,
    texts: Texts,
    *,
    targets: Targets | None = None,
    head: FeatureHead | None = None,
    schedule: Schedule | None = None,
    feature_weight: float = 1.0,
    logit_weight: float = 0.1,
    noise: float = 0.1,
    observe: Callable[[int, float], None] | None = None,
) -> FeatureHead:
    """A head (a new one, or `head` trained on) for drafting what `model` writes.

    The features of all pieces are computed once and held, in the model's dtype.

    Args:
        texts: token ids, best what the model wrote.
        targets: True on the tokens that count, such as the answers.
        noise: uniform in ± this many root mean squares, in [0, inf), added to the features that the
            head reads.
        observe: called with every step and its loss.
    """
    in_range("noise", noise, "[0, inf)")
    schedule = schedule or Schedule(learning_rate=5e-4)
    head = FeatureHead.of(model, schedule.seed) if head is None else head
    head.check(model)
    device = model.get_input_embeddings().weight.device
    pieces = Pieces(texts, targets, schedule.length, least=3)
    stored: dict[int, Tensor] = {}

    def features(numbers: list[int], batch: TokenBatch) -> Tensor:
        """[B, T, d], those that are known already from memory."""
        if any(number not in stored for number in numbers):
            states = features_of(model, batch.ids, batch.attention.long())
            for number, row, length in zip(numbers, states, batch.lengths.tolist(), strict=True):
                stored[number] = row[:length].cpu().clone()
        width = batch.shape[1]
        rows = [pad(stored[number], (0, 0, 0, width - len(stored[number]))) for number in numbers]
        return torch.stack(rows).to(device)

    def loss(step: int, generator: torch.Generator) -> Tensor:
        numbers, batch = pieces.batch(schedule.batch_size, generator)
        batch = batch.to(device)
        states = features(numbers, batch).float()
        scale = head.feature_scale
        shake = (2 * torch.rand(states.shape, generator=generator) - 1) * noise
        embedded = embed(batch.ids).float()
        feature, answer, _ = head((states + shake.to(device) * scale)[:, :-1], embedded[:, 1:])
        ahead, wanted = states[:, 1:], batch.target[:, 1:]
        return eagle_distill_loss(
            (feature / scale)[wanted][None],
            output.shaped(linear(answer[wanted][None], weight, bias)),
            (ahead / scale)[wanted][None],
            output.shaped(linear(ahead[wanted][None], weight, bias)),
            torch.ones(1, int(wanted.sum()), dtype=torch.bool, device=device),
            feature_weight=feature_weight,
            logit_weight=logit_weight,
        )

    with frozen(model):
        embed = model.get_input_embeddings()
        output = head.output_head(model)
        weight = output.weight.float()
        bias = None if output.bias is None else output.bias.float()
        if float(head.feature_scale) == float(head.embed_scale) == 1.0:
            numbers, batch = pieces.batch(8, torch.Generator().manual_seed(schedule.seed))
            batch = batch.to(device)
            real = batch.attention
            head.feature_scale.fill_(root_mean_square(features(numbers, batch)[real]))
            head.embed_scale.fill_(root_mean_square(embed(batch.ids)[real]))
        train_parts(head, loss, schedule, observe)
    return head


def root_mean_square(values: Tensor) -> float:
    return float(values.float().square().mean().sqrt())
