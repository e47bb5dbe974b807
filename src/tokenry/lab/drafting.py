"""Drafters compared on texts: a drafter changes how many passes a text takes, not the text.

    tokens per pass = sum of tokens / sum of passes,   over texts; the prompt's pass gives a token

Over the same texts, fewer passes are more tokens per pass: two drafters are compared by their
passes, text by text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from tokenry.decode.speculation.baselines import NoDraft
from tokenry.decode.speculation.replay import replay
from tokenry.decode.speculation.speculate import (
    Drafter,
    Speculation,
    generate_with_drafter,
    speculate,
)
from tokenry.lab.table import Evidence, Table, paired

Text = tuple[list[int], list[int]]
"""A prompt, and what the model wrote behind it."""


@dataclass(frozen=True)
class Frozen:
    """A drafter that no longer learns from its passes."""

    drafter: Drafter
    reads_prompt: bool = False

    def begin(self, model: Any, prompt: Sequence[int]) -> Any:
        draft: Any = self.drafter.begin(model, prompt)
        draft.update = lambda tree, logits, accepted: None
        return draft


@dataclass(frozen=True)
class Speed:
    """The tokens and the passes of each text."""

    tokens: tuple[int, ...] = ()
    passes: tuple[int, ...] = ()

    def __add__(self, other: Speed) -> Speed:
        return Speed(self.tokens + other.tokens, self.passes + other.passes)

    def __getitem__(self, texts: slice) -> Speed:
        return Speed(self.tokens[texts], self.passes[texts])

    @property
    def per_pass(self) -> float:
        """Tokens per pass over all texts."""
        return sum(self.tokens) / sum(self.passes)

    @property
    def each(self) -> list[float]:
        """Tokens per pass, text by text."""
        return [tokens / passes for tokens, passes in zip(self.tokens, self.passes, strict=True)]

    @property
    def mean(self) -> float:
        """The mean of `each`."""
        return fmean(self.each)

    def add_to(self, table: Table, label: str, seed: int) -> None:
        table.add(label, self.per_pass, "tokens per pass", seed)

    def over(self, other: Speed) -> Evidence:
        """The margins of "more tokens per pass than another drafter on the same texts"."""
        return paired(other.passes, self.passes)

    def above(self, rate: float) -> Evidence:
        """The margins of "more than `rate` tokens per pass"."""
        return paired(self.tokens, [rate * passes for passes in self.passes])


def written(model: Any, prompts: Sequence[list[int]], new: int, **options: Any) -> list[Text]:
    """What the model writes without a draft, all prompts in one batch; `options` of `speculate`."""
    texts = speculate(model, prompts, NoDraft(), new, **options)
    return [(prompt, text.new_ids) for prompt, text in zip(prompts, texts, strict=True)]


def redrafted(
    model: Any,
    texts: Sequence[Text],
    drafter: Drafter,
    each: Sequence[Mapping[str, Any]] | None = None,
    **options: Any,
) -> list[Speculation]:
    """The prompts continued in turn by one drafter, which may learn on the way, for as many tokens
    as the texts have. each: options of `speculate` for every text; options: those of all."""
    return [
        generate_with_drafter(model, prompt, drafter, len(answer), **options, **own)
        for (prompt, answer), own in zip(texts, each or [{}] * len(texts), strict=True)
    ]


def alike(texts: Iterable[Speculation], plain: Iterable[Text]) -> bool:
    """Whether drafted texts are those of plain decoding."""
    return all(one.new_ids == answer for one, (_, answer) in zip(texts, plain, strict=True))


def speed(texts: Sequence[Speculation]) -> Speed:
    """What drafted texts took."""
    return Speed(
        tuple(len(text.new_ids) for text in texts), tuple(text.forward_calls for text in texts)
    )


def replayed(model: Any, drafter: Drafter, texts: Iterable[Text]) -> Speed:
    """What texts would take with a drafter that looks at tokens only; they are not read again."""
    steps = [replay(model, drafter, prompt, answer) for prompt, answer in texts]
    return Speed(tuple(1 + sum(text) for text in steps), tuple(1 + len(text) for text in steps))


def as_replayed(model: Any, make: Callable[[], Drafter], text: Text, **options: Any) -> bool:
    """Whether a new drafter gives this text, in the steps that replaying says."""
    (real,) = redrafted(model, [text], make(), **options)
    return alike([real], [text]) and real.accept_lengths == replay(model, make(), *text)
