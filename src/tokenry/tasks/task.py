"""Task: items that ask a model for something, and a program that scores what it answers.

    items(count, seed) -> item_1 .. item_n            the same for the same seed
    answer_i = model( item_i.request )                generate(prompt, limit), or log-likelihoods
    score(item_i, answer_i) -> {name: number}         one of them, `primary`, is the headline
    aggregate -> {name: number}                       the mean of each score, unless the task says

A task knows no model: whatever answers the two kinds of request can be evaluated, a language model
(`decode.answers.ModelAnswers`), one of lm-evaluation-harness (`tasks.lm_eval.LMEvalAnswers`), or a
plain function from prompt to text. Its `reward` makes it a reward function of policy training too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, ClassVar, Protocol, runtime_checkable

from tokenry.core.checks import in_range
from tokenry.core.errors import InputError
from tokenry.core.registry import Role

Prompt = str | Sequence[Mapping[str, Any]]
Scores = dict[str, float]


@dataclass(frozen=True)
class Generate:
    """Asks for a text. prompt: a text, or chat messages. limit: tokens, >= 1. stop: texts that end
    the answer and do not belong to it."""

    prompt: Prompt
    limit: int = 64
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        in_range("limit", self.limit, "[1, inf)", integer=True)


@dataclass(frozen=True)
class Loglikelihood:
    """Asks for log p(candidate | prompt) of each candidate, nats."""

    prompt: Prompt
    candidates: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.candidates or not all(self.candidates):
            raise InputError("a choice needs candidates, none of them empty")


Request = Generate | Loglikelihood
Answer = str | Sequence[float]
"""A text, or one log-likelihood for each candidate."""


@dataclass(frozen=True)
class Item:
    """One question. solution: an answer that gets the best primary score, where one is known.
    about: what the scoring needs."""

    request: Request
    solution: Answer | None = None
    about: Mapping[str, Any] = field(default_factory=dict)


@runtime_checkable
class Task(Protocol):
    """The role: items that ask a model for something, and a program that scores the answers.
    Derive from it: `aggregate` and `reward` have the defaults that most tasks want."""

    primary: ClassVar[str]
    """The score that counts; larger is better."""

    def items(self, count: int, seed: int) -> Sequence[Item]:
        """`count` items, the same for the same seed."""
        ...

    def score(self, item: Item, answer: Answer) -> Scores:
        """Named numbers of any range, `primary` among them."""
        ...

    def aggregate(self, scores: Sequence[Scores]) -> Scores:
        """What the scores of all items come to: the mean of each."""
        return means(scores)

    def reward(self, item: Item, answer: Answer) -> float:
        """What policy training maximises: the primary score."""
        return float(self.score(item, answer)[self.primary])


task = Role("task", Task, ("tokenry.tasks",))


class Answers(Protocol):
    """What can be evaluated: both requests, many at a time."""

    def generate(self, requests: Sequence[Generate]) -> Sequence[str]: ...

    def loglikelihood(self, requests: Sequence[Loglikelihood]) -> Sequence[Sequence[float]]: ...


@dataclass(frozen=True)
class Report:
    """scores: of every item. aggregate: {name: number}. items, answers: what they are of."""

    scores: tuple[Scores, ...]
    aggregate: Scores
    primary: str
    items: tuple[Item, ...] = field(repr=False)
    answers: tuple[Answer, ...] = field(repr=False)

    @property
    def value(self) -> float:
        """The headline."""
        return self.aggregate[self.primary]


def evaluate(
    model: Answers | Callable[[str], str], task: Task, count: int = 100, seed: int = 0
) -> Report:
    """Put `count` items of a task to a model.

    Args:
        model: something with the two requests, or a function from a prompt to a text.
        task: see `Task`. count: items, >= 1. seed: of the items.

    Returns:
        A Report with every score.

    Raises:
        InputError: a count below 1, an answer of the wrong form, a function that is asked for
            log-likelihoods, or scores that are not finite or lack the primary one.
    """
    in_range("count", count, "[1, inf)", integer=True)
    items = tuple(task.items(count, seed))
    answers = tuple(_answers(model, items))
    scores = tuple(_checked(task, *pair) for pair in zip(items, answers, strict=True))
    return Report(scores, task.aggregate(scores), task.primary, items, answers)


def means(scores: Sequence[Scores]) -> Scores:
    """The mean of every score over the items that have it."""
    names = dict.fromkeys(name for one in scores for name in one)
    return {name: fmean(one[name] for one in scores if name in one) for name in names}


def likeliest(answer: Answer) -> int:
    """The place of the candidate with the highest log-likelihood, the first among equals."""
    if isinstance(answer, str) or not len(answer):
        raise InputError("this item asks for log-likelihoods, one for each candidate")
    return max(range(len(answer)), key=lambda place: (answer[place], -place))


def _answers(model: Any, items: Sequence[Item]) -> list[Answer]:
    """Every item's answer; requests of one kind are asked for together."""
    answers: dict[int, Answer] = {}
    for kind, verb in ((Generate, "generate"), (Loglikelihood, "loglikelihood")):
        chosen = [n for n, item in enumerate(items) if isinstance(item.request, kind)]
        if not chosen:
            continue
        requests: list[Any] = [items[n].request for n in chosen]
        ask = getattr(model, verb, None)
        if ask is None and kind is Generate and callable(model):
            found: list[Any] = [model(request.prompt) for request in requests]
        elif ask is None:
            raise InputError(f"this task asks for {verb}(requests), which the model does not have")
        else:
            found = list(ask(requests))
        if len(found) != len(chosen):
            raise InputError(f"{len(chosen)} requests got {len(found)} answers")
        answers |= dict(zip(chosen, found, strict=True))
    return [answers[n] for n in range(len(items))]


def _checked(task: Task, item: Item, answer: Answer) -> Scores:
    request = item.request
    if isinstance(request, Generate) != isinstance(answer, str):
        raise InputError(f"a {type(request).__name__} request got {type(answer).__name__}")
    if isinstance(request, Loglikelihood) and len(answer) != len(request.candidates):
        raise InputError(f"{len(request.candidates)} candidates got {len(answer)} numbers")
    scores = {name: float(value) for name, value in task.score(item, answer).items()}
    if task.primary not in scores:
        raise InputError(f"{type(task).__name__} gives no {task.primary!r}, its primary score")
    if wrong := [name for name, value in scores.items() if not math.isfinite(value)]:
        raise InputError(f"{type(task).__name__} gives a {wrong[0]} that is not finite")
    return scores
