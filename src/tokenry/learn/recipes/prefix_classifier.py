"""Training a classifier of prefixes on the model's own samples.

    minimise  mean over texts y ~ p and prefixes y_<=t of  -log q(label(y, t) | y_<=t)

The minimum is the label's true probability under the model, given the prefix. The label of an
attribute A is the same at every prefix of a text: whether the whole of it has A. The label of the
remaining length is how many tokens came after. The language model is read once, and stays as it
is; only the small head learns.

Source: Making the Most of your Model: Methods for Finetuning and Applying Pretrained Transformers
(arXiv 2408.16241), and MAP's not dead yet (arXiv 2311.08817).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from tokenry.core.batch import TokenBatch
from tokenry.core.checks import in_range
from tokenry.core.errors import InputError, ShapeError
from tokenry.learn.fit import fit, linear
from tokenry.model.heads.prefix_classifier import PrefixClassifier
from tokenry.model.score import score

Texts = Sequence[Sequence[int]]


def attribute_labels(
    texts: Texts, ends: Collection[int], holds: Callable[[tuple[int, ...]], bool]
) -> list[list[int]]:
    """1 at every prefix of a text that ended and `holds`, which is asked without the end; else 0.

    Args:
        texts: as sampled, with their end token unless they were cut off.
    """
    labels = []
    for text in texts:
        ended = bool(text) and text[-1] in ends
        labels.append([int(ended and holds(tuple(text[:-1])))] * len(text))
    return labels


def remaining_labels(texts: Texts, ends: Collection[int], most: int) -> list[list[int]]:
    """How many tokens come after each prefix, the end not counted, at most `most`.

    A text that was cut off has `most` to come, wherever it was cut. For a classifier of
    `most + 1` classes.
    """
    labels = []
    for text in texts:
        if text and text[-1] in ends:
            length = len(text) - 1
            labels.append([min(max(length - t, 0), most) for t in range(1, len(text) + 1)])
        else:
            labels.append([most] * len(text))
    return labels


def train_prefix_classifier(
    model: Any,
    prompts: Texts,
    texts: Texts,
    labels: Sequence[Sequence[int]],
    *,
    classes: int = 2,
    inner: int = 128,
    steps: int = 400,
    learning_rate: float = 3e-3,
    batch_size: int = 1024,
    decay: float = 1e-2,
    seed: int = 0,
) -> PrefixClassifier:
    """A classifier of the prefixes of `texts`, each of which went on from its prompt.

    Args:
        prompts: token ids, one prompt for each text, or a single one for all.
        texts: token ids, one prompt for each text, or a single one for all.
        labels: one class for each token of each text.
        steps: >= 1, of AdamW (weight decay `decay` >= 0, learning rate > 0 falling to 0) on
            `batch_size` >= 1 prefixes each.
    """
    for name, count in (("classes", classes), ("inner", inner), ("steps", steps)):
        in_range(name, count, "[1, inf)", integer=True)
    in_range("batch_size", batch_size, "[1, inf)", integer=True)
    in_range("learning_rate", learning_rate, "(0, inf)")
    in_range("decay", decay, "[0, inf)")
    prompts = list(prompts) * len(texts) if len(prompts) == 1 else prompts
    hidden, tokens, targets = _prefixes(model, prompts, texts, labels)
    if int(targets.min()) < 0 or int(targets.max()) >= classes:
        raise InputError(
            f"labels lie between {int(targets.min())} and {int(targets.max())}, "
            f"which does not fit {classes} classes"
        )
    with torch.random.fork_rng():
        torch.manual_seed(seed)  # torch initialises layers from the global generator
        classifier = PrefixClassifier.of(model, classes, inner).to(hidden.device)
    embeddings = model.get_input_embeddings()

    def loss(step: int, generator: torch.Generator) -> Tensor:
        chosen = torch.randint(len(targets), (batch_size,), generator=generator).to(hidden.device)
        with torch.no_grad():
            embedded = embeddings(tokens[chosen])
        logprobs = classifier(hidden[chosen], embedded)
        return -logprobs.gather(-1, targets[chosen, None]).mean()

    fit(
        loss,
        classifier,
        steps=steps,
        learning_rate=learning_rate,
        schedule=linear(),
        weight_decay=decay,
        clip=None,
        seed=seed,
    )
    return classifier.eval().requires_grad_(False)


def _prefixes(
    model: Any, prompts: Texts, texts: Texts, labels: Sequence[Sequence[int]]
) -> tuple[Tensor, Tensor, Tensor]:
    """For every prefix of every text: the state before its last token, that token, the label."""
    if not len(prompts) == len(texts) == len(labels):
        raise ShapeError(f"{len(prompts)} prompts, {len(texts)} texts, {len(labels)} label lists")
    for number, (text, some) in enumerate(zip(texts, labels, strict=True)):
        if len(text) != len(some):
            raise ShapeError(f"text {number} has {len(text)} tokens and {len(some)} labels")
    if any(not prompt for prompt in prompts) or not any(texts):
        raise InputError("every text needs a prompt of at least one token, and one text a token")
    rows = [[*prompt, *text] for prompt, text in zip(prompts, texts, strict=True)]
    target = [[False] * len(p) + [True] * len(t) for p, t in zip(prompts, texts, strict=True)]
    batch = TokenBatch.from_ids(rows, target)
    hidden = score(model, batch, needs=("hidden",)).need("hidden")
    batch = batch.to(hidden.device)
    classes = torch.tensor([label for some in labels for label in some], device=hidden.device)
    return hidden[batch.target].float(), batch.ids[batch.target], classes
