"""What a text sampler is: it draws whole texts and says how much each of them counts for.

Given a model p and a constraint, a text sampler returns P texts y_i with weights w_i. It is *exact*
if they are properly weighted: for every function f of a text,

    E[ (1/P) Σ_i w_i f(y_i) ] = Σ_{y satisfies the constraint} p(y) f(y).

With f = 1, the mean weight is an unbiased estimate of Z, the probability of the constraint under
the model; and Σ w f / Σ w converges to the expectation of f over the model's own distribution
conditioned on the constraint. Samplers that are not exact (a search, a best of n) return valid
texts as well, and say what their weights mean.

What is to be sampled comes as a `Request`: the model at the end of a prompt, the constraint, and
the settings that every sampler has in common.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from tokenry.core.checks import in_range
from tokenry.core.registry import Role
from tokenry.decode.constraints.base import Constraint
from tokenry.decode.samplers.samples import Samples

Processor = Callable[[Tensor, Tensor], Tensor]
Progress = Callable[[int, list[list[int]]], None]


class Decoding(Protocol):
    """What is needed of a decoding state: next-token logits of a batch of growing texts."""

    @property
    def logits(self) -> Tensor: ...
    def append(self, tokens: Tensor) -> Any: ...
    def select(self, index: Tensor) -> Any: ...
    def copy(self) -> Decoding: ...


@dataclass(frozen=True)
class Request:
    """Texts to be sampled: at most `max_new_tokens` tokens that go on from a prompt.

    Args:
        decoding: one row that has read the prompt; `rows` copies it.
        temperature: of the model that is sampled from; the weights refer to that model.
        processors: transformers' logits processors, called with the prompt's and the text's ids;
            they belong to the model too.
        must_end: a text that the limit cuts off weighs nothing.
        progress: called now and then with the number of tokens of the longest text and the texts so
            far.
        loaded: (model, tokenizer), for samplers that need more than next-token logits.
    """

    decoding: Decoding
    constraint: Constraint
    prompt_ids: tuple[int, ...] = ()
    max_new_tokens: int = 64
    temperature: float = 1.0
    must_end: bool = True
    processors: Sequence[Processor] = ()
    generator: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(0))
    progress: Progress | None = None
    loaded: tuple[Any, Any] | None = None

    def __post_init__(self) -> None:
        check_sampling(self.max_new_tokens, self.temperature)

    def rows(self, count: int = 1) -> Decoding:
        """An independent decoding state with `count` rows at the end of the prompt."""
        decoding = self.decoding.copy()
        if count > 1:
            decoding.select(torch.zeros(count, dtype=torch.long))
        return decoding

    def logprobs(self, decoding: Decoding, texts: Sequence[Sequence[int]]) -> Tensor:
        """float32 `[n, V]`: log-probabilities of the next token of each row, which has read the
        prompt and its text; all texts are equally long."""
        return next_logprobs(decoding.logits, self.prompt, texts, self.processors, self.temperature)

    @cached_property
    def prompt(self) -> Tensor:
        """The prompt's ids `[T]`."""
        return torch.tensor(self.prompt_ids, dtype=torch.long)


class TextSampler(Protocol):
    """The role: whole texts y_i with weights w_i from a model p and a constraint; if `exact`,
    E[(1/P) sum_i w_i f(y_i)] = sum_y p(y) accept(y) f(y) for every f."""

    exact: ClassVar[bool]

    def __call__(self, request: Request, particles: int) -> Samples:
        """At most `particles` texts with their weights."""
        ...


text_sampler = Role("text sampler", TextSampler, ("tokenry.decode.samplers",))


def next_logprobs(
    logits: Tensor,
    prompt: Tensor,
    texts: Sequence[Sequence[int]],
    processors: Sequence[Processor],
    temperature: float,
) -> Tensor:
    """Log-probabilities `[n, V]` of the model as it is sampled: processors, then temperature.

    Args:
        prompt: ids `[T]`.
        texts: n lists of ids, equally long.
    """
    logits = logits.float()
    if processors:
        ids = torch.tensor([list(text) for text in texts], dtype=torch.long)
        so_far = torch.cat([prompt.expand(len(texts), -1), ids.view(len(texts), -1)], dim=1)
        for processor in processors:
            logits = processor(so_far.to(logits.device), logits)
    return (logits if temperature == 1.0 else logits / temperature).log_softmax(-1)


def check_sampling(max_new_tokens: int, temperature: float, particles: int = 1) -> None:
    """Raise InputError for settings with which nothing can be sampled."""
    in_range("particles", particles, "[1, inf)", integer=True)
    in_range("max_new_tokens", max_new_tokens, "[1, inf)", integer=True)
    in_range("temperature", temperature, "(0, inf)")
