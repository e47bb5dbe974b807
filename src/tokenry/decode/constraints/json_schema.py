"""JSON schemas, made ready for the grammar engine: exact, or refused with their path.

The engine reads numbers as float64 and does not compare keys with each other, knows some formats,
and takes what it is given. What it would get wrong is rewritten into something that it gets right,
which may allow fewer texts, never others; where there is no such thing, the schema is refused:

    numbers       const and enum must be exact in float64; bounds beyond 2^53 are drawn in to it
    multipleOf    up to LARGEST_MULTIPLE, its decimal places taken away
    oneOf         becomes anyOf where no text can satisfy two options: other types, or a required
                  property with other values
    keys          are written without \\u escapes, as one could spell the name of another property;
                  minProperties may not count on two keys that no one has named
    formats       of the standard become patterns, with real calendar dates
    recursion     a schema that every text of would be infinite is found

`prepare` does all of it. Sizes are checked first: no schema is worked on without bound.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import combinations
from typing import Any
from urllib.parse import unquote

from tokenry.core.errors import ConstraintError
from tokenry.decode.constraints.json_formats import ENGINE_FORMATS, PATTERNS

DEEPEST = 96  # levels of objects and arrays; the engine's reader stops at 128
LONGEST_WAY = 1000  # schemas inside one another through references, on the engine's stack
MOST_OPTIONS = 200  # of a oneOf that are compared with each other here
LARGEST = 1 << 20  # characters of a schema's text
LARGEST_MULTIPLE = 100_000  # the engine makes a state for every remainder
EXACT = 1 << 53  # the largest whole number up to which float64 has all
ESCAPES = 'nrbtf\\"'  # the engine's, without \\u

ONE = ("additionalProperties", "additionalItems", "items", "contains", "not", "if", "then", "else",
       "propertyNames", "unevaluatedItems", "unevaluatedProperties")  # fmt: skip
SEVERAL = ("allOf", "anyOf", "oneOf", "prefixItems", "items")
NAMED = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
TYPES = ("object", "array", "string", "number", "integer", "boolean", "null")
BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")

Path = tuple[str | int, ...]


@dataclass(frozen=True)
class Prepared:
    """A schema for the engine.

    Args:
        dropped: formats that it does not check, with their paths.
    """

    schema: Any
    dropped: list[str] = field(default_factory=list)


def read_json(text: str) -> Any:
    """JSON without loss: numbers that float64 does not have come as Decimal. NaN, infinities and
    repeated keys are refused. Raises ConstraintError, or ValueError where it is no JSON."""

    def number(digits: str) -> float | Decimal:
        exact, near = Decimal(digits), float(digits)
        return near if math.isfinite(near) and Decimal(repr(near)) == exact else exact

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        known = dict(items)
        if len(known) < len(items):
            names = [name for name, _ in items]
            double = next(name for name in names if names.count(name) > 1)
            raise ConstraintError(f"the key {double!r} stands twice in one object of the schema")
        return known

    def constant(name: str) -> Any:
        raise ConstraintError(f"{name} is no JSON number")

    if len(text) > LARGEST:
        raise ConstraintError(f"it has {len(text):,} characters; at most {LARGEST:,} are read")
    try:
        return json.loads(
            text, parse_float=number, parse_constant=constant, object_pairs_hook=pairs
        )
    except RecursionError:
        raise ConstraintError(too_deep("more than a thousand")) from None


def prepare(schema: Any, *, lenient: bool = False) -> Prepared:
    """The schema as the engine gets it.

    Args:
        lenient: formats that cannot be checked are left out.

    Raises:
        ConstraintError: with the path of what cannot be used.
    """
    if not isinstance(schema, Mapping | bool):
        raise ConstraintError(f"a schema must be an object, true or false, not {schema!r:.60}")
    check_depth(schema)
    dropped: list[str] = []
    if isinstance(schema, Mapping):
        check_way(schema)
        check_finite(schema)
        schema = told_apart(rewritten(schema, (), lenient, dropped))
        own = schema.get("x-guidance", {})
        schema = {**schema, "x-guidance": {**own, "json_allowed_escapes": ESCAPES}}
    return Prepared(schema, dropped)


def check_depth(value: Any) -> None:
    """Raise ConstraintError for objects in objects beyond what the engine reads."""
    level, depth = [value], 0
    while level:
        if depth > DEEPEST:
            raise ConstraintError(too_deep(f"more than {DEEPEST}"))
        inner = []
        for part in level:
            if isinstance(part, Mapping):
                inner += part.values()
            elif isinstance(part, list | tuple):
                inner += part
        if len(inner) > LARGEST:
            raise ConstraintError(f"it has more than {LARGEST:,} parts")
        level, depth = inner, depth + 1


def too_deep(levels: str) -> str:
    return (
        f"it is nested {levels} levels deep: give its inner parts names under $defs and refer to "
        'them ({"$ref": "#/$defs/name"})'
    )


def rewritten(node: Any, path: Path, lenient: bool, dropped: list[str]) -> Any:
    """A schema with everything below it as the engine gets it."""
    if not isinstance(node, Mapping):
        return node
    node = dict(node)
    for step, inner in parts(node):
        new = rewritten(inner, (*path, *step), lenient, dropped)
        key, *rest = step
        if not rest:
            node[key] = new
        else:
            copied = node[key] = (dict if isinstance(node[key], Mapping) else list)(node[key])
            copied[rest[0]] = new  # type: ignore[index]
    for name in ("const", "enum", "default", "examples"):
        if name in ("const", "enum") and name in node:
            check_values(node[name], (*path, name))
        elif name in node:
            del node[name]  # says nothing about texts
    for names in (node.get("properties"), node.get("required")):
        for name in names if isinstance(names, Mapping | list) else ():
            if isinstance(name, str):
                check_text(name, path)
    for name in BOUNDS:
        if name in node:
            node[name] = bound(name, node[name], (*path, name))
    check_multiples(node, path)
    check_count_of_keys(node, path)
    if isinstance(node.get("format"), str):
        with_pattern(node, path, lenient, dropped)
    return node


def parts(node: Mapping[str, Any]) -> Iterator[tuple[Path, Any]]:
    """The schemas directly inside a schema, each with the steps that lead to it."""
    for key, value in node.items():
        if key in NAMED and isinstance(value, Mapping):
            yield from (((key, name), inner) for name, inner in value.items())
        elif key in SEVERAL and isinstance(value, list):
            yield from (((key, number), inner) for number, inner in enumerate(value))
        elif key in ONE:
            yield (key,), value


def check_values(value: Any, path: Path) -> None:
    """Raise ConstraintError for a number, or a key, that the engine would write as another."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            check_text(name, path)
            check_values(inner, (*path, name))
    elif isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            check_values(inner, (*path, number))
    elif isinstance(value, str):
        check_text(value, path)
    elif not isinstance(value, bool | None):
        inexact = isinstance(value, Decimal) or (isinstance(value, int) and not is_float(value))
        if inexact or not math.isfinite(value) or abs(value) == 1 << 63:
            raise refusal(
                f"the number {value} has no exact float64, in which numbers are compared; "
                "write it as a string, or take a neighbour",
                path,
            )


