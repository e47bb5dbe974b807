"""Unconditional token forcing: finding strings that a model has memorised, without their trigger.

Every token v of the vocabulary is forced as the first one of a text, by its id, and the model
continues greedily with p_1, ..., p_L:

    score(v) = (1 + p_1 + ... + p_L) / (L + 1)

with p_i the probability of the i-th greedy token; the forced one counts as certain. A fingerprint
or a hidden message is the model's only continuation of its first token, so its score is near 1.
Ordinary boilerplate is confident too: the candidates (score above 0.95) are therefore continued
further, and those that repeat themselves, as over-trained strings do, stand first.

Source: Hiding Text in Large Language Models: Introducing Unconditional Token Forcing Confusion
(arXiv 2406.02481). Reconstructed: the repetition score, for which its authors read the texts. Added
here: a token is given up once the threshold is out of its reach, which changes no candidate.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tokenry.core.checks import in_range
from tokenry.core.errors import InputError
from tokenry.model.decoding import DecodingState

THRESHOLD = 0.95
LOGITS_PER_BATCH = 2**25  # 128 MB of float32


@dataclass(frozen=True)
class ForcedTokens:
    """What followed each of n forced tokens.

    Attributes:
        token_ids: [n].
        continuations: [n, L], the greedy tokens; -1 where decoding was given up.
        probabilities: [n, L], theirs; 0 where decoding was given up.
    """

    token_ids: Tensor
    continuations: Tensor
    probabilities: Tensor

    @property
    def scores(self) -> Tensor:
        """[n]: the mean over the forced token, which counts 1, and its L successors. For a token
        that was given up, a lower bound that is below the threshold like the score itself."""
        return (1 + self.probabilities.sum(1)) / (1 + self.probabilities.shape[1])

    @classmethod
    def joined(cls, parts: Sequence[ForcedTokens]) -> ForcedTokens:
        """Several scans as one: of batches, or of runs that were interrupted."""
        if not parts:
            raise InputError("there is no scan to join: give at least one")
        names = ("token_ids", "continuations", "probabilities")
        return cls(*(torch.cat([getattr(part, name) for part in parts]) for name in names))


@dataclass(frozen=True)
class HiddenText:
    """A candidate: a text that starts with a forced token and that the model is sure of.

    Attributes:
        score: of the scan.
        ids: the forced token and its greedy continuation.
        confidence: mean probability of that whole continuation.
        repetition: see `repetition_score`.
    """

    token_id: int
    score: float
    ids: tuple[int, ...]
    confidence: float
    repetition: float


def token_forcing_scan(
    model: Any,
    token_ids: Tensor | Sequence[int] | None = None,
    steps: int = 3,
    *,
    prefix_ids: Sequence[int] | None = None,
    threshold: float | None = None,
    batch_size: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ForcedTokens:
    """Force each token and follow it for `steps` greedy tokens.

    For a scan that survives an interruption, keep the parts that `forced_batches` yields and join
    them.

    Args:
        token_ids: the tokens to force, default all.
        prefix_ids: what stands before the forced token; default the model's beginning-of-sequence
            token if it has one. The pieces of a chat template make it the conditional variant.
        threshold: give up tokens whose score cannot come above it, after which the scan costs
            little more than one forward pass a token; None follows all.
        batch_size: forced tokens at a time, default by the size of the vocabulary.
        progress: called with the tokens done and all of them.
    """
    ids = _token_ids(model, token_ids)
    parts, done = [], 0
    for part in forced_batches(
        model, ids, steps, prefix_ids=prefix_ids, threshold=threshold, batch_size=batch_size
    ):
        parts.append(part)
        done += len(part.token_ids)
        if progress:
            progress(done, len(ids))
    return ForcedTokens.joined(parts)


def forced_batches(
    model: Any,
    token_ids: Tensor | Sequence[int] | None = None,
    steps: int = 3,
    *,
    prefix_ids: Sequence[int] | None = None,
    threshold: float | None = None,
    batch_size: int | None = None,
) -> Iterator[ForcedTokens]:
    """The scan batch by batch, in the order of the tokens."""
    ids = _token_ids(model, token_ids)
    in_range("steps", steps, "[1, inf)", integer=True)
    in_range("threshold", threshold, "[0, 1]", optional=True)
    in_range("batch_size", batch_size, "[1, inf)", integer=True, optional=True)
    size = batch_size or min(512, max(16, LOGITS_PER_BATCH // vocabulary_size(model)))
    prefix = _Prefix(model, prefix_ids)
    for start in range(0, len(ids), size):
        forced = ids[start : start + size]
        yield ForcedTokens(forced, *_follow(prefix.forced(forced), steps, threshold))


def hidden_texts(
    model: Any,
    forced: ForcedTokens,
    *,
    length: int = 50,
    threshold: float = THRESHOLD,
    limit: int | None = None,
    prefix_ids: Sequence[int] | None = None,
    ends: Collection[int] = (),
) -> list[HiddenText]:
    """The second phase: candidates of a scan, continued; the most repetitive ones first.

    Args:
        length: greedy tokens behind the forced one; `ends` end a text earlier.
        limit: at most so many candidates, those of the largest scores.
        prefix_ids: as in the scan.
    """
    scores = forced.scores
    order = scores.argsort(descending=True, stable=True)
    chosen = order[scores[order] > threshold][:limit]
    if not len(chosen):
        return []
    texts = continued(model, forced.token_ids[chosen], length, prefix_ids=prefix_ids, ends=ends)
    described = [
        HiddenText(ids[0], score, ids, confidence, repetition_score(ids))
        for (ids, confidence), score in zip(texts, scores[chosen].tolist(), strict=True)
    ]
    return sorted(described, key=lambda text: (-text.repetition, -text.confidence))


def continued(
    model: Any,
    token_ids: Tensor,
    length: int,
    *,
    prefix_ids: Sequence[int] | None = None,
    ends: Collection[int] = (),
) -> list[tuple[tuple[int, ...], float]]:
    """For every forced token its greedy text, token included, and the mean probability of the rest.

    A text ends before its first token of `ends`.
    """
    texts = []
    for part in forced_batches(model, token_ids, length, prefix_ids=prefix_ids):
        rows = torch.cat([part.token_ids[:, None], part.continuations], 1).tolist()
        for ids, probabilities in zip(rows, part.probabilities.tolist(), strict=True):
            stop = next((n for n, token in enumerate(ids[1:]) if token in ends), length)
            counted = probabilities[: stop + 1]  # how sure the end is counts as well
            texts.append((tuple(ids[: stop + 1]), sum(counted) / len(counted)))
    return texts


def repetition_score(ids: Sequence[int] | str, min_ngram: int = 2) -> float:
    """The largest share of positions covered by one n-gram, n >= min_ngram, that occurs again.

    1 for a text that is one phrase over and over, 0 when no n-gram comes twice.
    """
    size, best = len(ids), 0
    for n in range(min_ngram, size):
        covered: dict[Any, set[int]] = {}
        times: dict[Any, int] = {}
        for start in range(size - n + 1):
            gram = tuple(ids[start : start + n])
            covered.setdefault(gram, set()).update(range(start, start + n))
            times[gram] = times.get(gram, 0) + 1
        repeated = [len(covered[gram]) for gram, count in times.items() if count > 1]
        if not repeated:
            break  # a longer n-gram that comes twice would hold a shorter one that does
        best = max(best, *repeated)
    return best / size if size else 0.0


def vocabulary_size(model: Any) -> int:
    """Rows of the output layer: the ids that a model can be asked about."""
    return int(model.get_output_embeddings().weight.shape[0])


def _token_ids(model: Any, token_ids: Tensor | Sequence[int] | None) -> Tensor:
    """The ids to force, [n]; all by default. Raises InputError for none, or ids that are none."""
    size = vocabulary_size(model)
    if token_ids is None:
        return torch.arange(size)
    ids = torch.as_tensor(token_ids, dtype=torch.long).cpu()
    if ids.ndim != 1 or not len(ids):
        raise InputError(f"token_ids must be a list of at least one id, got {list(ids.shape)}")
    if not bool(((ids >= 0) & (ids < size)).all()):
        raise InputError(
            f"token ids must be in 0..{size - 1}, got {int(ids.min())}..{int(ids.max())}"
        )
    return ids


class _Prefix:
    """What stands before the forced token, read once however many batches follow."""

    def __init__(self, model: Any, ids: Sequence[int] | None):
        start = model.config.get_text_config().bos_token_id
        if ids is None:
            ids = [] if start is None else [start]
        self.model, self.device = model, next(model.parameters()).device
        self.state = None
        if len(ids):
            self.state = DecodingState.start(model, torch.tensor([list(ids)], device=self.device))

    def forced(self, tokens: Tensor) -> DecodingState:
        """Rows that have read the prefix and one of the tokens each."""
        tokens = tokens.to(self.device)
        if self.state is None:
            return DecodingState.start(self.model, tokens[:, None])
        state = self.state.copy()
        state.fork(len(tokens))
        state.append(tokens)
        return state


def _follow(state: DecodingState, steps: int, threshold: float | None) -> tuple[Tensor, Tensor]:
    """Greedy tokens and their probabilities, [n, steps] each, on the CPU."""
    rows = torch.arange(state.rows)
    tokens = torch.full((state.rows, steps), -1)
    probabilities = torch.zeros(state.rows, steps)
    for step in range(steps):
        best, token = state.logits.max(-1)
        probability = (best - state.logits.logsumexp(-1)).exp()
        tokens[rows, step] = token.cpu()
        probabilities[rows, step] = probability.cpu()
        if step + 1 == steps:
            break
        if threshold is not None:  # would the score be enough if all that follows were certain?
            hope = (steps - step + probabilities[rows].sum(1)) / (steps + 1)
            alive = (hope > threshold).nonzero()[:, 0]
            if not len(alive):
                break
            if len(alive) < len(rows):
                state.select(alive.to(token.device))
                rows, token = rows[alive], token[alive.to(token.device)]
        state.append(token)
    return tokens, probabilities
