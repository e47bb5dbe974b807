"""Checks: constraints on texts that a program can verify, and how well a text satisfies them.

    CSR(y) = sum_k w_k c_k / sum_k w_k        constraint satisfaction rate, c_k in [0, 1]

The c_k are verifiers (`verifiers.base`): of the response alone, of prompt and response, or of the
responses to several prompts of one group together, in which case every member of the group is
credited with the group's value.

    checks = ConstraintSet.of(one_of(["yes", "no"]), length_between(1, 3))
    checks.csr(["Is it?", "Is it?"], ["yes", "maybe so, who knows"])      # [1.0, 0.0]

Source: the constraint classes of From Instructions to Constraints (arXiv 2403.06326).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tokenry.core.errors import InputError, UnknownNameError
from tokenry.tasks.verifiers.base import Example, Verifier, verifier

WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class ConstraintSet:
    """The constraints of a task. Raises InputError when there are none."""

    constraints: tuple[Verifier, ...]

    def __post_init__(self) -> None:
        if not self.constraints:
            raise InputError("a constraint set without constraints cannot rate anything: add one")

    @classmethod
    def of(cls, *constraints: Verifier) -> ConstraintSet:
        return cls(constraints)

    @classmethod
    def parse(cls, calls: Sequence[str]) -> ConstraintSet:
        """From calls of the built-in checks as texts, e.g. "length_between(5, 60)": for settings
        in a file. Arguments are literals; nothing else is evaluated."""
        return cls(tuple(verifier.made(call) for call in calls))

    def csr(
        self,
        prompts: Sequence[str],
        responses: Sequence[str],
        groups: Sequence[Any] | None = None,
    ) -> list[float]:
        """The rate of each response. groups: what each belongs to; needed by group constraints."""
        if len(prompts) != len(responses) or (groups is not None and len(groups) != len(prompts)):
            raise InputError(
                f"{len(prompts)} prompts, {len(responses)} responses and "
                f"{'no' if groups is None else len(groups)} groups: give one of each per response"
            )
        total = [0.0] * len(responses)
        for constraint in self.constraints:
            values = self._values(constraint, prompts, responses, groups)
            total = [a + constraint.weight * b for a, b in zip(total, values, strict=True)]
        mass = sum(constraint.weight for constraint in self.constraints)
        return [value / mass for value in total]

    def _values(
        self,
        constraint: Verifier,
        prompts: Sequence[str],
        responses: Sequence[str],
        groups: Sequence[Any] | None,
    ) -> list[float]:
        if constraint.scope == "response":
            return [constraint(response) for response in responses]
        if constraint.scope == "pair":
            return [constraint(*texts) for texts in zip(prompts, responses, strict=True)]
        if groups is None:
            raise InputError(f"{constraint.name} looks at groups: say which with groups=[...]")
        members: dict[Any, list[int]] = {}
        for number, group in enumerate(groups):
            members.setdefault(group, []).append(number)
        shared = {
            group: constraint([prompts[n] for n in rows], [responses[n] for n in rows])
            for group, rows in members.items()
        }
        return [shared[group] for group in groups]


@verifier(
    "one_of", examples=lambda: [Example(one_of(["yes", "no"]), [(" yes\n",)], [("yes and no",)])]
)
def one_of(options: Sequence[str]) -> Verifier:
    """The response, stripped, is one of the options."""
    allowed = set(options)
    return Verifier(f"one of {len(allowed)} options", lambda y: y.strip() in allowed)


@verifier(
    "labels_from",
    examples=lambda: [Example(labels_from(["a", "b"]), [("b, a",)], [("a, c",), ("",)])],
)
def labels_from(options: Sequence[str], separator: str = ",") -> Verifier:
    """The response is a list of labels, all of them options."""
    allowed = set(options)
    return Verifier("known labels", lambda y: bool(s := _labels(y, separator)) and s <= allowed)


@verifier(
    "hierarchy_closed", examples=lambda: [Example(hierarchy_closed(), [("a, a/b",)], [("a/b",)])]
)
def hierarchy_closed(
    parents: Mapping[str, str] | None = None, separator: str = ",", level: str = "/"
) -> Verifier:
    """With each label, all those above it are in the list.

    parents: child -> parent; without it, "person/artist" is below "person".
    """

    def above(label: str) -> str | None:
        if parents is not None:
            return parents.get(label)
        return label.rpartition(level)[0] or None

    def closed(response: str) -> bool:
        found = _labels(response, separator)
        return all((parent := above(label)) is None or parent in found for label in found)

    return Verifier("labels closed upwards", closed)


@verifier(
    "length_between",
    examples=lambda: [Example(length_between(2, 3), [("two words",)], [("one",), ("a b c d",)])],
)
def length_between(shortest: int, longest: int) -> Verifier:
    """The number of words is in this range, ends included."""
    return Verifier(
        f"{shortest} to {longest} words", lambda y: shortest <= len(y.split()) <= longest
    )


@verifier("regex", examples=lambda: [Example(regex("[0-9]+"), [(" 12 ",)], [("12a",)])])
def regex(pattern: str) -> Verifier:
    """The whole response, stripped, matches the pattern."""
    compiled = re.compile(pattern, re.DOTALL)
    return Verifier(f"matches {pattern}", lambda y: compiled.fullmatch(y.strip()) is not None)


@verifier(
    "json_schema",
    examples=lambda: [
        Example(json_schema({"a": "integer"}), [('{"a": 1}',)], [('{"a": true}',), ("{",)])
    ],
)
def json_schema(required: Mapping[str, str] | None = None) -> Verifier:
    """The response is a JSON object; with `required`, it has these keys with values of these JSON
    types ("string", "number", "integer", "boolean", "array", "object", "null")."""
    kinds: dict[str, Any] = {
        "string": str,
        "number": (int, float),
        "integer": int,
        "boolean": bool,
        "array": list,
        "object": dict,
        "null": type(None),
    }
    for kind in (required or {}).values():
        if kind not in kinds:
            raise UnknownNameError("JSON type", kind, kinds)

    def fits(value: Any, kind: str) -> bool:
        # Python counts True as a number, JSON does not
        return isinstance(value, kinds[kind]) and isinstance(value, bool) == (kind == "boolean")

    def check(response: str) -> bool:
        try:
            value = json.loads(response)
        except json.JSONDecodeError:
            return False
        return isinstance(value, dict) and all(
            key in value and fits(value[key], kind) for key, kind in (required or {}).items()
        )

    return Verifier("JSON object", check)


@verifier(
    "copy_rate",
    examples=lambda: [
        Example(copy_rate(), [("the cat", "Cat!")], [("the cat", "a cat"), ("the cat", "")])
    ],
)
def copy_rate(least: float = 0.0) -> Verifier:
    """Share of the response's words that are in the prompt; with `least`, whether it reaches it."""

    def rate(prompt: str, response: str) -> float:
        words = [word.lower() for word in WORD.findall(response)]
        given = {word.lower() for word in WORD.findall(prompt)}
        share = sum(word in given for word in words) / max(len(words), 1)
        return share if least <= 0 else float(share >= least)

    return Verifier("copied from the prompt", rate, "pair")


@verifier(
    "disjoint_answers",
    examples=lambda: [
        Example(disjoint_answers(), [(["p", "q"], ["a", "b"])], [(["p", "q"], ["a, c", "c"])])
    ],
)
def disjoint_answers(separator: str = ",") -> Verifier:
    """No two responses of a group share a label: before and after the same event, say."""

    def disjoint(prompts: Sequence[str], responses: Sequence[str]) -> bool:
        labels = [label for response in responses for label in _labels(response, separator)]
        return len(labels) == len(set(labels))

    return Verifier("disjoint answers", disjoint, "group")


@verifier(
    "symmetric",
    examples=lambda: [
        Example(symmetric(), [(["p", "q"], ["Yes ", "yes"])], [(["p", "q"], ["yes", "no"])])
    ],
)
def symmetric() -> Verifier:
    """All responses of a group are the same text, up to case and white space."""

    def same(prompts: Sequence[str], responses: Sequence[str]) -> bool:
        return len({" ".join(response.lower().split()) for response in responses}) <= 1

    return Verifier("same answer both ways", same, "group")


def _labels(response: str, separator: str) -> set[str]:
    return {label.strip() for label in response.split(separator) if label.strip()}