def check_text(text: str, path: Path) -> None:
    control = next((c for c in text if c < " " and c not in "\b\f\n\r\t"), None)
    if control is not None or any("\ud800" <= c <= "\udfff" for c in text):
        raise refusal(f"{text!r} holds a character that only a \\u escape can write", path)


def is_float(value: int) -> bool:
    """Whether float64 has this whole number."""
    try:
        return abs(value) < 1 << 63 and int(float(value)) == value
    except OverflowError:
        return False


def bound(name: str, value: Any, path: Path) -> Any:
    """A bound, drawn in to where all whole numbers have a float of their own."""
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        return value  # the engine says what is wrong
    if isinstance(value, Decimal) and abs(value) <= EXACT:
        raise refusal(f"{value} has more digits than float64: round it", path)
    upper = name.endswith("aximum")
    if math.isnan(value) or (value > EXACT and not upper) or (value < -EXACT and upper):
        raise refusal(
            f"numbers beyond 2^53 = {EXACT} are not compared exactly, so {name} cannot be {value}",
            path,
        )
    return min(value, EXACT) if upper else max(value, -EXACT)


def check_multiples(node: Mapping[str, Any], path: Path) -> None:
    """Raise ConstraintError where the remainders are too many to count."""
    multiples = []
    own = [(path, node)]
    own += [
        ((*path, *step), inner)
        for step, inner in parts(node)
        if step[0] == "allOf" and isinstance(inner, Mapping)
    ]
    for where, part in own:
        value = part.get("multipleOf")
        if isinstance(value, int | float | Decimal) and not isinstance(value, bool):
            if isinstance(value, Decimal) or not (math.isfinite(value) and value > 0):
                raise refusal(
                    f"multipleOf is {value}; it must be above 0, and a float64",
                    (*where, "multipleOf"),
                )
            digits = Decimal(str(value)).normalize().as_tuple().digits
            multiples.append((where, value, int("".join(map(str, digits)))))
    together = math.lcm(*(number for *_, number in multiples))
    if multiples and together > LARGEST_MULTIPLE:
        where, value, _ = max(multiples, key=lambda one: one[2])
        raise refusal(
            f"multipleOf is {value}: remainders up to {LARGEST_MULTIPLE:,} are counted, "
            f"and {together:,} would be needed",
            (*where, "multipleOf"),
        )


