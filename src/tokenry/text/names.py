"""Names in generated text, and which of them exist: package names, and whatever else has a list.

    registry = NameRegistry.of(["numpy", "numba"])
    spans = registry.classify("import numpy, numfast")     # (7, 12, "numpy", True), (14, 21, ...)
    tri_mask(offsets, spans)                               # per token 0 ignore, 1 retain, 2 forget

With `first_divergent` a hallucinated name is only forgotten from where no valid name goes on: in
"numfast" from the "f". What it shares with valid names is not punished.

Source: the verifier and mask of LLM Ghostbusters: Surgical Hallucination Suppression via Adaptive
Unlearning (arXiv 2605.01047).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

from tokenry.core.errors import InputError, UnknownNameError
from tokenry.text.prefix_trie import PrefixTrie
from tokenry.text.spans import Offsets, find_spans, token_labels

IGNORE, RETAIN, FORGET = 0, 1, 2
Forget = Literal["whole", "first_divergent"]

# What stands before a list of package names, in the order of a command, a statement, a sentence.
BEFORE_NAMES = re.compile(
    r"(?:\b(?:pip3?|uv|conda|mamba)\s+(?:pip\s+)?(?:install|add)\s+(?:-\S+\s+)*)"
    r"|(?:^[ \t]*import\s+)|(?:^[ \t]*from\s+(?=\S+\s+import\b))"
    r"|(?:\bpackages?:\s+)",
    re.MULTILINE,
)
NAME = re.compile(r"[A-Za-z_][\w.-]*[\w]|[A-Za-z_]")
BETWEEN_NAMES = re.compile(
    r"(?:\[[\w,-]*\])?(?:[=<>~!]=?=?[\w.*]+)?(?:\s+as\s+\w+)?(?:[ \t]*,[ \t]*|[ \t]+)"
)
NOT_NAMES = frozenset({"and", "or", "import", "as", "from"})


class NameSpan(NamedTuple):
    """A name in a text, characters [start, end), and whether it is in the registry."""

    start: int
    end: int
    name: str
    valid: bool


@dataclass(frozen=True)
class NameRegistry:
    """A frozen list of names that exist.

    names: as they are written; compared without regard to case and to "-", "_", "." as package
    indexes do. ignore: names that are neither right nor wrong (the standard library, aliases).
    """

    names: frozenset[str]
    ignore: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if not self.names:
            raise InputError("a registry without names would call every name hallucinated")

    @classmethod
    def of(cls, names: Iterable[str], ignore: Iterable[str] = ()) -> NameRegistry:
        return cls(frozenset(names), frozenset(ignore))

    def __contains__(self, name: str) -> bool:
        return _same(name) in self._known

    def classify(self, text: str) -> list[NameSpan]:
        """The names in install commands, import statements and "packages:" lists, in order."""
        found = []
        for start, end in name_places(text):
            name = text[start:end]
            if _same(name) not in self._ignored:
                found.append(NameSpan(start, end, name, name in self))
        return found

    def occurrences(self, text: str) -> list[NameSpan]:
        """The names that `classify` finds, wherever else in the text they occur as whole words."""
        names = {span.name for span in self.classify(text)}
        spans = find_spans(text, names, whole_words=True)
        return [NameSpan(start, end, name, name in self) for start, end, name in spans]

    def shared_prefix(self, name: str) -> int:
        """How many characters of a name begin some valid name."""
        return self._trie.first_divergent(_spelled(name))

    @cached_property
    def _known(self) -> frozenset[str]:
        return frozenset(map(_same, self.names))

    @cached_property
    def _ignored(self) -> frozenset[str]:
        return frozenset(map(_same, self.ignore)) - self._known

    @cached_property
    def _trie(self) -> PrefixTrie:
        return PrefixTrie.of(sorted(map(_spelled, self.names)))


def name_places(text: str) -> list[tuple[int, int]]:
    """Where names stand behind an install command, an import or "packages:"; each place once."""
    found: list[tuple[int, int]] = []
    for before in BEFORE_NAMES.finditer(text):
        position = before.end()
        imported = "import" in before[0] or before[0].lstrip().startswith("from")
        while (name := NAME.match(text, position)) and name[0].lower() not in NOT_NAMES:
            # of a dotted module only the package is a name that one installs
            end = position + len(name[0].split(".")[0]) if imported else name.end()
            found.append((position, end))
            gap = BETWEEN_NAMES.match(text, name.end())
            if gap is None or before[0].lstrip().startswith("from"):
                break
            if imported and "," not in gap[0]:
                break
            position = gap.end()
    return sorted(set(found))


def hallucination_rate(texts: Sequence[str], registry: NameRegistry) -> tuple[float, float]:
    """(hallucinated names / names, share of texts with a hallucinated name); 0 without names."""
    spans = [registry.classify(text) for text in texts]
    names = [span for one in spans for span in one]
    wrong = sum(not span.valid for span in names)
    bad = sum(any(not span.valid for span in one) for one in spans)
    return wrong / max(len(names), 1), bad / max(len(texts), 1)


def tri_mask(
    offsets: Offsets,
    spans: Collection[NameSpan],
    *,
    forget: Forget = "whole",
    registry: NameRegistry | None = None,
) -> list[int]:
    """0 ignore, 1 retain, 2 forget for each token, by the characters that it covers.

    A token that straddles a name's border belongs to the name, and to a hallucinated one rather
    than to a valid one. forget: "first_divergent" (needs the registry) forgets a hallucinated name
    from the first character where no valid name continues, and ignores what stands before it; a
    name that only stops too early ("num" of "numpy") is forgotten where it stops: in the token
    behind it, which may be the end of the text, or without one in its own last token.
    """
    if forget not in ("whole", "first_divergent"):
        raise UnknownNameError("forget mode", forget, ("whole", "first_divergent"))
    if forget == "first_divergent" and registry is None:
        raise InputError('forget="first_divergent" compares with valid names: pass the registry')
    labelled, stopping = [], []
    for span in spans:
        if span.valid:
            labelled.append((span.start, span.end, RETAIN))
            continue
        shared = registry.shared_prefix(span.name) if registry and forget != "whole" else 0
        if shared == len(span.name):
            stopping.append(_stop(offsets, span))
        else:
            labelled.append((span.start + shared, span.end, FORGET))
    labels = token_labels(offsets, labelled, IGNORE, rule="max")
    for token in stopping:
        if token is not None:
            labels[token] = FORGET
    return labels


def _stop(offsets: Offsets, span: NameSpan) -> int | None:
    """The token that ends a name: the first that reaches beyond it or stands behind it (an end
    mark covers no character), else the name's last one. None where no token covers the name."""
    own = [n for n, (start, end) in enumerate(offsets) if start < span.end and end > span.start]
    if not own:
        return None
    behind = range(own[-1] + 1, len(offsets))
    return own[-1] if offsets[own[-1]][1] > span.end or not behind else behind[0]


def _same(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _spelled(name: str) -> str:
    """Like `_same`, character for character."""
    return re.sub(r"[-_.]", "-", name).lower()
