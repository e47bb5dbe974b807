"""PhraseDictionary: the phrases of a text that a dictionary has, with their translations.

    dictionary = PhraseDictionary({"bank": ["Bank", "Ufer"], "river bank": ["Flussufer"]})
    dictionary("Near the river bank.")    # [PhraseMatch(start=9, end=19, phrase="river bank", ...)]

Reading from the left, the longest phrase that begins at a place and ends at the boundary of a word
is taken, and reading goes on behind it. Case does not count, and a run of white space is as good as
any other. What counts as a boundary is said in `tokenry.text.word_boundaries`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenry.core.errors import InputError
from tokenry.text.word_boundaries import boundaries, folded


@dataclass(frozen=True)
class PhraseMatch:
    """A phrase in a text: characters [start, end), as the dictionary writes it, and its candidate
    translations in the dictionary's order."""

    start: int
    end: int
    phrase: str
    candidates: tuple[str, ...]


class PhraseDictionary:
    """Phrases with one or more candidates each; phrases that differ in case alone are one.

    entries: phrase -> candidates, or one candidate. Raises InputError for empty ones.
    """

    def __init__(self, entries: Mapping[str, str | Sequence[str]]):
        self.entries: dict[str, tuple[str, ...]] = {}
        for phrase, candidates in entries.items():
            several = [candidates] if isinstance(candidates, str) else candidates
            self._add(phrase, several, f"phrase {phrase!r}")
        self._measure()

    @classmethod
    def read(cls, path: str | Path) -> PhraseDictionary:
        """From a file: JSON ({"phrase": ["candidate", ...]}) if its name ends in .json, else lines
        of a phrase and its candidates, separated by tabs. Lines of one phrase add up; empty lines
        and those that begin with "#" are skipped.

        Raises InputError that names the file and the line.
        """
        path = Path(path)
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{path} cannot be read as a text in UTF-8: {error}") from error
        if path.suffix == ".json":
            return cls(_json_entries(text, path))
        made = cls({})
        for number, line in enumerate(text.splitlines(), start=1):
            if not line.strip() or line.startswith("#"):
                continue
            phrase, *candidates = line.split("\t")
            if not candidates:
                raise InputError(
                    f"{path}, line {number}: {line!r} has no tab: write a phrase and its "
                    "candidates, separated by tabs"
                )
            made._add(phrase, candidates, f"{path}, line {number}")
        made._measure()
        return made

    def __len__(self) -> int:
        return len(self.entries)

    def __call__(self, text: str) -> list[PhraseMatch]:
        """The phrases of a text, from left to right; none overlap."""
        # A run of white space is one space; `kept` are the places of the other characters in it.
        kept = [i for i, c in enumerate(text) if not (c.isspace() and text[i - 1 : i].isspace())]
        shown = "".join(" " if text[i].isspace() else text[i] for i in kept)
        spelled, edges = folded(shown), boundaries(shown)
        found, place = [], 0
        while place < len(kept):
            size = self._longest(spelled, edges, place) if edges[place] else 0
            if size:
                phrase = spelled[place : place + size]
                end = kept[place + size - 1] + 1
                found.append(PhraseMatch(kept[place], end, phrase, self.entries[phrase]))
            place += size or 1
        return found

    def _longest(self, spelled: str, edges: list[bool], place: int) -> int:
        """How many characters the longest phrase at a place has; 0 if there is none."""
        for size in self._sizes.get(spelled[place], ()):
            end = place + size
            if end < len(edges) and edges[end] and spelled[place:end] in self.entries:
                return size
        return 0

    def _add(self, phrase: str, candidates: Iterable[str], where: str) -> None:
        if not isinstance(phrase, str) or not all(isinstance(one, str) for one in candidates):
            raise InputError(f"{where}: a phrase and its candidates are texts")
        spelled = folded(" ".join(phrase.split()))
        cleaned = [" ".join(one.split()) for one in candidates]
        if not spelled or not cleaned or "" in cleaned:
            raise InputError(f"{where}: neither a phrase nor a candidate may be empty")
        known = self.entries.get(spelled, ())
        self.entries[spelled] = tuple(dict.fromkeys((*known, *cleaned)))

    def _measure(self) -> None:
        """Lengths of the phrases that begin with each character, longest first."""
        sizes: dict[str, set[int]] = {}
        for phrase in self.entries:
            sizes.setdefault(phrase[0], set()).add(len(phrase))
        self._sizes = {first: sorted(found, reverse=True) for first, found in sizes.items()}


def _json_entries(text: str, path: Path) -> dict[str, list[str]]:
    try:
        loaded = json.loads(text)
    except ValueError as error:
        raise InputError(f"{path} is not JSON: {error}") from error
    if not isinstance(loaded, dict):
        raise InputError(f'{path} must be an object such as {{"phrase": ["candidate"]}}')
    for phrase, candidates in loaded.items():
        if not isinstance(candidates, str | list):
            raise InputError(
                f"{path}, phrase {phrase!r}: candidates are a text or a list of texts, not "
                f"{candidates!r}"
            )
    return loaded
