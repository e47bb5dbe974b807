"""Rewards of completions: what the functions give, checked, with what they do not give counted.

    r_ik    the number, the numbers (one a token) or nothing that function k gives row i
    row i is left out   when some function failed at it, or none had a value for it

Left out is not 0: such a row counts neither in a baseline nor in a loss. None says that a function
has no opinion on a row, and is absent from the sum of the others (TRL's rule); a function that
raises, hangs, or gives NaN has failed, and its row's sum is unknown.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from tokenry.core.checks import in_range, one_of
from tokenry.core.errors import InputError
from tokenry.learn.rewards.base import reward
from tokenry.learn.rewards.calling import Caller, RewardCallError, caller_of

OnError = Literal["raise", "skip"]
ROW_FIELDS = ("prompts", "completions", "completion_ids", "groups")
Value = float | list[float] | None


@dataclass(frozen=True)
class Rows:
    """Completions as reward functions see them, N of each.

    Args:
        prompts: texts. completion_ids: N lists of ids, the end token included.
        completions: see `prompts`.
        groups: which prompt of the batch each answers.
        columns: of the data, one value a row, by name.
    """

    prompts: Sequence[str]
    completions: Sequence[str]
    completion_ids: Sequence[Sequence[int]]
    groups: Sequence[int]
    columns: Mapping[str, Sequence[Any]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.completions)

    def select(self, rows: Sequence[int]) -> Rows:
        """These rows, in this order."""
        own: Any = {name: [getattr(self, name)[row] for row in rows] for name in ROW_FIELDS}
        columns = {name: [values[n] for n in rows] for name, values in self.columns.items()}
        return Rows(**own, columns=columns)

    def arguments(self, caller: Caller) -> dict[str, Any]:
        """What a function of TRL's signature is called with: what it names, or everything."""
        signature = caller.signature
        given = {name: list(getattr(self, name)) for name in ROW_FIELDS}
        given |= {name: list(values) for name, values in self.columns.items()}
        if missing := [name for name in signature.required if name not in given]:
            raise missing_column(caller, missing[0], self.columns)
        return {k: v for k, v in given.items() if signature.every_column or k in signature.named}

    def describe(self, row: int) -> str:
        return (
            f"sample {row}, prompt {self.prompts[row][-60:]!r}, "
            f"completion {self.completions[row][:60]!r}"
        )


@dataclass(frozen=True)
class Scored:
    """values: of each function, N of each. failed: rows at which some function failed."""

    values: list[list[Value]]
    failed: frozenset[int]

    def kept(self) -> list[int]:
        """The rows that have a reward: no function failed, and one at least had a value."""
        rows = range(len(self.values[0]) if self.values else 0)
        scored = [n for n in rows if any(values[n] is not None for values in self.values)]
        return [n for n in scored if n not in self.failed]


