"""Rules over a few variables, and what it takes to fill them: predicates, types, assignments.

    p_1(X, Y), p_2(Y, Z), ...  =>  c(X, ..., Z)        or, negative:  =>  not c

Each variable has a type, and is linked to those before it by a premise. An assignment gives values
to variables; verbalised, premises and conclusion are sentences.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from tokenry.core.errors import InputError

Assignment = Mapping[str, str]
"""Variable -> its value."""


@dataclass(frozen=True)
class Predicate:
    """name: what a critic looks it up by. args: variables. template: a sentence, "{X}" for X."""

    name: str
    args: tuple[str, ...]
    template: str

    def __post_init__(self) -> None:
        for variable in self.args:
            if f"{{{variable}}}" not in self.template:
                raise InputError(f"{self.name}: the template {self.template!r} lacks {variable}")

    def text(self, values: Assignment) -> str:
        """The sentence about these values."""
        return self.template.format(**{variable: values[variable] for variable in self.args})

    def bound_by(self, variables: Mapping[str, object] | set[str]) -> bool:
        """Whether all of its variables are among these."""
        return all(variable in variables for variable in self.args)


@dataclass(frozen=True)
class Rule:
    """premises: the first one holds the subject, the first argument of the conclusion. types:
    variable -> what it is, as in "a city". positive: whether the conclusion follows, or cannot be.

    Raises InputError where a variable has no type, or no premise links it to those before it.
    """

    premises: tuple[Predicate, ...]
    conclusion: Predicate
    types: Mapping[str, str]
    positive: bool = True

    def __post_init__(self) -> None:
        used = {v for p in (*self.premises, self.conclusion) for v in p.args}
        if used != set(self.types):
            raise InputError(f"types are of {sorted(self.types)}, the rule is of {sorted(used)}")
        if len(self.order) != len(used):
            missing = sorted(used - set(self.order))
            raise InputError(f"no premise links {missing} to {self.order[0]}")

    @cached_property
    def order(self) -> tuple[str, ...]:
        """The variables as they are filled: the subject, then along the premises."""
        order = [self.conclusion.args[0]]
        while True:
            linked = [
                variable
                for premise in self.premises
                if any(known in order for known in premise.args)
                for variable in premise.args
                if variable not in order
            ]
            if not linked:
                return tuple(order)
            order.append(linked[0])

    def about(self, variable: str, bound: Assignment) -> list[Predicate]:
        """What can be asked of a value of `variable`: its type, and the premises of it and bound
        variables alone."""
        known = {*bound, variable}
        kind = Predicate(
            self.types[variable], (variable,), f"{{{variable}}} is {self.types[variable]}."
        )
        return [kind, *(p for p in self.premises if variable in p.args and p.bound_by(known))]

    def text(self, values: Assignment) -> str:
        """The premises whose variables have values, as sentences; the types where there is none."""
        bound = [premise.text(values) for premise in self.premises if premise.bound_by(values)]
        return (
            " ".join(bound)
            if bound
            else " ".join(f"{v} is {self.types[k]}." for k, v in values.items())
        )

    def statement(self, values: Assignment) -> str:
        """Premises and conclusion of a whole assignment, in words."""
        follows = "Therefore" if self.positive else "Therefore it is not so that"
        return f"{self.text(values)} {follows}: {self.conclusion.text(values)}"
