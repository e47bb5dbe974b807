"""What a completion engine has said: kept by caret, so that no question is asked twice."""

from __future__ import annotations

from dataclasses import dataclass, field

from tokenry.decode.constraints.completion_engine import of_name
from tokenry.text.prefix_trie import PrefixTrie

Caret = tuple[str, str]  # the text before the caret and after it


@dataclass
class Memo:
    """What a completion engine has said, shared by all samples; and counts of what it was asked.

    Args:
        answers: continuations by caret.
        denied: at each caret, what cannot follow.
        dead: carets after which no token was left.
        calls: questions to the engine.
        remembered: questions that `answers` settled.
        spared: those that a denied prefix did.
        pruned: tokens refused.
        forced: tokens that an active completion settled.
    """

    answers: dict[Caret, tuple[str, ...] | None] = field(default_factory=dict, repr=False)
    denied: dict[Caret, PrefixDenyTrie] = field(default_factory=dict, repr=False)
    dead: set[Caret] = field(default_factory=set, repr=False)
    calls: int = 0
    remembered: int = 0
    spared: int = 0
    pruned: int = 0
    forced: int = 0

    def denies(self, caret: Caret, added: str) -> bool:
        denied = caret in self.denied and self.denied[caret].denies(added)
        self.spared += denied
        return denied

    def deny(self, caret: Caret, added: str) -> None:
        self.denied.setdefault(caret, PrefixDenyTrie()).add(added)

    def bury(self, caret: Caret) -> None:
        """Remember that no token was left at a caret: the last one before it is refused from now
        on. Takes no text away that could have been completed with the tokens that there were."""
        self.dead.add(caret)


class PrefixDenyTrie:
    """Strings that were refused, and with them every string that goes on with their last name.

    "toSt" refuses "toString", and nothing about "toSt.length": a dot asks another question, whose
    answer must not depend on which was asked first.
    """

    def __init__(self) -> None:
        self.refused = PrefixTrie()

    def add(self, string: str) -> None:
        self.refused.insert(string)

    def denies(self, string: str) -> bool:
        # how many characters at the end belong to the name that the string ends with
        name = next((n for n, c in enumerate(reversed(string)) if not of_name(c)), len(string))
        return any(
            self.refused.ended[node]
            for size, node in enumerate(self.refused.path(string), start=1)
            if size >= len(string) - name
        )