@dataclass
class Rewards:
    """The reward functions of a run.

    Args:
        callers: the functions. on_error: what becomes of a row at which one fails: "raise" (the
            default: as in TRL, a broken reward stops the training) or "skip" (it is left out).
        counts: by function, what happened how often: "raised", "hung", "ended", "not finite",
            "wrong count", and "unscored" for None.
    """

    callers: Sequence[Caller] = ()
    on_error: OnError = "raise"
    counts: dict[str, Counter[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        one_of("on_reward_error", self.on_error, get_args(OnError))

    @classmethod
    def of(
        cls,
        functions: Sequence[str | Callable[..., Any]],
        timeout: float | None = None,
        on_error: OnError = "raise",
    ) -> Rewards:
        """Each function in a worker of its own, or with timeout=None here (see `caller_of`).

        A text is the place of a function in a file, or names one of the catalogue.
        """
        in_range("reward_timeout", timeout, "(0, inf)", optional=True)
        callers: list[Caller] = []
        try:
            for function in functions:
                if isinstance(function, str) and ".py:" not in function:
                    function = reward.made(function)
                callers.append(caller_of(function, timeout))
        except BaseException:
            for caller in callers:
                caller.close()
            raise
        return cls(callers, on_error)

    @property
    def names(self) -> list[str]:
        return [caller.name for caller in self.callers]

    def close(self) -> None:
        for caller in self.callers:
            caller.close()

    def columns(self, rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], bool]:
        """The columns of these rows that functions name, and whether one takes all there are.

        Raises InputError when no row has a column that a function cannot do without.
        """
        known = dict.fromkeys(k for row in rows for k, value in row.items() if value is not None)
        named: dict[str, None] = {}
        for caller in self.callers:
            for name in caller.signature.required:
                if name not in known and name not in ROW_FIELDS:
                    raise missing_column(caller, name, known)
            named |= dict.fromkeys(caller.signature.named)
        wanted = [name for name in named if name in known and name not in ROW_FIELDS]
        return wanted, any(caller.signature.every_column for caller in self.callers)

    def __call__(self, rows: Rows) -> Scored:
        """The values of all functions.

        Raises:
            InputError: naming function and row, when a function fails and on_error is "raise", or
                when the data lack a column that it asks for.
        """
        values, failed = [], set()
        for caller in self.callers:
            one = _Call(caller, rows, self.on_error == "raise")
            values.append(one.values())
            failed |= one.failures.keys()
            self._count(one, values[-1])
        return Scored(values, frozenset(failed))

    def _count(self, call: _Call, values: Sequence[Value]) -> None:
        counts = self.counts.setdefault(call.caller.name, Counter())
        unscored = sum(v is None and n not in call.failures for n, v in enumerate(values))
        new = Counter(why for why, _ in call.failures.values())
        if new and not counts.keys() - {"unscored"}:
            row = min(call.failures)
            warnings.warn(
                f"{call.sentence(row)}; {len(call.failures)} of {len(values)} rows are left out, "
                "and further ones will be, counted and without another warning",
                stacklevel=3,
            )
        counts.update(new)
        if unscored:
            counts["unscored"] += unscored


@dataclass
class _Call:
    """One function on one batch. failures: row -> (why, in words)."""

    caller: Caller
    rows: Rows
    stop: bool
    failures: dict[int, tuple[str, str]] = field(default_factory=dict)

    def values(self) -> list[Value]:
        ask = self._together if self.caller.signature.batched else self._one_by_one
        given = ask()
        checked: list[Value] = []
        for row, value in enumerate(given):
            if row not in self.failures and (wrong := self._wrong(row, value)):
                self._failed(row, *wrong)
            checked.append(None if row in self.failures else value)
        return checked

    def sentence(self, row: int) -> str:
        """What went wrong at a row."""
        why, text = self.failures[row]
        verb = "failed" if why in ("raised", "hung", "ended") else "gave"
        where = f"for {self.rows.describe(row)}"
        if verb == "failed":
            return f"the reward function {self.caller.name} failed {where}: {text}"
        return f"the reward function {self.caller.name} gave {text} {where}"

    def _failed(self, row: int, why: str, text: str) -> None:
        self.failures[row] = (why, text)
        if self.stop:
            raise InputError(f'{self.sentence(row)} (on_reward_error="skip" leaves such rows out)')

    def _one_by_one(self) -> list[Any]:
        given = []
        for row, pair in enumerate(zip(self.rows.prompts, self.rows.completions, strict=True)):
            try:
                given.append(_single(self.caller(pair, {})))
            except RewardCallError as failure:
                self._failed(row, failure.why, str(failure))
                given.append(None)
        return given

    def _together(self) -> list[Any]:
        """All rows in one call; when it fails, each alone, and then those that do not fail."""
        try:
            return self._batch(range(len(self.rows)))
        except RewardCallError as failure:
            whole = failure
        count = len(self.rows)
        for row in range(count if count > 1 else 0):
            try:
                self._batch([row])
            except RewardCallError as failure:
                self._failed(row, failure.why, str(failure))
        good = [row for row in range(count) if row not in self.failures]
        given: list[Any] = [None] * count
        if good and self.failures:
            try:
                for row, value in zip(good, self._batch(good), strict=True):
                    given[row] = value
                return given
            except RewardCallError as failure:
                whole = failure
        also = f" (in a call with {len(good)} rows)" if len(good) > 1 else ""
        for row in good:
            self._failed(row, whole.why, f"{whole}{also}")
        return given

    def _batch(self, rows: Sequence[int]) -> list[Any]:
        chosen = self.rows.select(rows)
        given = self.caller((), chosen.arguments(self.caller))
        if not isinstance(given, list):
            raise RewardCallError("raised", f"it gave {given!r}, not a list of numbers")
        if len(given) != len(rows):
            raise RewardCallError("raised", f"it gave {len(given)} values for {len(rows)} rows")
        return given

    def _wrong(self, row: int, value: Any) -> tuple[str, str] | None:
        """What is wrong with a value, if anything is."""
        if value is None or _finite(value):
            return None
        if isinstance(value, list) and self.caller.signature.batched:
            tokens = len(self.rows.completion_ids[row])
            if len(value) != tokens:
                return "wrong count", f"{len(value)} numbers for the {tokens} tokens"
            bad = [number for number in value if not _finite(number)]
            if not bad:
                return None
            value = bad[0]
        return "not finite", f"{value!r}, which is no finite number,"


def missing_column(caller: Caller, name: str, known: Any) -> InputError:
    columns = ", ".join(known) or "none"
    return InputError(
        f'the reward function {caller.name} asks for the column "{name}", which the data do not '
        f"have (their further columns: {columns}): add it, or give the parameter a default"
    )


def _single(value: Any) -> Any:
    """The number in a tensor that holds one."""
    while isinstance(value, list) and len(value) == 1:
        value = value[0]
    return value


def _finite(value: Any) -> bool:
    return isinstance(value, bool | int | float) and math.isfinite(value)
