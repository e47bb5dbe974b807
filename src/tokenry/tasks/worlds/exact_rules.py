"""Rules whose truth a program knows: places and their time in January 2026, numbers and multiples.

    same time       X keeps the time Y, Z keeps the time Y    =>  X and Z have one time of day
    another time    X keeps the time Y, Z does not keep Y     =>  not so
    multiples       X is a multiple of Y, Y of Z              =>  X is a multiple of Z

Places are those of the machine's time zone database that are named after a place.
"""

from __future__ import annotations

import random
import zoneinfo
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import lru_cache

from tokenry.core.checks import in_range
from tokenry.core.errors import InputError
from tokenry.tasks.link import Proposer
from tokenry.tasks.rules import Assignment, Predicate, Rule

PLACE, TIME, NUMBER = "a place", "a time of day", "a whole number"
AREAS = ("Africa", "America", "Asia", "Atlantic", "Australia", "Europe", "Indian", "Pacific")
NUMBERS = range(2, 145)

KEEPS = Predicate("keeps", ("X", "Y"), "The time in {X} is {Y}.")
ALSO = Predicate("keeps", ("Z", "Y"), "The time in {Z} is {Y}.")
NOT = Predicate("keeps not", ("Z", "Y"), "The time in {Z} is not {Y}.")
SAME = Predicate("same time", ("X", "Z"), "{X} and {Z} have the same time of day.")
MULTIPLE = Predicate("multiple", ("X", "Y"), "{X} is a multiple of {Y}.")
AGAIN = Predicate("multiple", ("Y", "Z"), "{Y} is a multiple of {Z}.")
WHOLE = Predicate("multiple", ("X", "Z"), "{X} is a multiple of {Z}.")

RULES = {
    "same time": Rule((KEEPS, ALSO), SAME, {"X": PLACE, "Y": TIME, "Z": PLACE}),
    "another time": Rule((KEEPS, NOT), SAME, {"X": PLACE, "Y": TIME, "Z": PLACE}, positive=False),
    "multiples": Rule((MULTIPLE, AGAIN), WHOLE, dict.fromkeys("XYZ", NUMBER)),
}


@lru_cache(maxsize=1)
def places() -> dict[str, str]:
    """Place -> its time in January 2026, as "UTC+01:00"; places of two times are left out."""
    noon, found, twice = datetime(2026, 1, 15, 12, tzinfo=UTC), {}, set()
    for key in sorted(zoneinfo.available_timezones()):
        area, _, name = key.partition("/")
        if area in AREAS and "/" not in name and not name.isupper():
            name, shift = name.replace("_", " "), f"{noon.astimezone(zoneinfo.ZoneInfo(key)):%z}"
            time = f"UTC{shift[:3]}:{shift[3:5]}"
            if found.setdefault(name, time) != time:
                twice.add(name)
    return {name: time for name, time in found.items() if name not in twice}


def values_of(kind: str) -> list[str]:
    """All values of a type. InputError for a type that no rule has."""
    if kind == PLACE:
        return list(places())
    if kind == TIME:
        return sorted(set(places().values()))
    if kind == NUMBER:
        return [str(number) for number in NUMBERS]
    raise InputError(f"no rule has the type {kind!r}; they are {PLACE}, {TIME} and {NUMBER}")


@lru_cache(maxsize=3)
def _known(kind: str) -> frozenset[str]:
    return frozenset(values_of(kind))


def exact_truth(predicate: Predicate, values: Assignment) -> float:
    """1 where a predicate of the rules, or a type, is true of the values, else 0."""
    named = [values[variable] for variable in predicate.args]
    if predicate.name in (PLACE, TIME, NUMBER):
        return float(named[0] in _known(predicate.name))
    if predicate.name == "multiple":
        return float(int(named[0]) % int(named[1]) == 0)
    times = [places().get(name, name) for name in named]
    one = times[0] == times[1]
    return float(one != (predicate.name == "keeps not"))


def knowing_proposer(seed: int, later: int | None = None) -> Proposer:
    """A proposer that offers true values, in an order that the seed, the call and what is bound
    decide. later: how many at most once something is bound, in [1, inf); None: all."""
    in_range("later", later, "[1, inf)", integer=True, optional=True)

    def propose(
        predicates: Sequence[Predicate], variable: str, bound: Assignment, call: int
    ) -> list[str]:
        values = values_of(predicates[0].name)
        random.Random(repr((seed, variable, sorted(bound.items()), call))).shuffle(values)
        true = [
            value
            for value in values
            if all(exact_truth(p, {**bound, variable: value}) for p in predicates)
        ]
        return true[:later] if bound else true

    return propose
