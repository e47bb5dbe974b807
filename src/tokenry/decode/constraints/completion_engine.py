"""Completion engines: what completes a name at the caret, as the language server of an editor does.

An engine answers with (source, target) pairs: what is typed of a name, and the whole name. The
*continuations* are the targets without their sources. `JediEngine` is the real one for Python,
`NamesEngine` a fixed set of names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from tokenry.core.errors import ConstraintError


class CompletionEngine(Protocol):
    """What completes a name at the caret, as an editor's language server does."""

    def complete(self, text: str, caret: int) -> list[tuple[str, str]] | None:
        """(source, target) for each completion at `text[:caret]`: what is typed of a name, and the
        whole name. [] if nothing fits; None if the engine cannot tell, which forbids nothing.

        Where nothing fits, nothing may fit a longer name either, as it is not asked again."""
        ...


@dataclass(frozen=True)
class NamesEngine:
    """A completion engine that knows a fixed set of names.

        NamesEngine({"": [*dir(builtins), "math"], "math": dir(math)})

    After a prefix that is not listed, it cannot tell.

    Attributes:
        names: the names after each dotted prefix; "" holds the names that stand alone.
    """

    names: Mapping[str, Iterable[str]]

    def complete(self, text: str, caret: int) -> list[tuple[str, str]] | None:
        typed = DOTTED.search(text[max(0, caret - 500) : caret])
        assert typed is not None  # the empty string matches
        owner, _, source = typed[0].rpartition(".")
        if owner not in self.names or source[:1].isdigit():
            return None
        return [(source, name) for name in self.names[owner] if name.startswith(source)]


def read_answer(answer: list[tuple[str, str]] | None) -> tuple[str, ...] | None:
    """The continuations in an engine's answer, each once."""
    if answer is None:
        return None
    try:
        rests = (target[len(source) :] for source, target in answer if target.startswith(source))
        return tuple(dict.fromkeys(rests))
    except (TypeError, ValueError, AttributeError):
        raise ConstraintError(
            f"a completion engine answers None or a list of (source, target), not {answer!r:.200}"
        ) from None


def common_start(continuations: Sequence[str]) -> str | None:
    """The longest string that all continuations begin with; None if it is empty or there are none.

    So also where one of them is empty: the name may end here.
    """
    shared = 0
    for characters in zip(*continuations, strict=False):
        if len(set(characters)) > 1:
            break
        shared += 1
    return continuations[0][:shared] if shared else None


def triggers(character: str) -> bool:
    """Whether an editor would ask for completions after this character."""
    return character.isalnum() or character in "._$"


def of_name(character: str) -> bool:
    return character.isalnum() or character in "_$"


def last_name(text: str) -> str:
    """The name that a text ends with, maybe empty."""
    match = LAST_NAME.search(text, max(0, len(text) - 500))
    assert match is not None  # the empty string matches
    return match[0]


NAME = re.compile(r"[\w$]+")
LAST_NAME = re.compile(r"[\w$]*\Z")
DOTTED = re.compile(r"[\w$.]*\Z")
