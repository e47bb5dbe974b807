"""Attribute-conditional beam search: the likeliest texts among those that have an attribute A.

The mode of a language model is often degenerate (empty, or one loop); what is wanted is the mode of
p(y | A), for A such as "has 20 tokens", "is complete", "keeps to the topic". A beam holds prefixes

    score(y_<=t) = log p(y_<=t) + log q(A | y_<=t)

where q says how probable A is once the text has begun so. With the exact q this is beam search in
the conditional model, since p(y_t | y_<t, A) = p(y_t | y_<t) q(A | y_<=t) / q(A | y_<t) and the
product telescopes. Without q it is plain beam search.

A step: the constraint's mask, the `candidates` likeliest tokens of each beam (and the end, where it
is allowed), q on all of them at once, the best kept that have not run into a dead end of the
constraint. Ended texts are pooled; the search ends when no living prefix can get better than those
in the pool.

Source: Making the Most of your Model: Methods for Finetuning and Applying Pretrained Transformers
(arXiv 2408.16241), and MAP's not dead yet (arXiv 2311.08817). Ours: the constraint, the pool of all
ended texts, and the rule that ends the search.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from tokenry.core.checks import within
from tokenry.core.errors import InputError, ShapeError
from tokenry.decode.constraints.base import State
from tokenry.decode.samplers.base import DEAD, fitted_mask
from tokenry.decode.samplers.request import Decoding, Request, text_sampler
from tokenry.decode.samplers.samples import Samples
from tokenry.model.hidden_decoding import HiddenDecoding


class Attribute(Protocol):
    """log q(A | text + token), for many texts and tokens at once.

    Attributes:
        needs_hidden: whether the model's last hidden state after each text is asked for.
    """

    needs_hidden: ClassVar[bool]

    def __call__(
        self, texts: Sequence[Sequence[int]], tokens: Tensor, hidden: Tensor | None
    ) -> Tensor:
        """texts: n lists of ids, equally long. tokens: [n, k]. hidden: [n, D], after the texts.
        Returns [n, k]; -inf where A has become impossible."""
        ...


@dataclass(frozen=True)
class PrefixAttribute:
    """An attribute from a function of whole prefixes: list of id lists -> their log q(A | prefix).

    The end token is in the prefix once the text has ended.
    """

    logprob: Callable[[list[list[int]]], Sequence[float] | Tensor]
    needs_hidden: ClassVar[bool] = False

    def __call__(
        self, texts: Sequence[Sequence[int]], tokens: Tensor, hidden: Tensor | None
    ) -> Tensor:
        prefixes = [
            [*text, token]
            for text, row in zip(texts, tokens.tolist(), strict=True)
            for token in row
        ]
        log_q = torch.as_tensor(self.logprob(prefixes), dtype=torch.float64)
        if log_q.numel() != tokens.numel():
            raise ShapeError(f"{log_q.numel()} values of log q for {tokens.numel()} prefixes")
        return log_q.view(tokens.shape).to(tokens.device)


@text_sampler("beam", paper=170)
@dataclass(frozen=True)
class BeamSearch:
    """The best texts that a beam search finds, best first; distinct, at most as many as asked for.

    The weight of a text is its probability p(y), end included, and says nothing about how it was
    found; `log_evidence` is the log of their sum, a lower bound of the constraint's probability.

    Args:
        attribute: q, an `Attribute` or a function of prefixes (see `PrefixAttribute`); None: q = 1.
        beams: living prefixes; None: as many as texts are asked for.
        candidates: tokens looked at for each beam.
        length_penalty: a in the score log p / (tokens, end included)^a + log q; 0: none.
    """

    attribute: Attribute | Callable[[list[list[int]]], Any] | None = None
    beams: int | None = None
    candidates: int = 100
    length_penalty: float = 0.0
    exact: ClassVar[bool] = False

    def __post_init__(self) -> None:
        within(self, "[1, inf)", "beams", integer=True, optional=True)
        within(self, "[1, inf)", "candidates", integer=True)
        within(self, "[0, inf)", "length_penalty")

    @torch.no_grad()
    def __call__(self, request: Request, particles: int) -> Samples:
        if particles < 1:
            raise InputError(f"particles is {particles}: ask for at least one text")
        return _Search(self, request, particles).run()


@dataclass
class _Beam:
    ids: list[int]
    state: State
    logprob: float  # log p of the prefix
    mask: Tensor  # bool [V], the tokens that may come next


@dataclass(order=True)
class _Text:
    score: float
    ids: list[int] = field(compare=False)
    logprob: float = field(compare=False)
    ended: bool = field(compare=False, default=True)


class _Search:
    def __init__(self, settings: BeamSearch, request: Request, wanted: int):
        self.settings, self.request, self.wanted = settings, request, wanted
        self.width = settings.beams or wanted
        attribute = settings.attribute
        if attribute is not None and not hasattr(attribute, "needs_hidden"):
            attribute = PrefixAttribute(attribute)  # type: ignore[arg-type]
        self.attribute: Attribute | None = attribute  # type: ignore[assignment]
        self.pool: list[_Text] = []
        self.masks = self.tokens = self.passes = 0

    def run(self) -> Samples:
        started = time.perf_counter()
        request = self.request
        decoding = self._decoding()
        first = request.constraint.begin(request.prompt_ids)
        beams = [_Beam([], first, 0.0, fitted_mask(first, decoding.logits.shape[-1]))]
        dead_end = None
        for length in range(1, request.max_new_tokens + 1):
            self.passes += 1
            before = beams
            beams, rows, scores = self._step(decoding, beams, length)
            if request.progress is not None:
                request.progress(length, [beam.ids for beam in beams])
            if not beams:
                dead_end = None if self.pool else max(before, key=lambda beam: beam.logprob).ids
                break
            if length == request.max_new_tokens:
                if not request.must_end:
                    cut = zip(scores, beams, strict=True)
                    self.pool += [_Text(s, beam.ids, beam.logprob, False) for s, beam in cut]
                break
            if self._settled(beams):
                break
            if rows != list(range(len(before))):
                decoding.select(torch.tensor(rows))
            decoding.append(torch.tensor([beam.ids[-1] for beam in beams]))
        best = sorted(self.pool, reverse=True)[: self.wanted]
        if not best:  # nothing has ended: what was reached, without weight
            reached = beams or before
            best = [_Text(DEAD, beam.ids, DEAD, False) for beam in reached[: self.wanted]]
        log_weights = torch.tensor([text.logprob for text in best], dtype=torch.float64)
        return Samples(
            ids=[text.ids for text in best],
            log_weights=log_weights,
            log_evidence=float(log_weights.logsumexp(0)),
            finished=[text.ended for text in best],
            tokens=self.tokens,
            passes=self.passes,
            checks=0,
            masks=self.masks,
            resampled=0,
            seconds=time.perf_counter() - started,
            dead_end=dead_end,
        )

    def _step(
        self, decoding: Decoding, beams: list[_Beam], length: int
    ) -> tuple[list[_Beam], list[int], list[float]]:
        """The living beams after one more token, the rows they go on from, and their scores."""
        texts = [beam.ids for beam in beams]
        logprobs = self.request.logprobs(decoding, texts)  # [n, V]
        V, device = logprobs.shape[-1], logprobs.device
        masks = torch.stack([beam.mask for beam in beams]).to(device)
        allowed = logprobs.masked_fill(~masks, DEAD)
        k = min(V, max(self.settings.candidates, self.width))
        step, tokens = self._candidates(allowed, k)  # [n, k + ends]
        so_far = torch.tensor([beam.logprob for beam in beams], dtype=torch.float64, device=device)
        total = so_far[:, None] + step.double()
        score = total / length**self.settings.length_penalty
        if self.attribute is not None:
            hidden = decoding.hidden if isinstance(decoding, HiddenDecoding) else None
            log_q = self.attribute(texts, tokens, hidden).to(score)
            if not bool((log_q <= 1e-3).all()):  # also catches what is not a number
                worst = float(log_q.nan_to_num(nan=torch.inf).max())
                raise InputError(f"an attribute gives log-probabilities, at most 0; got {worst}")
            score = score + log_q
        score = score.masked_fill(total == DEAD, DEAD)
        ends = torch.tensor(sorted(self.request.constraint.eos), device=device)
        ended = torch.isin(tokens, ends)
        self._pool(score.masked_fill(~ended, DEAD), total, beams)
        going = score.masked_fill(ended, DEAD).flatten()
        best, indices = going[going > DEAD].sort(descending=True, stable=True)
        indices = (going > DEAD).nonzero()[:, 0][indices]
        living: list[_Beam] = []
        rows: list[int] = []
        scores: list[float] = []
        for value, index in zip(best.tolist(), indices.tolist(), strict=True):
            if len(living) == self.width:
                break
            row, column = divmod(index, tokens.shape[1])
            token = int(tokens[row, column])
            state = beams[row].state.advance(token)
            mask = fitted_mask(state, V)
            self.masks += 1
            if not bool(mask.any()):
                continue  # a dead end, as conjunctions of constraints have them
            ids = [*beams[row].ids, token]
            living.append(_Beam(ids, state, float(total[row, column]), mask))
            rows.append(row)
            scores.append(value)
        self.tokens += len(living)
        return living, rows, scores

    def _candidates(self, allowed: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Log-probabilities and ids of the k likeliest tokens that go on, and of the end; several
        end tokens are one end, under the smallest id."""
        ends = [token for token in sorted(self.request.constraint.eos) if token < allowed.shape[1]]
        index = torch.tensor(ends, dtype=torch.long, device=allowed.device)
        values, tokens = allowed.index_fill(1, index, DEAD).topk(k)
        if not ends:
            return values, tokens
        end = allowed[:, index].logsumexp(1, keepdim=True)
        return torch.cat([values, end], 1), torch.cat([tokens, index[:1].expand_as(end)], 1)

    def _pool(self, score: Tensor, total: Tensor, beams: list[_Beam]) -> None:
        flat = score.flatten()
        best, indices = flat.topk(min(self.wanted, len(flat)))
        for value, index in zip(best.tolist(), indices.tolist(), strict=True):
            if value > DEAD:
                row, column = divmod(index, score.shape[1])
                self.pool.append(_Text(value, beams[row].ids, float(total[row, column])))
                self.tokens += 1

    def _settled(self, beams: list[_Beam]) -> bool:
        """Whether no living prefix can still get into the pool of the best: log q is at most 0,
        log p only falls, and is divided by no more than the longest text's divisor."""
        if len(self.pool) < self.wanted:
            return False
        worst = sorted(self.pool, reverse=True)[self.wanted - 1].score
        longest = self.request.max_new_tokens**self.settings.length_penalty
        return max(beam.logprob for beam in beams) / longest <= worst

    def _decoding(self) -> Decoding:
        request = self.request
        if self.attribute is None or not self.attribute.needs_hidden:
            return request.rows()
        if isinstance(request.decoding, HiddenDecoding):
            return request.rows()
        if request.loaded is None:
            raise InputError(
                "this attribute reads the model's hidden states, and the request carries no model: "
                "pass loaded=(model, tokenizer)"
            )
        model = request.loaded[0]
        device = next(model.parameters()).device
        return HiddenDecoding.start(model, torch.tensor([request.prompt_ids], device=device))
