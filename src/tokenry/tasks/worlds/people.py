"""People and their facts: sentences, the values they state, and the JSON schema of these.

The values are of all JSON types but null and object. Everything drawn depends on the generator.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

NAMES = "Ada Bela Carol Dmitri Elif Farid Grace Hugo Ines Jonas Kenji Lena Maria Noor Omar Petra"
CITIES = "Accra Bergen Cairo Delhi Essen Fukuoka Geneva Hanoi Izmir Jakarta Kyoto Lima Madrid Nice"
JOBS = "baker carpenter doctor engineer farmer judge librarian miner nurse painter sailor teacher"
LANGUAGES = "Arabic Bengali Czech Dutch English French German Hindi Italian Japanese Korean Polish"
STRING: dict[str, Any] = {"type": "string"}


@dataclass(frozen=True)
class Field:
    """What a text says of a person. kind: JSON schema of the value. draw: a value. say: the
    sentence, from the person's name and the value."""

    kind: Mapping[str, Any]
    draw: Callable[[Random], Any]
    say: Callable[[str, Any], str]


def _word(words: str) -> Callable[[Random], str]:
    return lambda random: random.choice(words.split())


FIELDS = {
    "city": Field(STRING, _word(CITIES), lambda name, value: f"{name} lives in {value}."),
    "job": Field(STRING, _word(JOBS), lambda name, value: f"{name} works as a {value}."),
    "age": Field(
        {"type": "integer"},
        lambda random: random.randint(18, 90),
        lambda name, value: f"{name} is {value} years old.",
    ),
    "height": Field(
        {"type": "number"},
        lambda random: random.choice(range(151, 200, 2)) / 100,  # two decimals, as it is written
        lambda name, value: f"{name} is {value} metres tall.",
    ),
    "member": Field(
        {"type": "boolean"},
        lambda random: random.random() < 0.5,
        lambda name, value: f"{name} is {'a' if value else 'not a'} member of the club.",
    ),
    "languages": Field(
        {"type": "array", "items": STRING},
        lambda random: random.sample(LANGUAGES.split(), random.randint(2, 3)),
        lambda name, value: f"{name} speaks {', '.join(value[:-1])} and {value[-1]}.",
    ),
}


def schema_of(fields: Sequence[str]) -> dict[str, Any]:
    """The JSON schema of an answer: the name and these fields, all required, nothing else."""
    kinds = {"name": STRING} | {field: dict(FIELDS[field].kind) for field in fields}
    return {
        "type": "object",
        "properties": kinds,
        "required": list(kinds),
        "additionalProperties": False,
    }


def fits(value: Any, kind: Mapping[str, Any]) -> bool:
    """Whether a value is of one of the kinds of `FIELDS`. Python counts True as a number."""
    match kind["type"]:
        case "array":
            return isinstance(value, list) and all(fits(one, kind["items"]) for one in value)
        case "number":
            return isinstance(value, int | float) and not isinstance(value, bool)
        case "integer":
            return type(value) is int or (type(value) is float and value.is_integer())
        case "boolean":
            return isinstance(value, bool)
        case _:
            return isinstance(value, str)
