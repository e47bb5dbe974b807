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

from tokenry.core.errors import InputError
from tokenry.core.registry import Role
from tokenry.learn.rewards.worker import name_of, plain_value, signature_of


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


def values_of(
    given: str | RewardFn, prompts: Texts, completions: Texts, columns: Mapping[str, Sequence[Any]]
) -> list[float | None]:
    """What a reward gives, for a reward that is made of others.

    Args:
        given: a reward, or its name in the catalogue. columns: all there are, of which it gets
            those that it takes.

    Raises:
        InputError: a column that it needs and nobody has, the wrong number of values, lists.
    """
    function = resolved(given)
    signature, name = signature_of(function), name_of(function)
    if not signature.batched:
        pairs = zip(prompts, completions, strict=True)
        return [plain_value(function(*pair)) for pair in pairs]
    known: dict[str, Any] = {"prompts": prompts, "completions": completions, **columns}
    if missing := [column for column in signature.required if column not in known]:
        raise InputError(f'the reward function {name} asks for the column "{missing[0]}": add it')
    wanted = {k: v for k, v in known.items() if signature.every_column or k in signature.named}
    values = plain_value(function(**wanted))
    if not isinstance(values, list) or len(values) != len(completions):
        raise InputError(f"{name} gave {values!r} for {len(completions)} rows")
    if any(isinstance(value, list) for value in values):
        raise InputError(f"{name} gives a number for each token: only whole rewards are combined")
    return values


def resolved(given: str | RewardFn) -> RewardFn:
    """The reward itself; of a name in the catalogue, what it stands for."""
    return reward.made(given) if isinstance(given, str) else given


def columns_of(*given: str | RewardFn) -> tuple[str, ...]:
    """The columns that these rewards cannot do without."""
    always = ("prompts", "completions", "completion_ids", "groups")
    names = (name for one in given for name in signature_of(resolved(one)).required)
    return tuple(dict.fromkeys(name for name in names if name not in always))
