"""What the units of informed routing do on a text, and how well their forecasters predict it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tokenry.core.errors import InputError
from tokenry.model.adaptive.informed_routing import AttachedRouting
from tokenry.model.adaptive.routed_units import Record
from tokenry.model.adaptive.wrapping import MLP, batch_parts


@dataclass(frozen=True)
class UnitReport:
    """One unit on some text: how often it runs, and how well its forecaster predicts it: r2, the
    share of the update's variance, and error, the mean |F(u) - LFF(u)| / |F(u)|."""

    layer: int
    kind: str
    execute_rate: float
    r2: float
    error: float


@torch.no_grad()
def routing_report(attached: AttachedRouting, batches: Iterable[Any]) -> list[UnitReport]:
    """A line for each unit.

    Rates are those of the rule that is set.

    Args:
        batches: ids [B, T], or mappings with input_ids and attention_mask.
    """
    sums: dict[tuple[int, str], Tensor] = {}
    for batch in batches:
        for record, real in recorded(attached, batch):
            assert record.update is not None
            unit = attached.units[2 * record.location.layer + (record.location.kind == MLP)]
            update = record.update[real].double()
            error = update - unit.forecaster(record.u[real]).double()
            ran = record.execute[real].double().sum()
            ratio = (error.norm(dim=-1) / update.norm(dim=-1).clamp_min(1e-12)).sum()
            count = torch.tensor(len(update), dtype=torch.double, device=ran.device)
            parts = [ran, ratio, error.square().sum(), update.square().sum(), count]
            totals = torch.cat([torch.stack(parts), update.sum(0)])
            key = (record.location.layer, record.location.kind)
            sums[key] = sums[key] + totals if key in sums else totals
    if not sums:
        raise InputError("there is no batch to report on")
    reports = []
    for (layer, kind), total in sums.items():
        ran, ratio, error, square, count = total[:5].tolist()
        variance = square - float(total[5:].square().sum()) / count
        r2 = 1 - error / max(variance, 1e-30)
        reports.append(UnitReport(layer, kind, ran / count, r2, ratio / count))
    return reports


def recorded(attached: AttachedRouting, batch: Any) -> Iterator[tuple[Record, Tensor]]:
    """Forward one batch; every unit's record, and the mask [B, T] of the real tokens."""
    ids, attention = batch_parts(batch)
    with attached.recording(attention) as records:
        attached.model(input_ids=ids, attention_mask=attention, use_cache=False, logits_to_keep=1)
    while records:
        yield records.pop(0), attention.bool()
