"""RolloutBuffer: rollouts that are drawn once, scored once and used for several optimizer steps.

    prompts of all micro-batches -> draw, score, prepare at once -> micro-batches
    draw, score -> update 1: minibatches 1 ... m -> update 2: ... -> update u -> draw again

A step's prompts are drawn together, however they are split into micro-batches, so that neither what
is drawn nor what rows are compared with (a batch's spread, a baseline) depends on the split. Each
update goes through all rows once, in an order of its own, in m parts. What was computed at the
moment of sampling (advantages, old log-probabilities) stays, so from the second step on the policy
has moved away from the one that wrote the rows, and ratios and their clipping come into play.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tokenry.core.batch import TokenBatch
from tokenry.core.errors import InputError
from tokenry.core.files import replacing
from tokenry.learn.data import batch_of
from tokenry.learn.loading import STAND_IN

Fields = dict[str, Tensor]


@dataclass(frozen=True)
class RolloutBuffer:
    """The prepared micro-batches of one draw, of one process.

    minibatches: parts of an update. whole_groups: a part keeps the rows of a group together, for
    losses over pairs; else rows are parted, whose advantages are constants by now. seed: a text
    that decides the order of the rows in each update.
    """

    micro_batches: Sequence[Fields]
    minibatches: int = 1
    whole_groups: bool = False
    seed: str = ""

    def step(self, number: int) -> list[Fields]:
        """The micro-batches of optimizer step `number`, counted from 0, on these rollouts.

        One minibatch is all rows as they were drawn. A micro-batch with fewer rows than there are
        minibatches gives a stand-in that counts nothing to those that go empty.
        """
        if self.minibatches == 1:
            return list(self.micro_batches)
        update, part = divmod(number, self.minibatches)
        return [
            self._part(fields, part, random.Random(f"{self.seed}:{update}:{place}"))
            for place, fields in enumerate(self.micro_batches)
        ]

    def _part(self, fields: Fields, part: int, chance: random.Random) -> Fields:
        ids = fields["ids"]
        unit = torch.arange(len(ids), device=ids.device)
        if self.whole_groups:
            unit = fields["group"].unique(return_inverse=True)[1]
        order = list(range(int(unit.max()) + 1))
        chance.shuffle(order)
        # parts differ by one unit at most, the first ones are the larger
        kept = torch.tensor(order, device=unit.device).tensor_split(self.minibatches)[part]
        rows = torch.isin(unit, kept if len(kept) else unit[:1])
        chosen = {name: value[rows] for name, value in fields.items()}
        if not len(kept):
            chosen[STAND_IN] = torch.ones_like(chosen["ids"][:, 0], dtype=torch.bool)
        return chosen

    def save(self, path: Path) -> None:
        """Write the micro-batches, whole or not at all."""
        from safetensors.torch import save_file

        tensors = {
            f"{place}/{name}": value.detach().cpu().contiguous()
            for place, fields in enumerate(self.micro_batches)
            for name, value in fields.items()
        }
        with replacing(path) as partial:
            save_file(tensors, partial)


def joined(micro_batches: Sequence[dict[str, Any]], pad_id: int) -> dict[str, Any]:
    """The prompts of several micro-batches, as a collator makes them, in one."""
    first, *others = micro_batches
    if not others:
        return first
    fields = (
        {"data": [row for one in micro_batches for row in one["data"]]} if "data" in first else {}
    )
    prompts = _prompts(first)
    for other in others:
        prompts = prompts.concat(_prompts(other), pad_id, side="left")
    fields |= {"prompts": prompts.ids, "prompts_attention": prompts.attention}
    if "ids" in first:  # the data's own completions, one row a prompt
        own = batch_of(first)
        for other in others:
            own = own.concat(batch_of(other), pad_id)
        fields |= {"ids": own.ids, "attention": own.attention, "target": own.target}
        fields["group"] = torch.arange(len(own.ids), device=own.ids.device)
    return fields


def parted(fields: Fields, sizes: Sequence[int]) -> list[Fields]:
    """The rows of each micro-batch, by the prompts that they answer: `sizes` of them in turn.

    One whose rows are all left out gets a stand-in that counts nothing.
    """
    parts, start = [], 0
    for size in sizes:
        rows = (fields["group"] >= start) & (fields["group"] < start + size)
        empty = not bool(rows.any())
        rows[0] |= empty
        part = {name: value[rows] for name, value in fields.items()}
        if empty:
            part[STAND_IN] = torch.ones_like(part["ids"][:, 0], dtype=torch.bool)
        parts.append(part)
        start += size
    return parts


def _prompts(fields: dict[str, Any]) -> TokenBatch:
    nothing = torch.zeros_like(fields["prompts_attention"])
    return TokenBatch(fields["prompts"], fields["prompts_attention"], nothing)


def load_micro_batches(path: Path, device: Any) -> list[Fields]:
    """What `RolloutBuffer.save` wrote; InputError when it is not there."""
    from safetensors.torch import load_file

    if not path.is_file():
        raise InputError(
            f"{path} is missing: the checkpoint was written in the middle of a rollout buffer, "
            "whose rows cannot be drawn again from the weights of now. Resume from a checkpoint "
            "that is whole, with as many processes as before"
        )
    micro_batches: dict[int, Fields] = {}
    for key, value in load_file(path).items():
        place, _, name = key.partition("/")
        micro_batches.setdefault(int(place), {})[name] = value.to(device)
    return [micro_batches[place] for place in sorted(micro_batches)]
