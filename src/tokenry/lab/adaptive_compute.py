"""What adaptive depth and width are judged by: losses of tokens, routes, and kinds of bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from tokenry.lab.toy_model import toy_model
from tokenry.lab.toys import trained
from tokenry.learn.recipes.language_loss import language_loss, optimise
from tokenry.model.adaptive.dual_ffn import BIG, SMALL, AttachedDuo, RouteLosses
from tokenry.model.adaptive.skipdecode import AttachedSkipDecode
from tokenry.tasks.worlds.restaurants import IDS, PROMPT, SENTENCE, restaurants


@torch.no_grad()
def predicted(model: Any, ids: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    """The loss of every token of ids [B, T] in nats, and whether it is the likeliest one: [B, T]
    each, 0 and False for the first. options: of the model's forward."""
    logits = model(input_ids=ids, use_cache=False, **options).logits[:, :-1].float()
    logprob = logits.log_softmax(-1)
    loss = -logprob.gather(-1, ids[:, 1:, None])[..., 0]
    return pad(loss, (1, 0)), pad(logprob.argmax(-1) == ids[:, 1:], (1, 0))


def losses_of_choices(losses: RouteLosses, budget: int) -> dict[str, Tensor]:
    """The loss [B, T] of every token under the routes that different rules choose for so many big
    blocks: the best, what a minimum by chance would be, the surest, the mean one, fixed ones."""
    order = torch.arange(losses.routes.shape[1])

    def fixed(big: Tensor) -> Tensor:
        pattern = torch.where(big, BIG, SMALL)
        return losses.loss[..., (losses.routes == pattern).all(-1).nonzero()[0, 0]]

    return {
        "oracle": losses.oracle(budget)[0],
        "minimum by chance": losses.expected_minimum(budget),
        "smallest entropy": losses.by_entropy(budget),
        "random": losses.loss[..., losses.of_budget(budget)].mean(-1),
        "first layers": fixed(order < budget),
        "last layers": fixed(order >= len(order) - budget),
    }


def routed(attached: AttachedDuo, ids: Tensor) -> tuple[Tensor, float]:
    """The loss [B, T] with the routers' own choices, and how many big blocks they take a token."""
    with attached.learned(hard=True) as seen:
        loss, _ = predicted(attached.model, ids)
    big = torch.stack([probability.argmax(-1) == BIG for probability in seen])
    return loss, float(big.float().sum(0).mean())


def kinds_of_bytes(ids: Tensor) -> dict[str, Tensor]:
    """Which bytes [B, T] of source code begin a name, go on with one, and are blanks after blanks;
    never the first of a row."""
    letters = torch.zeros(256, dtype=torch.bool)
    letters[[byte for byte in range(128) if chr(byte).isalnum() or chr(byte) == "_"]] = True
    name, blank = letters[ids], ids == ord(" ")
    before_name, before_blank = name.roll(1, 1), blank.roll(1, 1)
    inside = torch.arange(ids.shape[1]) > 0
    return {
        "first byte of a name": name & ~before_name & inside,
        "further byte of a name": name & before_name & inside,
        "blank after a blank": blank & before_blank & inside,
    }


def restaurant_model(batches: Sequence[dict[str, Tensor]], seed: int, layers: int = 8) -> Any:
    """A transformer that tells restaurants (`tasks.worlds.restaurants`), trained on these batches
    once and kept; a copy whose weights are to be trained further."""

    def build() -> Any:
        return toy_model(len(IDS), PROMPT + SENTENCE, seed, layers=layers)

    def train(model: Any) -> None:
        weights, steps = model.parameters(), len(batches)
        optimise(weights, lambda _, batch: language_loss(model, batch), batches, steps, 3e-3)

    drawn = [(len(one["input_ids"]), int(one["input_ids"].sum())) for one in batches]
    return trained(build, train, restaurants, seed, drawn).requires_grad_(True)


def exit_early(attached: AttachedSkipDecode) -> None:
    """Spend SkipDecode's budgets on the lowest layers, and out: layer n runs while b(t) > n."""
    schedule = attached.method.schedule()
    for wrapper in attached.wrappers():
        runs = sum(budget > wrapper.number for budget in schedule)
        wrapper.depth = replace(
            wrapper.depth,
            in_prompt=attached.method.max_layers > wrapper.number,
            scheduled=2**62 if runs == len(schedule) else runs,
        )
