"""reasoning-gym: its data sets of generated problems as tasks, scored by its own programs.

    items(n, s)_i = create_dataset(name, seed = STRIDE s, size = n, **settings)[i],  i = 0 .. n - 1
    score(y)      = that data set's score_answer(y, entry_i), in [0, 1]

Most of its data sets make entry i from the number seed + i, so that those of seeds 0 and 1 are the
same but for one. STRIDE = 10^6 keeps the items of two seeds apart; seed 0 is its own seed 0.

An item carries its entry (question, answer, metadata) as the text of a Python literal: tuples and
keys that are numbers, which some of its scorers compare by type, pass through JSON unchanged.

Source: REASONING GYM: Reasoning Environments for Reinforcement Learning with Verifiable Rewards
(arXiv 2505.24760). Tried with reasoning-gym 0.1.25. In it, isomorphic_strings, ransom_note,
polynomial_multiplication and word_ladder draw from sets: their entries also depend on
PYTHONHASHSEED.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, ClassVar

import numpy

from tokenry.core.checks import in_range, one_of
from tokenry.core.errors import InputError
from tokenry.core.extras import require_extra
from tokenry.tasks.literals import as_literal
from tokenry.tasks.task import Answer, Generate, Item, Task, task

STRIDE = 10**6
SEEDS = f"[0, {2**32 // STRIDE})"  # one of its data sets takes seeds of 32 bits


def _examples() -> list[ReasoningGym]:
    return [ReasoningGym("chain_sum"), ReasoningGym("countdown", system="default")]


@task("reasoning-gym", examples=_examples)
@dataclass(frozen=True)
class ReasoningGym(Task):
    """A data set of reasoning-gym (the extra `gym`).

    Args:
        name: the data set's, as "chain_sum".
        settings: its configuration but `seed` and `size`, as literals; default its own. Those of
            "composite" are {"datasets": [{"name", "weight", "config"}, ...]}.
        system: one of its system prompts, as "default". With it items are chats, and the answer is
            what stands in the last <answer>...</answer>, as its `extract_answer` reads it. None
            (default): the prompt is the question, and the whole text the answer.
        limit: tokens of an answer, >= 1; default 512.

    Raises:
        InputError: the package is not installed, or there is no such data set, system prompt or
            setting (when items are asked for); a setting or an entry that is no literal.
    """

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    system: str | None = None
    limit: int = 512

    primary: ClassVar[str] = "score"

    def __post_init__(self) -> None:
        in_range("limit", self.limit, "[1, inf)", integer=True)
        if fixed := {"seed", "size"} & set(self.settings):
            raise InputError(f"{min(fixed)} is no setting: it is an argument of `items`")

    def items(self, count: int, seed: int) -> list[Item]:
        """Its entries in their order, of which some data sets repeat some. The solution is the
        entry's answer if that scores 1. count: 1 to STRIDE. seed: 0 to 4293."""
        in_range("count", count, f"[1, {STRIDE}]", integer=True)
        in_range("seed", seed, SEEDS, integer=True)
        state = numpy.random.get_state()  # pool_matrix seeds the generator that a process shares
        try:
            made = self._dataset(seed, count)
            return [self._item(made[n], {"seed": seed, "count": count}) for n in range(count)]
        finally:
            numpy.random.set_state(state)

    def score(self, item: Item, answer: Answer) -> dict[str, float]:
        """score: reasoning-gym's. failed: 1 if its scorer raises an error, which scores 0."""
        made = self._dataset(item.about["seed"], item.about["count"])
        text = str(answer) if self.system is None else _gym().utils.extract_answer(str(answer))
        try:
            return {"score": float(made.score_answer(text, self.entry(item))), "failed": 0.0}
        except Exception:
            return {"score": 0.0, "failed": 1.0}

    def entry(self, item: Item) -> dict[str, Any]:
        """What reasoning-gym made: {"question", "answer", "metadata"}."""
        return ast.literal_eval(item.about["entry"])

    def _dataset(self, seed: int, count: int) -> Any:
        return _dataset(self.name, as_literal(dict(self.settings)), seed, count)

    def _item(self, entry: Mapping[str, Any], origin: Mapping[str, int]) -> Item:
        prompt, solution = entry["question"], entry["answer"]
        if self.system is not None:
            prompts = _gym().utils.SYSTEM_PROMPTS
            one_of("ReasoningGym.system", self.system, prompts)
            words = {"system": prompts[self.system], "user": prompt}
            prompt = [{"role": role, "content": text} for role, text in words.items()]
            solution = f"<answer>{solution}</answer>"
        about = {"entry": as_literal(dict(entry)), **origin}
        item = Item(Generate(prompt, self.limit), solution, about)
        best = isinstance(entry["answer"], str) and self.score(item, solution)["score"] == 1
        return item if best else replace(item, solution=None)


@lru_cache(maxsize=8)
def _dataset(name: str, settings: str, seed: int, count: int) -> Any:
    gym, given = _gym(), ast.literal_eval(settings)
    one_of("ReasoningGym.name", name, gym.factory.DATASETS)
    try:
        if name == "composite":
            given["datasets"] = [gym.composite.DatasetSpec(**one) for one in given["datasets"]]
        return gym.create_dataset(name, seed=STRIDE * seed, size=count, **given)
    except (AssertionError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{name} does not take the settings {settings}: {error!r}") from None


def _gym() -> Any:
    require_extra("reasoning-gym's data sets", "reasoning_gym")
    import reasoning_gym.utils  # pyright: ignore[reportMissingImports]

    return reasoning_gym
