"""Draft heads at laptop scale: small models that write, what heads guess of it, and what they cost.

A writer is a small transformer that was fitted to a world of texts. Its own texts teach the heads,
and further ones judge them.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import linear

from tokenry.core.batch import TokenBatch
from tokenry.lab.toy_training import fit_toy, sample_on
from tokenry.learn.recipes.draft_heads import Schedule, Texts
from tokenry.learn.recipes.mtp import mtp_states, mtp_training_batch, train_mtp
from tokenry.model.heads.fspad import FeatureHead, features_of
from tokenry.model.heads.mtp import MaskPredictor
from tokenry.model.layers.gated_lora import GatedLoRA
from tokenry.model.output import output_logits


class TextWorld(Protocol):
    """Texts of one length over `size` ids; the first `start` of a text are its prompt. Its repr
    says all that decides the texts."""

    @property
    def size(self) -> int: ...

    @property
    def length(self) -> int: ...

    @property
    def start(self) -> int: ...

    def batch(self, count: int, generator: torch.Generator) -> TokenBatch: ...


@dataclass(frozen=True)
class Writer:
    """A model that was fitted to a world, and what it writes."""

    model: Any
    world: TextWorld

    def write(self, count: int, generator: torch.Generator, greedy: bool = False) -> Tensor:
        """Texts [count, length] of the model behind prompts of the world."""
        prompts = self.world.batch(count, generator).ids[:, : self.world.start]
        missing = self.world.length - self.world.start
        rest = sample_on(self.model, prompts, missing, generator, greedy=greedy)
        return torch.cat([prompts, rest], 1)


def writer(
    world: TextWorld, seed: int, *, width: int, layers: int = 3, steps: int, batch_size: int
) -> Writer:
    """A transformer fitted to the world by likelihood; trained once and kept (`lab.toys`)."""
    model = fit_toy(
        lambda generator: world.batch(batch_size, generator),
        world.size,
        4 * world.length,
        seed,
        data=(world, batch_size),
        steps=steps,
        clip=1.0,
        width=width,
        layers=layers,
    )
    return Writer(model, world)


@torch.no_grad()
def chain_acceptance(
    model: Any, head: FeatureHead, rows: Tensor, depth: int, prompt: int
) -> Tensor:
    """How often the first, second, ... guess of a chain comes true, with all before it: [B, depth].

    A chain starts behind every token of rows [B, T] in one go: the head reads true features up to
    there and its own after that. None starts in the prompt of so many tokens, nor behind the last
    `depth` tokens. In a text that the model drew itself this is what verification accepts.
    """
    B, T = rows.shape
    embed, (weight, bias) = model.get_input_embeddings(), head.output_rows(model)
    features = features_of(model, rows, torch.ones_like(rows))[:, :-1]
    tokens, count = rows[:, 1:], T - 1  # pair i: the feature of token i, and token i + 1
    pairs = torch.arange(count)
    past = pairs <= pairs[:, None]
    itself = torch.eye(count, dtype=torch.bool)
    memory, alive = None, torch.ones(B, count - depth, dtype=torch.bool)
    rates = []
    for step in range(depth):
        # true pairs up to the chain's start, and of the guessed ones the chain's own
        seen = torch.cat([past, *[itself] * step], dim=1)[None, None]
        features, answer, memory = head(
            features, embed(tokens), memory, (pairs + step).expand(B, -1), seen
        )
        ids = linear(answer, weight, bias).argmax(-1)
        tokens = torch.tensor(head.to_ids(ids.flatten().tolist())).view_as(ids)
        truth = rows[:, 2 + step : 2 + step + count - depth]
        alive = alive & (tokens[:, : count - depth] == truth)
        rates.append(alive[:, prompt - 1 :].float().mean(1))
    return torch.stack(rates, 1)


class PlainLoRA(GatedLoRA):
    """Plain LoRA: every token feels the change, whatever the gate."""

    def gate(self, model: Any, chosen: Tensor) -> AbstractContextManager[None]:
        return super().gate(model, torch.ones_like(chosen))


def taught_masks(
    model: Any,
    texts: Texts,
    schedule: Schedule,
    *,
    k: int,
    rank: int,
    blocks: int,
    seed: int,
    consistency: float = 1.0,
    gated: bool = True,
) -> MaskPredictor:
    """Masks, LoRA and sampler taught by texts. consistency: weight of that term of the loss.
    gated: False takes plain LoRA, which has to keep the model's own predictions, too."""
    predictor = MaskPredictor.of(model, k, rank, seed=seed)
    if not gated:
        predictor.lora = PlainLoRA.of(model, rank, seed=seed)
    return train_mtp(
        model,
        texts,
        predictor=predictor,
        blocks=blocks,
        schedule=schedule,
        weights=(1.0, 1.0, consistency),
        own_weight=0.0 if gated else 1.0,
    )


@torch.no_grad()
def loss_among_masks(model: Any, rows: TokenBatch, predictor: MaskPredictor, every: int) -> Tensor:
    """Next-token loss of the texts' own tokens in a pass with masks behind every `every`-th of
    them, in nats, float64: [B, T - 1]."""
    layout = mtp_training_batch(rows, predictor.k, torch.arange(0, rows.shape[1], every))
    states, _ = mtp_states(model, predictor, layout)
    logprob = output_logits(model, states[:, :-1]).log_softmax(-1)
    return -logprob.gather(-1, rows.ids[:, 1:, None])[..., 0].double()
