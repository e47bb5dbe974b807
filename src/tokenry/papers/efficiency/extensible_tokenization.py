"""Extensible tokenization at laptop scale: facts that lie beyond a small model's window.

A text states facts, one token for each key and its value, and asks for them: key, value. A model
with a window of 64 tokens learns to look values up, and is frozen. In a text of six chunks of 16
tokens the first two state the facts; the next three ask for one half of them; the last asks for
the other half, whose statements are out of the window's reach. A tokenizer of one layer learns, at
ratios 2 to 8 in turn, to put them into its reach.
"""

from __future__ import annotations

import math
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import OneCycleLR

from tokenry.lab.toy_model import toy_model
from tokenry.learn.fit import fit
from tokenry.learn.recipes.extensible import train_extensible, two_stream_batch, two_stream_logprob
from tokenry.model.memory.extensible import (
    ExtensibleTokenizer,
    mean_pool_downscale,
    random_downscale,
    strided_downscale,
)
from tokenry.papers.base import Measurement, Outcome, Paper, mean_and_error

KEYS, VALUES = 16, 8
WINDOW, CHUNK, CHUNKS = 64, 16, 6
RATIOS = (2, 4, 8)
WIDTH, BATCH = 64, 32
LM_STEPS, TOKENIZER_STEPS = 220, 1200
STATED = 2 * KEYS  # tokens before the first question
TEXTS = 256
Losses = dict[str, Tensor]
"""Of each setting, the mean loss of the questions of each text, nats."""


def reproduce(seed: int) -> Outcome:
    """Held if, at every ratio, the embeddings lose less than the full window of plain tokens and
    less than guessing, by two standard errors, and the loss does not fall with the ratio by two."""
    losses = measure(seed)
    guessing = math.log(VALUES)
    window = losses["truncated to the window"]
    helps = [
        all(clearly(rival - losses[ours(ratio)]) for rival in (window, guessing))
        for ratio in RATIOS
    ]
    ordered = [not clearly(losses[ours(a)] - losses[ours(b)]) for a, b in pairwise(RATIOS)]
    failed = [
        *(f"no gain at ratio {k}" for k, ok in zip(RATIOS, helps, strict=True) if not ok),
        *([] if all(ordered) else ["the loss falls with the ratio"]),
    ]
    means = {name: float(values.mean()) for name, values in losses.items()}
    untrained = ", ".join(f"{means[pooled(k)]:.2f}" for k in RATIOS)
    return Outcome(
        held=not failed,
        needs="loss(ratio) < loss(truncated) and < loss(guessing) at ratios 2, 4, 8 by more than "
        "two standard errors, and the loss does not fall with the ratio by more than two",
        measurements=[
            Measurement("guessing", guessing, "nats per question", seed),
            *(Measurement(name, value, "nats per question", seed) for name, value in means.items()),
        ],
        reason="; ".join(failed)
        or "a tokenizer of one layer, trained briefly on the answers of texts of the same kind; "
        f"means of the model's embeddings, with no training, lose {untrained} nats at ratios 2, 4, "
        "8. The model has never read a text without its facts, so the window without them loses "
        "more than guessing does",
        figure=lambda figure: draw(figure, means),
    )


def clearly(gap: Tensor) -> bool:
    """Whether the mean of independent values is above 0 by more than two standard errors."""
    mean, error = mean_and_error(gap)
    return mean > 2 * error


def pooled(ratio: int) -> str:
    return f"means of embeddings, {ratio} tokens each"


def ours(ratio: int) -> str:
    return f"extensible, {ratio} tokens each"