def check_count_of_keys(node: Mapping[str, Any], path: Path) -> None:
    """Raise ConstraintError where minProperties depends on keys being different."""
    least = node.get("minProperties")
    if not isinstance(least, int | float) or isinstance(least, bool):
        return
    open_ended = node.get("additionalProperties", True) is not False
    free = open_ended or bool(node.get("patternProperties"))
    required = node.get("required")
    certain = len(set(required)) if isinstance(required, list) else 0
    if free and least > certain + 1:
        raise refusal(
            f"minProperties is {least}, and only {certain} keys are required by name: a key that "
            "is written twice would be counted twice. Require more keys by name, set "
            "additionalProperties to false, or take an array of pairs",
            (*path, "minProperties"),
        )


def with_pattern(node: dict[str, Any], path: Path, lenient: bool, dropped: list[str]) -> None:
    """Put a pattern in the place of a format."""
    name = node["format"]
    if name in PATTERNS:
        del node["format"]
        pattern = f"^(?:{PATTERNS[name]})$"
        if "pattern" in node:
            node["allOf"] = [*also(node), {"pattern": pattern}]
        else:
            node["pattern"] = pattern
    elif name not in ENGINE_FORMATS:
        if not lenient:
            raise refusal(
                f"the format {name!r} is not checked here; leave it out, give a pattern instead, "
                "or ask for lenient reading, which takes it for a remark",
                (*path, "format"),
            )
        del node["format"]
        dropped.append(f"{name!r} at {pointer((*path, 'format'))}")


def told_apart(schema: Mapping[str, Any]) -> Any:
    """oneOf as anyOf wherever its options cannot overlap."""

    def walked(node: Any) -> Any:
        if not isinstance(node, Mapping):
            return node
        node = dict(node)
        for step, inner in parts(node):
            key, *rest = step
            if not rest:
                node[key] = walked(inner)
            else:
                node[key] = (dict if isinstance(node[key], Mapping) else list)(node[key])
                node[key][rest[0]] = walked(inner)
        options = node.get("oneOf")
        if (
            isinstance(options, list)
            and len(options) <= MOST_OPTIONS
            and all(disjoint(a, b, schema) for a, b in combinations(options, 2))
        ):
            del node["oneOf"]
            if "anyOf" in node:
                node["allOf"] = [*also(node), {"anyOf": options}]
            else:
                node["anyOf"] = options
        return node

    return walked(schema)


