"""JSON in a completion: the object, wherever it stands, and the keys of one that is broken.

`extract_json` wants an object that parses; `key_paths` scans, so that a text that was cut off still
has the keys that it came to.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

TOKEN = re.compile(r'"((?:\\.|[^"\\])*)(?:"|\Z)|[{}\[\]:]', re.DOTALL)
Path = tuple[str, ...]
JSON_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "number": (int, float),
    "integer": (int,),
    "boolean": (bool,),
    "array": (list,),
    "object": (dict,),
    "null": (type(None),),
}


def has_json_type(value: Any, kind: str) -> bool:
    """Whether a value that JSON gave is of a JSON type; true and false are no numbers there."""
    return isinstance(value, JSON_TYPES[kind]) and isinstance(value, bool) == (kind == "boolean")


def extract_json(text: str) -> tuple[dict[str, Any] | None, bool]:
    """The first JSON object in a text, or None; and whether nothing else but white space is there.
    NaN and Infinity, which Python reads and JSON does not have, make no object."""
    decoder = json.JSONDecoder(parse_constant=_refuse)
    for match in re.finditer(r"\{", text):
        try:
            value, end = decoder.raw_decode(text, match.start())
        except (ValueError, RecursionError):
            continue
        return value, not (text[: match.start()] + text[end:]).strip()
    return None, False


def key_paths(text: str) -> list[Path]:
    """The keys of the first object in a text, each below those that it stands in, once for each
    time that it is written. Broken and unfinished objects are read as far as they go."""
    start = text.find("{")
    if start < 0:
        return []
    paths: list[Path] = []
    above: list[str] = []  # the key that each open bracket is the value of
    key = last = ""
    for token in TOKEN.finditer(text, start):
        sign = token[0]
        if sign[0] == '"':
            last = token[1]
        elif sign in "{[":
            above.append(key)
            key = ""
        elif sign in "}]":
            if not above:
                break
            key = above.pop()
            if not above:
                break  # what stands behind the object is not of it
        elif above:
            key = last
            paths.append((*(name for name in above if name), key))
    return paths


def nested_paths(schema: Mapping[str, Any]) -> list[Path]:
    """The paths of all keys of a schema, those that hold others included."""
    paths: list[Path] = []
    for key, kind in schema.items():
        paths.append((key,))
        if isinstance(kind, Mapping):
            paths += [(key, *path) for path in nested_paths(kind)]
    return paths


def fits(value: Any, schema: Mapping[str, Any]) -> bool:
    """Whether an object has every key of the schema with a value of its type. A mapping asks for
    an object, or a text that holds one."""
    if not isinstance(value, dict):
        return False
    for key, kind in schema.items():
        if key not in value:
            return False
        inner = value[key]
        if isinstance(kind, Mapping):
            inner = extract_json(inner)[0] if isinstance(inner, str) else inner
            if not fits(inner, kind):
                return False
        elif not has_json_type(inner, kind):
            return False
    return True


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")
