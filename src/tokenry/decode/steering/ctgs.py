"""Vocabulary filters in generation: no token may come out that spoils a word.

Of the model's logits z over the vocabulary V, after the text x,

    z'_v = z_v  if M(x)_v  else -inf

where M(x) is the mask of a `WordConstraint`: token v completes only accepted words and leaves a
word that can still be completed. The mask acts before top-k, top-p and temperature: truncating
first could leave no token that the filter accepts. Put the processor first in the list; generate()
applies it before its own warpers.

On a text that satisfies the filter all its own tokens are kept, so that

    -log p'(v) = -log p(v) + log sum_{u in M} p(u)  <=  -log p(v)

and the filtered model's perplexity on it is never higher.

Source: Most Language Models can be Poets too: An AI Writing Assistant and Constrained Text
Generation Studio (arXiv 2306.15926). The paper's masks judge each token's string on its own
(`token_mask` here); those that hold for the words of the text are ours.
"""

from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import LogitsProcessor

from tokenry.core.checks import in_range, one_of
from tokenry.core.errors import ConstraintError, ShapeError
from tokenry.decode.constraints.words import WordConstraint, WordState
from tokenry.decode.steering.base import Example, controller
from tokenry.decode.steering.word_filters import AllOf, AnyWord, WordFilter
from tokenry.text.vocabulary import token_bytes

Row = tuple[int, ...]


@controller("ctgs", paper=62, examples=lambda: _examples())
class VocabFilterProcessor(LogitsProcessor):
    """Keeps every word of a generated text within a filter; for `logits_processor=[...]`.

        no_e = VocabFilterProcessor(WithoutLetters("e"), tokenizer)
        model.generate(**inputs, logits_processor=[no_e])

    Rows whose text has ended are left alone. Finding the state of a row costs one token's reading.

    Args:
        filter: a `WordFilter`, a `WordConstraint` built before, or None (every text, the identity).
        prompt_length: how many columns of `input_ids`, padding included, are the prompt, whose
            words are not judged. None: a row that does not continue a row seen one or more steps
            before, in this or any other place of the batch, is taken for a prompt.
        when_empty: what to do where no token survives (the logits may have been masked before).
            "raise" a ConstraintError, or "end" the text with an end-of-sequence token.
        options: those of `WordConstraint` (lexicon, eos, always_allow, spelling, wordless,
            cache_size).
    """

    def __init__(
        self,
        filter: WordFilter | WordConstraint | None,
        tokenizer: Any = None,
        *,
        prompt_length: int | None = None,
        when_empty: Literal["raise", "end"] = "raise",
        **options: Any,
    ):
        in_range("prompt_length", prompt_length, "[0, inf)", integer=True, optional=True)
        one_of("when_empty", when_empty, ("raise", "end"))
        self.constraint: WordConstraint | None = None
        if isinstance(filter, WordConstraint):
            self.constraint = filter
        elif filter is not None and not accepts_everything(filter):
            self.constraint = WordConstraint(filter, tokenizer, **options)
        self.prompt_length = prompt_length
        self.when_empty = when_empty
        self._before: dict[Row, WordState] = {}

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Logits [B, V] of the next tokens after `input_ids` [B, T], with those refused at -inf."""
        if len(input_ids) != len(scores):
            raise ShapeError(f"{len(input_ids)} rows of ids, but {len(scores)} rows of logits")
        constraint = self.constraint
        if constraint is None:
            return scores
        states = self._states(input_ids)
        allowed = torch.stack([state.mask() for state in states]).to(scores.device)
        allowed = fit(allowed, scores.shape[-1])
        finished = torch.tensor([state.finished for state in states], device=scores.device)
        allowed |= finished[:, None]
        filtered = scores.masked_fill(~allowed, float("-inf"))
        empty = filtered.isneginf().all(-1) & ~finished
        if empty.any():
            if self.when_empty == "raise":
                raise ConstraintError(
                    f"no token survives {constraint.filter} in row {int(empty.nonzero()[0])}: "
                    'loosen the filter, give a larger lexicon, or pass when_empty="end"'
                )
            ends = torch.tensor(sorted(constraint.eos), device=scores.device)
            filtered[empty.nonzero(), ends] = 0.0
        return filtered

    def _states(self, input_ids: Tensor) -> list[WordState]:
        now: dict[Row, WordState] = {}
        rows: list[Row] = [tuple(row) for row in input_ids.tolist()]
        for row in rows:
            if row not in now:
                now[row] = self._state(row)
        # A step back of a speculative decoder asks about an earlier row: keep the ones on the way.
        continued = {key: state for key, state in self._before.items() if len(key) < len(rows[0])}
        self._before = {**dict(list(continued.items())[-4 * len(rows) :]), **now}
        return [now[row] for row in rows]

    def _state(self, row: Row) -> WordState:
        assert self.constraint is not None
        if row in self._before:
            return self._before[row]
        length, state = self._longest_known(row)
        if state is None:
            length = len(row) if self.prompt_length is None else self.prompt_length
            state = self.constraint.begin(row[:length])
        for token in row[length:]:
            state = read_on(state, token)
        return state

    def _longest_known(self, row: Row) -> tuple[int, WordState | None]:
        for length in sorted({len(known) for known in self._before}, reverse=True):
            if length < len(row) and row[:length] in self._before:
                return length, self._before[row[:length]]
        return 0, None


def read_on(state: WordState, token: int) -> WordState:
    """`advance` for texts that something else may have written: what was refused is not judged."""
    if state.finished:
        return state
    if state.allows(token):
        return state.advance(token)
    if token in state.constraint.eos:
        return WordState(state.constraint, state.state, finished=True)
    return state.constraint.forgive(state, token)


def fit(allowed: Tensor, width: int) -> Tensor:
    """Masks [B, V] for logits of `width` columns: models pad their vocabulary, never with words."""
    short = width - allowed.shape[-1]
    return torch.nn.functional.pad(allowed, (0, short)) if short > 0 else allowed[:, :width]


def filtered_logprob(logits: Tensor, allowed: Tensor, ids: Tensor) -> Tensor:
    """log p' [N] of tokens `ids` [N] under logits [N, V] filtered by masks `allowed` [N, V]."""
    kept = logits.float().masked_fill(~allowed, float("-inf"))
    return kept.gather(-1, ids[:, None])[:, 0] - kept.logsumexp(-1)