def disjoint(a: Any, b: Any, schema: Any, depth: int = 0) -> bool:
    """Whether certainly no JSON value satisfies both schemas."""
    a, b = (
        resolved(schema, part["$ref"])
        if isinstance(part, Mapping) and isinstance(part.get("$ref"), str)
        else part
        for part in (a, b)
    )
    if not isinstance(a, Mapping) or not isinstance(b, Mapping) or depth > 8:
        return a is False or b is False
    one, two = values_of(a), values_of(b)
    if one is not None and two is not None and one.isdisjoint(two):
        return True
    if kinds_of(a).isdisjoint(kinds_of(b)):
        return True
    if kinds_of(a) | kinds_of(b) != {"object"}:
        return False
    required = [part.get("required") for part in (a, b)]
    named = [part.get("properties") for part in (a, b)]
    if not all(isinstance(names, list) for names in required):
        return False
    if not all(isinstance(properties, Mapping) for properties in named):
        return False
    shared = [name for name in required[0] if name in required[1]]  # type: ignore[index,operator]
    return any(
        disjoint(named[0].get(name), named[1].get(name), schema, depth + 1)  # type: ignore[union-attr]
        for name in shared
    )


def values_of(node: Mapping[str, Any]) -> set[Any] | None:
    """The scalars that const or enum allow; None for others."""
    values = [node["const"]] if "const" in node else node.get("enum")
    if not isinstance(values, list) or any(isinstance(v, Mapping | list) for v in values):
        return None
    return {(isinstance(value, bool), value) for value in values}


def kinds_of(node: Mapping[str, Any]) -> set[str]:
    """The types that a schema allows, by its `type` or by its values."""
    known = node.get("type", list(TYPES))
    kinds = {known} if isinstance(known, str) else set(known if isinstance(known, list) else TYPES)
    if "const" in node or isinstance(node.get("enum"), list):
        values = [node["const"]] if "const" in node else node["enum"]
        kinds &= {kind for value in values for kind in kinds_of_value(value)} | kinds - set(TYPES)
    return kinds | ({"integer", "number"} if kinds & {"integer", "number"} else set())


def kinds_of_value(value: Any) -> tuple[str, ...]:
    if isinstance(value, bool):
        return ("boolean",)
    if value is None:
        return ("null",)
    if isinstance(value, int | float | Decimal):
        return ("integer", "number")
    if isinstance(value, str):
        return ("string",)
    return ("object",) if isinstance(value, Mapping) else ("array",)


def check_way(schema: Mapping[str, Any]) -> None:
    """Raise ConstraintError for references in references beyond what the engine's stack holds."""
    seen = {"#"}
    todo: list[tuple[Any, int]] = [(schema, 0)]
    while todo:
        node, depth = todo.pop()
        if not isinstance(node, Mapping):
            continue
        if depth > LONGEST_WAY:
            raise ConstraintError(
                f"its references lead through more than {LONGEST_WAY:,} schemas, one inside the "
                "other: flatten them"
            )
        todo += [
            (inner, depth + 1)
            for step, inner in reversed(list(parts(node)))
            if step[0] not in ("$defs", "definitions")
        ]
        name = node.get("$ref")
        if isinstance(name, str) and name not in seen:
            seen.add(name)
            todo.append((resolved(schema, name), depth + 1))


def also(node: Mapping[str, Any]) -> list[Any]:
    """What allOf has already."""
    known = node.get("allOf", [])
    return known if isinstance(known, list) else [known]


def check_finite(schema: Mapping[str, Any]) -> None:
    """Raise ConstraintError where a part of a schema has no finite text, as it needs itself.

    The least fixed point of "has a text": a reference has one if its target has. What only the
    greatest fixed point gives a text has infinite ones alone.
    """
    targets = reachable(schema)
    least = settled(schema, targets, dict.fromkeys(targets, False))
    most = settled(schema, targets, dict.fromkeys(targets, True))
    for name in targets:
        if most[name] and not least[name]:
            raise ConstraintError(
                f"no finite text satisfies it: everything of {name} needs another one in it; make "
                f"a property on the way optional, or give an alternative, at {name}"
            )


