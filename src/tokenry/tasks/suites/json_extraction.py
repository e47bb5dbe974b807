"""JSON extraction: the facts of a text as one JSON object that a schema describes.

    text, schema  ->  {"name": "Ada", "age": 31, ...}

    valid    the answer is JSON, nothing before or after it but white space, no key twice
    schema   valid, with exactly the keys of the schema and values of their types
    fields   |{keys with the right value}| / |keys of the schema or of the answer|
    exact    every value is right and no key is too much; the primary score

A value is right if it is equal and of the same JSON type: true is not 1, 31.0 is not 31, "31" is
not 31, and lists have their order. A fence around the object makes it no JSON.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, ClassVar

from tokenry.core.checks import one_of, within
from tokenry.core.errors import InputError
from tokenry.tasks.distinct import distinct_items
from tokenry.tasks.task import Answer, Generate, Item, Task, task
from tokenry.tasks.worlds.people import FIELDS, NAMES, STRING, fits, schema_of


def same(value: Any, right: Any) -> bool:
    """Equal, and of the same JSON types throughout."""
    if type(value) is not type(right):
        return False
    if isinstance(value, list):
        return len(value) == len(right) and all(map(same, value, right))
    return value == right


def loaded(text: str) -> Any:
    """The JSON value of a text; None where it is none, has a key twice, or a NaN or infinity."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) < len(pairs):
            raise ValueError("a key stands twice")
        return dict(pairs)

    def refused(name: str) -> Any:
        raise ValueError(f"{name} is no JSON")

    try:
        return json.loads(text, object_pairs_hook=unique, parse_constant=refused)
    except (ValueError, RecursionError):
        return None


def _examples() -> list[JsonExtraction]:
    return [JsonExtraction(), JsonExtraction(("age",), others=2)]


@task("json_extraction", examples=_examples)
@dataclass(frozen=True)
class JsonExtraction(Task):
    """Draws texts about a person, and asks for what they say of that person.

    Args:
        fields: of the answer, beside the name, out of `FIELDS`; default all six.
        others: people whom the same text says other things about, in [0, 15]; default 1.

    Raises:
        InputError: an unknown field, one that is given twice, none, or `others` out of range.
    """

    fields: Sequence[str] = tuple(FIELDS)
    others: int = 1

    primary: ClassVar[str] = "exact"

    def __post_init__(self) -> None:
        for field in self.fields:
            one_of("a field", field, FIELDS)
        if not self.fields or len(set(self.fields)) < len(self.fields):
            raise InputError(f"fields {list(self.fields)}: give one or more, none of them twice")
        within(self, "[0, 15]", "others", integer=True)

    def items(self, count: int, seed: int) -> list[Item]:
        """Different texts; `about` has the facts."""
        return distinct_items(self._item, count, seed)

    def score(self, item: Item, answer: Answer) -> dict[str, float]:
        """exact, fields, schema and valid, as the module says."""
        value, facts = loaded(str(answer)), item.about["facts"]
        given = value if isinstance(value, dict) else {}
        right = sum(key in given and same(given[key], facts[key]) for key in facts)
        kinds = {**{field: FIELDS[field].kind for field in self.fields}, "name": STRING}
        fitting = given.keys() == kinds.keys() and all(
            fits(given[key], kinds[key]) for key in kinds
        )
        return {
            "exact": float(right == len(facts) == len(given)),
            "fields": right / len({*facts, *given}),
            "schema": float(fitting),
            "valid": float(isinstance(value, dict)),
        }

    def _item(self, random: Random) -> Item:
        names = random.sample(NAMES.split(), 1 + self.others)
        facts: dict[str, Any] = {"name": names[0]}
        sentences = []
        for name in names:
            for field in self.fields:
                value = FIELDS[field].draw(random)
                sentences.append(FIELDS[field].say(name, value))
                if name == names[0]:
                    facts[field] = value
        random.shuffle(sentences)
        prompt = (
            f"{' '.join(sentences)}\nWrite what the text says about {names[0]} as JSON with this "
            f"schema, and nothing else: {json.dumps(schema_of(self.fields))}\n"
        )
        limit = 16 + 24 * (1 + len(self.fields))
        return Item(Generate(prompt, limit), json.dumps(facts), {"facts": facts})