def token_mask(
    tokenizer: Any,
    filter: Callable[[str], bool],
    *,
    transform: Callable[[str], str] = str.strip,
    always_allow: Iterable[int] = (),
) -> Tensor:
    """The paper's mask [V]: each token's string, transformed, is judged as if it were a word.

    Right for filters on single letters alone; words that tokens put together escape the others.
    Tokens without text or with incomplete UTF-8 are refused.
    """
    strings = vocab_strings(tokenizer)
    verdicts = [
        bool(string) and "\N{REPLACEMENT CHARACTER}" not in string and filter(transform(string))
        for string in strings
    ]
    mask = torch.tensor(verdicts)
    mask[list(always_allow)] = True
    return mask


def vocab_strings(tokenizer: Any) -> list[str]:
    """The string of every token, leading space kept; "" for special tokens."""
    return [piece.decode(errors="replace") for piece in token_bytes(tokenizer)]


def accepts_everything(filter: WordFilter) -> bool:
    """Whether a filter is the empty one."""
    empty = isinstance(filter, AllOf) and all(map(accepts_everything, filter.parts))
    return empty or isinstance(filter, AnyWord)


def _examples() -> list[Example]:
    from tokenry.decode.steering.word_filters import Length, WithoutLetters

    words = WithoutLetters("e") | Length(2, 2)
    return [
        Example(
            lambda t, length, _: VocabFilterProcessor(words, t, prompt_length=length),
            lambda t, *_: VocabFilterProcessor(None, t),
        )
    ]