def settled(schema: Any, targets: Mapping[str, Any], values: dict[str, bool]) -> dict[str, bool]:
    """The fixed point of which targets have a text, from `values` on."""
    for _ in range(len(targets) + 1):
        before = dict(values)
        for name, target in reversed(
            list(targets.items())
        ):  # what was met last needs least of the rest
            values[name] = has_text(target, values.__getitem__)
        if values == before:
            break
    return values


def reachable(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The root and the targets of all references that can be reached, by their pointers."""
    targets: dict[str, Any] = {"#": schema}
    todo = [schema]
    while todo:
        node = todo.pop()
        if not isinstance(node, Mapping):
            continue
        name = node.get("$ref")
        if isinstance(name, str) and name not in targets:
            target = resolved(schema, name)
            if target is not None:
                targets[name] = target
                todo.append(target)
        todo += [inner for step, inner in parts(node) if step[0] not in ("$defs", "definitions")]
    return targets


def resolved(schema: Any, reference: str) -> Any:
    """The part that a JSON pointer names; None for what is not in this schema."""
    if reference not in ("#", "") and not reference.startswith("#/"):
        return None
    part = schema
    for step in reference.split("/")[1:]:
        step = unquote(step).replace("~1", "/").replace("~0", "~")
        if isinstance(part, Mapping) and step in part:
            part = part[step]
        elif isinstance(part, list) and step.isdecimal() and int(step) < len(part):
            part = part[int(step)]
        else:
            return None
    return part


def has_text(node: Any, of_target: Callable[[str], bool]) -> bool:
    """Whether a schema has a text, if its references have one where `of_target` says so.

    An upper estimate in all but references: nothing that has a text is said to have none.
    """
    if not isinstance(node, Mapping):
        return node is not False

    def has(inner: Any) -> bool:
        return has_text(inner, of_target)

    name = node.get("$ref")
    if isinstance(name, str):
        try:
            if not of_target(name):
                return False
        except KeyError:
            pass  # not of this schema: the engine will say so
    for key, how in (("allOf", all), ("anyOf", any), ("oneOf", any)):
        options = node.get(key)
        if isinstance(options, list) and options and not how(has(option) for option in options):
            return False
    if "const" in node or "enum" in node:
        return True
    kinds = node.get("type", "any")
    kinds = {kinds} if isinstance(kinds, str) else set(kinds if isinstance(kinds, list) else ())
    if kinds - {"object", "array"}:
        return True
    return ("object" in kinds and object_has_text(node, has)) or (
        "array" in kinds and array_has_text(node, has)
    )


def object_has_text(node: Mapping[str, Any], has: Callable[[Any], bool]) -> bool:
    named = node.get("properties")
    named = named if isinstance(named, Mapping) else {}
    free = True if node.get("patternProperties") else node.get("additionalProperties", True)
    required = node.get("required")
    names = required if isinstance(required, list) else []
    return all(has(named.get(name, free) if isinstance(name, str) else True) for name in names)


def array_has_text(node: Mapping[str, Any], has: Callable[[Any], bool]) -> bool:
    least = node.get("minItems", 0)
    least = least if isinstance(least, int) else 0
    first, rest = node.get("prefixItems", []), node.get("items", True)
    if isinstance(rest, list):
        first, rest = rest, node.get("additionalItems", True)
    first = first if isinstance(first, list) else []
    return all(map(has, first[:least])) and (least <= len(first) or has(rest))


def refusal(reason: str, path: Path) -> ConstraintError:
    return ConstraintError(f"{reason}, at {pointer(path)}")


def pointer(path: Path) -> str:
    """A JSON pointer as a fragment."""
    return "".join(["#", *("/" + str(s).replace("~", "~0").replace("/", "~1") for s in path)])
