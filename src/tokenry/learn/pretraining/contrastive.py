"""Contrastive losses: what an anchor's positives are, against all that it is compared with.

    L_i = - 1/|P(i)| sum_{p in P(i)} log( exp(f_i.f_p / t) / sum_{a in A(i)} exp(f_i.f_a / t) )

f are unit vectors, t is the temperature; anchors i are all views of all samples. In supervised
contrastive learning P(i) are the other views of the anchor's class, A(i) all other views; with a
class for each sample it is SimCLR's loss.

Source: Supervised Contrastive Learning (arXiv 2004.11362), eq. 2.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from tokenry.core.checks import in_range
from tokenry.core.errors import ShapeError


def sup_con_loss(features: Tensor, labels: Tensor, temperature: float = 0.1) -> Tensor:
    """The mean of L over all views.

    Args:
        features: [B, V, D], V >= 2 views of each sample; they are brought to length 1.
        labels: [B], the classes, whole numbers.
        temperature: t, in (0, inf); default 0.1.

    Returns:
        A scalar.

    Raises:
        ShapeError: other shapes. InputError: a temperature out of range.
    """
    in_range("temperature", temperature, "(0, inf)")
    cosines, _ = view_cosines(features)
    classes = of_views(labels, features)
    same = classes[:, None] == classes
    others = ~torch.eye(len(cosines), dtype=torch.bool, device=cosines.device)
    return contrast(cosines / temperature, same & others, others).mean()


def contrast(logits: Tensor, positives: Tensor, compared: Tensor) -> Tensor:
    """L of each anchor, [N], from logits [N, N] and the masks of P and A, [N, N] bool, P within A;
    0 where there are no positives."""
    total = logits.masked_fill(~compared, -torch.inf).logsumexp(-1)
    inside = (logits * positives).sum(-1) / positives.sum(-1).clamp_min(1)
    return torch.where(positives.any(-1), total - inside, 0.0)


def view_cosines(features: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines of all views, [B V, B V] float32, sample after sample, and the mask of the other
    views of the same sample. ShapeError unless there are two views or more."""
    if features.ndim != 3 or features.shape[1] < 2:
        raise ShapeError(f"features must be [B, V >= 2, D], got {list(features.shape)}")
    count, views, _ = features.shape
    unit = normalize(features.float(), dim=-1).flatten(0, 1)
    sample = torch.arange(count, device=features.device).repeat_interleave(views)
    twins = sample[:, None] == sample
    return unit @ unit.T, twins & ~torch.eye(len(unit), dtype=torch.bool, device=unit.device)


def of_views(values: Tensor, features: Tensor) -> Tensor:
    """[B] -> [B V]. ShapeError unless there is one value for each sample."""
    if values.shape != features.shape[:1]:
        raise ShapeError(f"{list(values.shape)} values for {len(features)} samples")
    return values.repeat_interleave(features.shape[1])