def measure(seed: int) -> Losses:
    model = trained_model(seed)
    generator = torch.Generator().manual_seed(seed + 1000)
    texts = long_texts(TOKENIZER_STEPS * BATCH // 4, generator)
    asked = long_texts(TEXTS, generator)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        tokenizer = ExtensibleTokenizer.from_lm(model, layers=1)
    place = torch.arange(texts.shape[1])
    answers = (place >= STATED) & (place % 2 == 1)
    train_extensible(
        model,
        tokenizer,
        texts,
        chunk=CHUNK,
        ratios=RATIOS,
        steps=TOKENIZER_STEPS,
        batch_size=BATCH // 2,
        learning_rate=3e-3,
        target=answers.expand(len(texts), -1),
        seed=seed,
    )
    return evaluate(model, tokenizer, asked, seed)


@torch.no_grad()
def evaluate(model: Any, tokenizer: ExtensibleTokenizer, texts: Tensor, seed: int) -> Losses:
    last = (CHUNKS - 1) * CHUNK

    def plain(start: int) -> Tensor:
        logits = model(texts[:, start:]).logits[:, last - start : -1]  # values stand second
        nll = cross_entropy(logits.transpose(1, 2), texts[:, last + 1 :], reduction="none")
        return nll[:, ::2].mean(1)

    def compressed(reader: ExtensibleTokenizer, ratio: int, downscale: Any) -> Tensor:
        batch = two_stream_batch(model, reader, texts, CHUNK, ratio, downscale=downscale)
        return -two_stream_logprob(model, batch)[:, last - CHUNK :][:, 1::2].mean(1)

    found = {
        "no context": plain(last),
        "truncated to the window": plain(CHUNKS * CHUNK - WINDOW),
        "beyond the window": plain(0),
    }
    raw = ExtensibleTokenizer(RawEmbeddings(model), nn.Identity())
    for ratio in RATIOS:
        found[pooled(ratio)] = compressed(raw, ratio, mean_pool_downscale)
    generator = torch.Generator().manual_seed(seed)
    random = partial(random_downscale, generator=generator)
    found["random places, 4 tokens each"] = compressed(tokenizer, 4, random)
    for ratio in RATIOS:
        found[ours(ratio)] = compressed(tokenizer, ratio, strided_downscale)
    return found


class RawEmbeddings(nn.Module):
    """A backbone that reads nothing: the embeddings of the model, as they are."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.table = model.get_input_embeddings()

    def forward(self, input_ids: Tensor) -> Any:
        from types import SimpleNamespace

        return SimpleNamespace(last_hidden_state=self.table(input_ids))


def trained_model(seed: int) -> Any:
    """A two-layer model that has learned to look values up within its window."""
    model = toy_model(KEYS * VALUES + KEYS + VALUES, WINDOW, seed, width=WIDTH)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 2:
                weight.mul_(5)  # initial attention is flat at this width and learns nothing
    asking = torch.arange(STATED, WINDOW, 2)

    def loss(step: int, generator: torch.Generator) -> Tensor:
        ids = short_texts(BATCH, generator)
        logits = model(ids, logits_to_keep=asking).logits
        return cross_entropy(logits.transpose(1, 2), ids[:, asking + 1])

    fit(
        loss,
        model,
        steps=LM_STEPS,
        learning_rate=3e-3,
        schedule=lambda optimizer, steps: OneCycleLR(optimizer, 3e-3, steps, pct_start=0.15),
        weight_decay=0.01,
        clip=None,
        seed=seed,
    )
    return model.eval()


def short_texts(count: int, generator: torch.Generator) -> Tensor:
    """Facts of all keys, twice, and as many questions: [count, WINDOW]."""
    facts = torch.randint(VALUES, (count, KEYS), generator=generator)
    asked = torch.randint(KEYS, (count, KEYS), generator=generator)
    return torch.cat([statements(facts, generator), questions(asked, facts)], dim=1)


def long_texts(count: int, generator: torch.Generator) -> Tensor:
    """Facts of all keys, twice, three chunks of questions about one half of them, and one about
    the other half: [count, CHUNKS * CHUNK]."""
    facts = torch.randint(VALUES, (count, KEYS), generator=generator)
    keys = torch.rand(count, KEYS, generator=generator).argsort(1)
    near = torch.randint(KEYS // 2, (count, 3 * CHUNK // 2), generator=generator)
    asked = torch.cat([keys.gather(1, near), keys[:, KEYS // 2 :]], dim=1)
    return torch.cat([statements(facts, generator), questions(asked, facts)], dim=1)


def statements(facts: Tensor, generator: torch.Generator) -> Tensor:
    """The tokens of all facts [B, KEYS] in some order, and again in another: [B, 2 KEYS]."""
    tokens = torch.arange(KEYS) * VALUES + facts
    orders = [torch.rand(facts.shape, generator=generator).argsort(1) for _ in range(2)]
    return torch.cat([tokens.gather(1, order) for order in orders], dim=1)


def questions(keys: Tensor, facts: Tensor) -> Tensor:
    """Key, value, key, value, ... [B, 2 n] for keys [B, n]."""
    asked = KEYS * VALUES + keys
    answers = KEYS * VALUES + KEYS + facts.gather(1, keys)
    return torch.stack([asked, answers], dim=-1).flatten(1)


def draw(figure: Any, means: dict[str, float]) -> None:
    axes = figure.subplots()
    for name, kind in (("extensible", ours), ("means of embeddings", pooled)):
        axes.plot(RATIOS, [means[kind(ratio)] for ratio in RATIOS], "o-", label=name)
    axes.axhline(means["truncated to the window"], linestyle="--", color="gray", label="truncated")
    axes.axhline(math.log(VALUES), linestyle=":", color="gray", label="guessing")
    axes.set(xlabel="tokens of an embedding", ylabel="loss (nats per question)", xticks=RATIOS)
    axes.legend()


PAPER = Paper(
    number=75,
    key="extensible-tokenization",
    title="Flexibly Scaling LLMs Contexts Through Extensible Tokenization",
    arxiv="2401.07793",
    role="context compressor",
    family="efficiency",
    claim="Embeddings that each stand for k tokens bring context beyond a frozen model's window "
    "into it, at a k chosen when reading.",
    reproduce=reproduce,
    threads=1,
)
