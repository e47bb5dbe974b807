"""Reward: a function of completions that policy training maximises, with TRL's signature.

    r(prompts=[x_1 .. x_n], completions=[y_1 .. y_n], **columns) -> [r_1 .. r_n]

Texts in, one value a row out: a number, None where the function has no opinion on the row, or a
list with one number for each token of the completion. A column of the data is asked for by naming
it as a parameter; `completion_ids` (lists of token ids, the end token included) and `groups` (which
prompt of the batch a row answers) are always there. What judges a text alone is a verifier
(`tasks.verifiers`), which `constraint_rate` makes a reward.

A reward can be sent to another process: it is a function of a module, or a frozen dataclass.

    train("grpo", "problems.jsonl", rewards=["numeric_answer", "soft_overlong(longest=64)"])
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

from tokenry.core.registry import Role


@runtime_checkable
class Reward(Protocol):
    """The role: r_i of completions y_i to prompts x_i, larger is better. Registered are dataclasses
    of such functions, whose defaults can be used as they are."""

    def __call__(
        self, prompts: Sequence[str], completions: Sequence[str], **columns: Sequence[Any]
    ) -> list[Any]:
        """One value a row; columns that are named as parameters are of the data."""
        ...


class Example(NamedTuple):
    """A reward as its contract test takes it, with rows from the worst to the best.

    columns: of the data, one value a row. better: pairs (i, j) of rows with r_i < r_j.
    """

    reward: Reward
    completions: Sequence[str]
    columns: Mapping[str, Sequence[Any]] = {}
    better: Sequence[tuple[int, int]] = ()


Texts = Sequence[str]
RewardFn = Callable[..., list[Any]]

reward = Role("reward", Reward, ("tokenry.learn.rewards",))
