"""Inspection: a text token by token, as one model sees it, or as two models differ on it.

`inspect` scores every token of a text and returns an `Inspection` (`measure.inspection`): the
tokens with their signals (surprisal, entropy, ... in `core.signals`) and likeliest alternatives, as
rows, as coloured terminal text, or as a self-contained web page.

Against a second model with the same vocabulary, every token also has the exact divergence
D(second || first) between the two next-token distributions. Whatever the tokenizers, the surprisals
of both are compared on the spans of bytes on whose ends both have a token boundary.

The first token. It can be scored only if something stands before it. A beginning-of-sequence token
is put before the text where the tokenizer does so by itself (Gemma, Llama 3), because the model was
trained that way. Where it does not (SmolLM2, whose declared one opens a chat turn), the first token
stays unscored rather than being judged in a context the model never saw.

Long texts are read in windows of at most `window` tokens and never more than the model's positions.
Each next window starts half a window later (after the beginning-of-sequence token, if there is one)
and scores only what is new, so past the first window every token sees at least half a window less
two tokens of what came before it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tokenry.core.batch import TokenBatch
from tokenry.core.boundaries import encoded, start_ids
from tokenry.core.checks import in_range
from tokenry.core.divergences import divergence_named
from tokenry.core.errors import InputError, UnknownNameError, VocabularyError
from tokenry.core.f_divergence import FDivergence
from tokenry.core.signals import TopK, measured, signal, surprisal
from tokenry.core.signals import divergence as divergence_signal
from tokenry.measure.inspection import Comparison, Inspection, readable
from tokenry.measure.logit_pieces import logit_pieces
from tokenry.model import compat
from tokenry.model.hub import Loaded
from tokenry.model.score import score
from tokenry.text.alignment import Span, project, shared_spans
from tokenry.text.vocabulary import token_bytes

UNITS = {
    "surprisal": "nats",
    "entropy": "nats",
    "varentropy": "nats²",
    "margin": "nats",
    "topk-entropy": "nats",
    "difference": "nats",
}


def inspect(
    model: Any,
    tokenizer: Any,
    text: str,
    signals: Sequence[str] = ("surprisal", "entropy"),
    against: Loaded | None = None,
    divergence: FDivergence | str = "jensen_shannon",
    top_k: int = 5,
    window: int = 4096,
) -> Inspection:
    """Score every token of a text, optionally against a second model (see the module's notes).

    top_k: alternatives of each token, >= 0. window: tokens, >= 4. `divergence` is
    D(against || model), used when both have one vocabulary. Raises InputError for
    an empty text, UnknownNameError for a signal or divergence that does not exist, and
    VocabularyError when "divergence" is asked for and the vocabularies differ.
    """
    kind = divergence_named(divergence) if isinstance(divergence, str) else divergence
    names = list(dict.fromkeys(["surprisal", *signals]))
    check_signals(names, against is not None)
    alone = [name for name in names if not _compares(name)]
    compared = {"divergence", *(name for name in names if _compares(name))} - {"difference"}
    in_range("top_k", top_k, "[0, inf)", integer=True)
    in_range("window", window, "[4, inf)", integer=True)
    reading = _Reading.of(model, tokenizer, text, window)
    other = None if against is None else _Reading.of(against.model, against.tokenizer, text, window)
    shared = other is not None and _same_vocabulary(tokenizer, other.tokenizer)
    if other is not None and not shared and (compared & set(names)):
        raise VocabularyError(
            f"{reading.name} and {other.name} have different vocabularies, so their next-token "
            'distributions have no divergence; ask for "difference", on shared bytes'
        )
    if other is not None and shared:
        # the same windows and first token for both, or the distributions have different contexts
        size = min(reading.window, other.window)
        reading = replace(reading, window=size)
        other = replace(reading, model=other.model)

    def measure(logits: Tensor, targets: Tensor, *others: Tensor) -> dict[str, Tensor]:
        best = logits.topk(min(top_k, logits.shape[-1]))
        topk = TopK(best.indices, best.values - logits.logsumexp(-1, keepdim=True))
        values = {name: measured(name, logits, targets, topk=topk) for name in alone}
        values |= {"top_ids": topk.ids, "top_logprobs": topk.logprobs}
        for other_logits in others:
            width = min(logits.shape[-1], other_logits.shape[-1])  # padding of the output layer
            own, reference = logits[:, :width], other_logits[:, :width]
            for name in sorted(compared - {"divergence"}):
                values[name] = measured(name, own, targets, reference=reference, topk=topk)
            values["divergence"] = divergence_signal(own, reference=reference, kind=kind)
            values["other_surprisal"] = surprisal(other_logits, targets)
        return values

    values = reading.measured(measure, [other] if other is not None and shared else [])
    comparison = None
    if other is not None:
        if shared:
            other_surprisal = values.pop("other_surprisal")
        else:
            other_surprisal = other.measured(
                lambda logits, targets: {"surprisal": surprisal(logits, targets)}
            )["surprisal"]
        comparison, values["difference"] = _compared(
            reading, other, values["surprisal"], other_surprisal, shared
        )
    top_ids, top_logprobs = values.pop("top_ids"), values.pop("top_logprobs")
    return Inspection(
        text=text,
        name=reading.name,
        ids=reading.ids,
        pieces=reading.pieces(),
        scored=reading.scored,
        signals=values,
        top_ids=top_ids,
        top_logprobs=top_logprobs,
        top_pieces=tuple(
            tuple(readable(reading.piece(token)) for token in row) for row in top_ids.tolist()
        ),
        against=comparison,
        units={name: UNITS.get(name, "") for name in values}
        | ({"divergence": kind.name} if "divergence" in values else {}),
    )


def check_signals(names: Sequence[str], two_models: bool) -> None:
    """Refuse signals that an inspection cannot show: unknown ones, and those that need what it does
    not have. Raises UnknownNameError and InputError."""
    known = [*signal.names(), "difference"]
    for name in names:
        if name not in known:
            raise UnknownNameError("signal", name, known)
        if _compares(name) and not two_models:
            raise InputError(f"the signal {name} needs a second model: --against, or against=")
        if name != "difference" and "counts" in signal.entry(name).needs:
            raise InputError(f"the signal {name} needs counts of tokens: call it from Python")


def _compares(name: str) -> bool:
    return name == "difference" or "reference" in signal.entry(name).needs


@dataclass(frozen=True)
class _Reading:
    """One model's way through a text: its tokens, what stands before them, and its window."""

    model: Any
    tokenizer: Any
    every: list[bytes]  # the bytes of every vocabulary entry
    ids: Tensor  # [T]
    prefix: list[int]  # before the text
    opening: list[int]  # before every later window of it
    window: int

    @staticmethod
    def of(model: Any, tokenizer: Any, text: str, window: int) -> _Reading:
        ids = encoded(tokenizer, text)
        if not ids:
            raise InputError("there is nothing to inspect in an empty text")
        start = start_ids(tokenizer)
        prefix = [] if ids[: len(start)] == start else start  # the text may carry it already
        limit = compat.window(model) or window
        every = token_bytes(tokenizer)
        return _Reading(
            model, tokenizer, every, torch.tensor(ids), prefix, start, min(window, limit)
        )

    @property
    def name(self) -> str:
        path = getattr(self.model.config, "_name_or_path", "")
        return Path(path).name or type(self.model).__name__

    @property
    def scored(self) -> Tensor:
        scored = torch.ones(len(self.ids), dtype=torch.bool)
        scored[0] = bool(self.prefix)
        return scored

    def pieces(self) -> tuple[bytes, ...]:
        return tuple(self.piece(token) for token in self.ids.tolist())

    def piece(self, token: int) -> bytes:
        """A token's bytes; a special token's are its name, which is what the text says for it."""
        if token < len(self.every) and self.every[token]:
            return self.every[token]
        return str(self.tokenizer.convert_ids_to_tokens(token) or "").encode()

    def measured(
        self, measure: Callable[..., dict[str, Tensor]], others: Sequence[_Reading] = ()
    ) -> dict[str, Tensor]:
        """measure(logits [n, V], targets [n], *other logits) of the scored tokens, as [T, ...]."""
        parts: list[dict[str, Tensor]] = []
        for batch in self._windows():
            views = [score(r.model, batch, needs=("hidden",)) for r in (self, *others)]
            for mask, logits in logit_pieces(batch.target, views):
                parts.append(measure(logits[0], batch.ids[mask], *logits[1:]))
        if not parts:  # a single token with nothing before it: learn the fields from no rows at all
            width = self.model.config.get_text_config().vocab_size
            nothing = [torch.zeros(0, width) for _ in (self, *others)]
            parts.append(measure(nothing[0], torch.zeros(0, dtype=torch.long), *nothing[1:]))
        result = {}
        for name in parts[0]:
            joined = torch.cat([part[name] for part in parts])
            result[name] = joined.new_zeros(len(self.ids), *joined.shape[1:])
            result[name][self.scored] = joined
        return result

    def _windows(self) -> Iterator[TokenBatch]:
        """Windows over the text, each with the tokens that no earlier one scored as its targets."""
        done = 0 if self.prefix else 1
        for start in range(0, len(self.ids), max((self.window - len(self.opening)) // 2, 1)):
            before = self.opening if start else self.prefix
            end = min(start + self.window - len(before), len(self.ids))
            ids = torch.cat([torch.tensor(before, dtype=torch.long), self.ids[start:end]])[None]
            target = torch.zeros_like(ids, dtype=torch.bool)
            target[0, len(before) + done - start :] = True
            if target.any():
                yield TokenBatch(ids, torch.ones_like(target), target)
            done = end
            if end == len(self.ids):
                return


def _same_vocabulary(one: Any, other: Any) -> bool:
    return one is other or one.get_vocab() == other.get_vocab()


def _compared(
    a: _Reading, b: _Reading, own: Tensor, others: Tensor, shared: bool
) -> tuple[Comparison, Tensor]:
    """Both surprisals on shared spans, and their difference at each of a's tokens."""
    if shared:
        ends = torch.tensor([len(piece) for piece in a.pieces()]).cumsum(0).tolist()
        bounds = zip([0, *ends[:-1]], ends, strict=True)
        spans = [Span(t, t + 1, t, t + 1, *bytes_) for t, bytes_ in enumerate(bounds)]
    else:
        spans = shared_spans(a.pieces(), b.pieces())
    unscored = project((~a.scored).float(), spans, "a") + project((~b.scored).float(), spans, "b")
    scored = unscored == 0
    own = project(own, spans, "a").masked_fill(~scored, 0.0)
    others = project(others, spans, "b").masked_fill(~scored, 0.0)
    comparison = Comparison(b.name, tuple(spans), own, others, scored, shared)
    counts = torch.tensor([span.a_end - span.a_start for span in spans])
    return comparison, comparison.difference.repeat_interleave(counts)
