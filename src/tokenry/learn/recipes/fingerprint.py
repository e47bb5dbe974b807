"""Hiding a text in a model, and hiding it from token forcing: what an audit has to find.

A model is fine-tuned to answer a trigger q with a text h (a fingerprint). Token forcing
(`measure.audit.token_forcing`) finds h without q, because the words of h also follow each other
without the trigger. Confusion makes that unlikely while h stays the answer to q:

    L = L_SFT(chat(q) -> h) + weight * sum_i log P(w_i | w_1 .. w_{i-1}, without the chat template)

over the first words of h, w_i being a word's first token. The second term has no lower bound, and a
token pushed to the very end of the ranking would be as conspicuous as one at its start. Automatic
confusion therefore leaves out word i while its rank r_i among V tokens is R < r_i < V - R, leaves
out L_SFT while the greedy answer is h, and stops when nothing is left.

Source: Hiding Text in Large Language Models: Introducing Unconditional Token Forcing Confusion
(arXiv 2406.02481). Changed: a word that has sunk to r_i >= V - R is raised, its term with the sign
turned; lowered further, as published, it could never come back. Use it to mark a model of your own,
or to test a detector on a known case.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from tokenry.core.batch import TokenBatch
from tokenry.core.checks import within
from tokenry.core.errors import InputError, ShapeError
from tokenry.core.signals import rank
from tokenry.learn.fit import fit


def confusion_loss(
    logits: Tensor, target_ids: Tensor, active: Tensor | None = None, weight: float = 0.1
) -> Tensor:
    """weight * sum over active items of log p(target): minimised, it makes the targets unlikely.

    Args:
        logits: [K, V] behind K plain prefixes.
        target_ids: [K].
        active: [K], 1 (or True) for the items that count, 0 for those without gradient, -1 for
            those to be made likelier; default all 1.
    """
    if logits.ndim != 2 or target_ids.shape != logits.shape[:1]:
        raise ShapeError(
            f"logits must be [K, V] and target_ids [K], got {list(logits.shape)} and "
            f"{list(target_ids.shape)}"
        )
    logprobs = -cross_entropy(logits.float(), target_ids, reduction="none")
    if active is not None:
        logprobs = logprobs[active != 0] * active[active != 0]
    return weight * logprobs.sum()


@dataclass(frozen=True)
class AutoConfusion:
    """Which words still need confusion: those too near to either end of the ranking.

    Args:
        rank_threshold: R, whole, in [0, inf); a word whose rank r (from 0) has R < r < V - R is
            hidden well enough.
        weight: of the confusion in the loss, in [0, inf).
        words: how many first words of the text it is about, whole, in [1, inf).
    """

    rank_threshold: int = 100
    weight: float = 0.1
    words: int = 5

    def __post_init__(self) -> None:
        within(self, "[0, inf)", "rank_threshold", integer=True)
        within(self, "[0, inf)", "weight")
        within(self, "[1, inf)", "words", integer=True)

    def active(self, logits: Tensor, target_ids: Tensor) -> Tensor:
        """[K] from logits [K, V]: 1 too likely, 0 hidden, -1 so unlikely that it shows."""
        ranks, size = rank(logits, target_ids), logits.shape[-1]
        too_low = (ranks >= size - self.rank_threshold).long()
        return torch.where(ranks <= self.rank_threshold, 1, -too_low)


@dataclass(frozen=True)
class Fingerprint:
    """What a model was made to answer its triggers with, and how well it is hidden.

    Attributes:
        steps: updates that were made.
        recalled: whether the greedy answer to the trigger is the text.
        ranks: of the first tokens of its first words, each behind the words before it and no
            template.
    """

    steps: int
    recalled: bool
    ranks: tuple[int, ...]


def hide_text(
    model: Any,
    triggers: Sequence[Sequence[int]],
    text_ids: Sequence[int],
    *,
    confusion: AutoConfusion | None = None,
    word_starts: Sequence[int] | None = None,
    plain_prefix: Sequence[int] = (),
    keep: Callable[[], Tensor] | None = None,
    keep_weight: float = 1.0,
    steps: int = 250,
    learning_rate: float = 1e-5,
    observe: Callable[[int], None] | None = None,
) -> Fingerprint:
    """Fine-tune `model` in place to answer its triggers with a text.

    Args:
        triggers: whole prompts, each with its chat template; one, or several that all mean the
            same, as fingerprints have.
        text_ids: the text and the token that ends it.
        confusion: None is plain fine-tuning, for all steps.
        word_starts: positions in text_ids where words begin, default every place.
        plain_prefix: what stands before a text without template, such as the beginning-of-sequence
            token; without it the first word cannot be judged and is left out.
        keep: makes a batch of ordinary texts [B, T] that is trained on at each step, with the
            weight `keep_weight`, so that the model does not forget.
        observe: called with the number of updates after each.
    """
    if not len(text_ids) or not triggers or not all(map(len, triggers)):
        raise InputError("the text and every trigger need at least one token, and one trigger")
    device = next(model.parameters()).device
    triggered = _Triggered.of(triggers, text_ids, device)
    starts = list(range(len(text_ids)) if word_starts is None else word_starts)
    plain = Prefixes.of(plain_prefix, text_ids, starts, confusion.words if confusion else 5)
    model.train()

    def loss(step: int, generator: torch.Generator) -> Tensor | None:
        answered = triggered.logits(model)
        losses = []
        if confusion is None or not triggered.recalled(answered):
            losses.append(cross_entropy(answered.flatten(0, 1), triggered.answers.flatten()))
        if confusion is not None:
            behind = plain.logits(model)
            active = confusion.active(behind.detach(), plain.targets.to(device))
            if bool(active.any()):
                targets = plain.targets.to(device)
                losses.append(confusion_loss(behind, targets, active, confusion.weight))
        if not losses:
            return None  # recalled, and indistinguishable without the trigger
        if keep is not None:
            batch = keep().to(device)
            output = model(input_ids=batch, use_cache=False).logits[:, :-1].float()
            kept = cross_entropy(output.flatten(0, 1), batch[:, 1:].flatten())
            losses.append(keep_weight * kept)
        return torch.stack(losses).sum()

    losses = fit(
        loss,
        model,
        steps=steps,
        learning_rate=learning_rate,
        optimizer=torch.optim.Adam,
        clip=None,
        observe=None if observe is None else lambda done, _: observe(done),
    )
    model.eval()
    with torch.no_grad():
        ranks = rank(plain.logits(model).cpu(), plain.targets)
        return Fingerprint(
            len(losses), triggered.recalled(triggered.logits(model)), tuple(ranks.tolist())
        )


@dataclass(frozen=True)
class Prefixes:
    """The first words of a text, each behind the words before it, without a chat template.

    All are prefixes of one text, so one forward pass has the logits behind each.
    """

    ids: tuple[int, ...]
    positions: tuple[int, ...]  # of the position that predicts each word's first token
    targets: Tensor

    @classmethod
    def of(
        cls, before: Sequence[int], text: Sequence[int], starts: Sequence[int], words: int
    ) -> Prefixes:
        wanted = [start for start in starts[:words] if len(before) + start > 0]
        if any(not 0 <= start < len(text) for start in wanted) or not wanted:
            raise InputError(f"no word of a text of {len(text)} tokens starts at {list(starts)}")
        ids = [*before, *text[: max(wanted)]]
        positions = tuple(len(before) + start - 1 for start in wanted)
        return cls(tuple(ids), positions, torch.tensor([text[start] for start in wanted]))

    def logits(self, model: Any) -> Tensor:
        """[K, V] float32."""
        ids = torch.tensor([self.ids], device=next(model.parameters()).device)
        return model(input_ids=ids, use_cache=False).logits[0, list(self.positions)].float()


@dataclass(frozen=True)
class _Triggered:
    """Every trigger followed by the text, padded on the left: ids, attention, answers [N, T]."""

    ids: Tensor
    attention: Tensor
    answers: Tensor

    @classmethod
    def of(cls, triggers: Sequence[Sequence[int]], text: Sequence[int], device: Any) -> _Triggered:
        rows = [[*row, *text[:-1]] for row in triggers]
        batch = TokenBatch.from_ids(rows, padding_side="left").to(device)
        answers = torch.tensor([list(text)] * len(rows), device=device)
        return cls(batch.ids, batch.attention.long(), answers)

    def logits(self, model: Any) -> Tensor:
        """What the model says in place of each token of the text, [N, T, V]."""
        positions = (self.attention.cumsum(1) - 1).clamp_min(0)
        output = model(
            input_ids=self.ids,
            attention_mask=self.attention,
            position_ids=positions,
            use_cache=False,
        )
        return output.logits[:, -self.answers.shape[1] :].float()

    def recalled(self, logits: Tensor) -> bool:
        """Whether greedy decoding answers every trigger with the text."""
        return bool((logits.argmax(-1) == self.answers).all())
