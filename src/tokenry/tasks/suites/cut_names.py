"""Cut names: lines of the standard library's source that end inside a name."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from typing import NamedTuple

from tokenry.tasks.standard_library import source

NAME = re.compile(r"[A-Za-z_]{6,12}")
MODULES = ("bisect", "colorsys", "csv", "fnmatch", "heapq", "json.decoder", "shelve")
MODULES += ("statistics", "string", "textwrap")


class CutName(NamedTuple):
    """A prompt that ends inside a name, and the rest of the name."""

    prompt: str
    rest: str


def cut_names(
    count: int, seed: int, modules: Sequence[str] = MODULES, most: int = 8, context: int = 160
) -> list[CutName]:
    """Names of 6 to 12 letters, cut after at least two of them and before at most `most`; behind
    whole lines of at least `context` characters."""
    choice, cuts = random.Random(seed), []
    for module in choice.choices(modules, k=count):
        text = source(module)
        name = choice.choice([match for match in NAME.finditer(text) if match.start() > context])
        at = choice.randrange(name.start() + 2, name.end() - 1)
        at = max(at, name.end() - most)
        begin = text.rfind("\n", 0, name.start() - context) + 1
        cuts.append(CutName(text[begin:at], text[at : name.end()]))
    return cuts
