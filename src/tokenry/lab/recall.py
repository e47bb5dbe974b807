"""Small transformers that look values up: in tokens of a key and a value, and in texts of facts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import OneCycleLR

from tokenry.core.reduction import Reduction
from tokenry.lab.toy_model import toy_model
from tokenry.lab.toys import fitted
from tokenry.learn.fit import linear
from tokenry.learn.recipes.extensible import train_extensible, two_stream_batch, two_stream_logprob
from tokenry.measure.reduction import reduction_report
from tokenry.model.memory.extensible import ExtensibleTokenizer
from tokenry.tasks.worlds.facts import Facts
from tokenry.tasks.worlds.keyed_tokens import KeyedTokens

# ---- tokens of a key and a value

LONGEST = 256  # tokens that a model has positions for


@dataclass(frozen=True)
class KeyedModel:
    """A model that answers questions about keyed tokens: the question stands behind them."""

    world: KeyedTokens
    model: Any

    def answers(self, tokens: Tensor, question: Tensor) -> Tensor:
        """Logits over values, [B, values], for tokens [B, N, d] and a question [B, d]."""
        return _answers(self.model, tokens, question)

    @torch.no_grad()
    def accuracy(self, tokens: Tensor, question: Tensor, answer: Tensor) -> float:
        return float((self.answers(tokens, question).argmax(-1) == answer).float().mean())

    def described(
        self, reduce: Callable[[Tensor, Tensor], Reduction], tokens: Tensor, question: Tensor
    ) -> dict[str, float]:
        """Diagnostics of a reducer (tokens [N, d], question [d]) -> Reduction, mean over inputs."""
        reports = [
            reduction_report(
                x, reduce(x, q), model=self.model, reduce=lambda y, q=q: reduce(y, q), noise=0.1
            )
            for x, q in zip(tokens, question, strict=True)
        ]
        wanted = (
            "coverage", "redundancy", "effective rank, reduced", "information lost", "stability",
        )  # fmt: skip
        return {name: sum(r[name] for r in reports) / len(reports) for name in wanted}

    def operations(self, length: int) -> int:
        """Floating-point operations for one question about `length` tokens."""
        width, layers, n = self.world.width, len(self.model.model.layers), length + 1
        weights = layers * (4 * width**2 + 3 * width * 2 * width)
        attention = layers * 2 * n * width  # scores and sums, per token
        return 2 * n * (weights + attention) + 2 * width * self.world.values


def keyed_model(
    world: KeyedTokens, steps: int, *, shortest: int = 8, longest: int = 32, batch_size: int = 64
) -> KeyedModel:
    """A model that has seen inputs of `shortest` to `longest` tokens; trained once and kept."""

    def build() -> Any:
        return toy_model(world.values, LONGEST, world.seed, width=world.width)

    def loss(model: Any, generator: torch.Generator) -> Tensor:
        length = int(torch.randint(shortest, longest + 1, (), generator=generator))
        tokens, question, answer = world.questions(batch_size, length, generator)
        return cross_entropy(_answers(model, tokens, question), answer)

    model = fitted(
        build, loss, KeyedTokens, world, (shortest, longest, batch_size), seed=world.seed,
        steps=steps, learning_rate=3e-3, schedule=linear(), weight_decay=0.01, clip=None,
    )  # fmt: skip
    return KeyedModel(world, model)


def _answers(model: Any, tokens: Tensor, question: Tensor) -> Tensor:
    inputs = torch.cat([tokens, question[:, None]], 1)
    return model(inputs_embeds=inputs, use_cache=False).logits[:, -1]


# ---- texts of facts


def facts_model(world: Facts, seed: int, steps: int, batch_size: int = 32) -> Any:
    """A two-layer model that looks values up within its window; trained once and kept."""
    asking = torch.arange(world.stated, world.window, 2)

    def build() -> Any:
        model = toy_model(world.vocabulary, world.window, seed)
        with torch.no_grad():
            for weight in model.parameters():
                if weight.ndim == 2:
                    weight.mul_(5)  # initial attention is flat at this width and learns nothing
        return model

    def loss(model: Any, generator: torch.Generator) -> Tensor:
        ids = world.short_texts(batch_size, generator)
        logits = model(ids, logits_to_keep=asking).logits
        return cross_entropy(logits.transpose(1, 2), ids[:, asking + 1])

    return fitted(
        build, loss, Facts, world, batch_size, seed=seed, steps=steps, learning_rate=3e-3,
        schedule=lambda optimizer, n: OneCycleLR(optimizer, 3e-3, n, pct_start=0.15),
        weight_decay=0.01, clip=None,
    )  # fmt: skip


def taught_tokenizer(
    model: Any, world: Facts, texts: Tensor, ratios: Sequence[int], steps: int, seed: int
) -> ExtensibleTokenizer:
    """One layer of the model, trained to bring what stands before a chunk of long texts [N, T] into
    the window, at the ratios in turn."""
    tokenizer = ExtensibleTokenizer.from_lm(model, layers=1)
    position = torch.arange(texts.shape[1])
    answers = (position >= world.stated) & (position % 2 == 1)
    train_extensible(
        model,
        tokenizer,
        texts,
        chunk=world.chunk,
        ratios=ratios,
        steps=steps,
        batch_size=16,
        learning_rate=3e-3,
        target=answers.expand(len(texts), -1),
        seed=seed,
    )
    return tokenizer


@torch.no_grad()
def loss_from(model: Any, world: Facts, texts: Tensor, start: int) -> Tensor:
    """Loss of the answers in the last chunk of long texts, read from token `start` on: [B] nats."""
    last = (world.chunks - 1) * world.chunk
    logits = model(texts[:, start:]).logits[:, last - start : -1]  # values stand second
    nll = cross_entropy(logits.transpose(1, 2), texts[:, last + 1 :], reduction="none")
    return nll[:, ::2].mean(1)


@torch.no_grad()
def loss_behind(
    model: Any, world: Facts, texts: Tensor, tokenizer: Any, ratio: int, downscale: Any
) -> Tensor:
    """The same with one embedding in place of `ratio` tokens of the chunks before the last."""
    batch = two_stream_batch(model, tokenizer, texts, world.chunk, ratio, downscale=downscale)
    before = (world.chunks - 2) * world.chunk  # the first chunk is not predicted
    return -two_stream_logprob(model, batch)[:, before:][:, 1::2].mean(1)


def raw_embeddings(model: Any) -> ExtensibleTokenizer:
    """A tokenizer that reads nothing: the embeddings of the model, as they are."""
    return ExtensibleTokenizer(_Table(model.get_input_embeddings()), nn.Identity())


class _Table(nn.Module):
    def __init__(self, table: nn.Module) -> None:
        super().__init__()
        self.table = table

    def forward(self, input_ids: Tensor) -> Any:
        return SimpleNamespace(last_hidden_state=self.table(input_ids))
