"""Context n-grams: draft what followed the end of the text when it stood there before.

With s the longest suffix of the text (prompt and output) that occurs earlier in it, the guesses are
the tokens t that followed s, each with its share of the occurrences, times how much a match of that
length is trusted:

    p(t) = trust(|s|) · (count(s t) + [t came last]) / (Σ_t' count(s t') + 1),

and the next level goes on from the longest substring that ends in s t. One suffix automaton finds
all of it in constant time per token. Prompt lookup is the special case of one chain, the first
occurrence, and a fixed length of s. Trust is calibrated while decoding.

Source: the plain technique is prompt lookup decoding; matching by a suffix automaton follows "SAM
Decoding: Speculative Decoding via Suffix Automaton" (arXiv 2411.10666). The tree of all
continuations and the calibration are ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from tokenry.core.errors import InputError
from tokenry.core.registry import drafter
from tokenry.decode.speculation.growth import Calibration, Guess, grow
from tokenry.decode.speculation.latency import latency_curve
from tokenry.decode.speculation.tree import TokenTree
from tokenry.decode.speculation.verify import Accepted
from tokenry.text.suffix_automaton import Match, SuffixAutomaton

TRUST = (0.0, 0.15, 0.35, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85)  # by the match's length; then the last


@drafter("context")
@dataclass(frozen=True)
class ContextNGrams:
    """Drafts by copying from the text itself; best where output repeats input.

    shortest: matches of fewer tokens are not used. nodes: how many to draft; None takes as many as
    pay on this machine. calibration: how far matches of every length were right so far.
    """

    shortest: int = 1
    nodes: int | None = None
    calibration: Calibration = field(default_factory=Calibration, repr=False, compare=False)
    reads_prompt = False

    def __post_init__(self) -> None:
        if self.shortest < 1 or (self.nodes is not None and self.nodes < 0):
            raise InputError(
                f"shortest must be >= 1 and nodes >= 0, got {self.shortest} and {self.nodes}"
            )

    def begin(self, model: Any, prompt: Sequence[int]) -> ContextDraft:
        latency = latency_curve(model) if self.nodes is None else {}
        return ContextDraft(self, prompt, latency)


class ContextDraft:
    """The text so far, as an automaton."""

    def __init__(self, drafter: ContextNGrams, prompt: Sequence[int], latency: Mapping[int, float]):
        self.drafter, self.latency = drafter, latency
        self.matcher = Matcher(prompt, drafter.shortest)

    def draft(self, last_token: int, room: int) -> TokenTree:
        self.matcher.read(last_token)
        how = self.drafter
        return grow(last_token, self, how.calibration, room, nodes=how.nodes, latency=self.latency)

    def root(self) -> Match:
        return self.matcher.automaton.suffix()

    def guesses(self, place: Match) -> list[Guess]:
        return self.matcher.guesses(place)

    def update(self, tree: TokenTree, logits: Tensor, accepted: Accepted) -> None:
        self.drafter.calibration.learn(tree, accepted)
        self.matcher.automaton.extend(accepted.tokens[:-1])


class Matcher:
    """Guesses from the earlier occurrences of a text's end."""

    def __init__(self, prompt: Sequence[int], shortest: int = 1):
        self.automaton, self.shortest = SuffixAutomaton(prompt), shortest

    def read(self, last_token: int) -> None:
        """The text's last token, which was chosen but not yet among those accepted."""
        self.automaton.extend([last_token])

    def guesses(self, place: Match) -> list[Guess]:
        if place.length < self.shortest:
            return []
        automaton, level = self.automaton, min(place.length, len(TRUST) - 1)
        following = automaton.following(place)
        below = automaton.next[place.state]
        latest = max(following, key=lambda pair: automaton.latest[below[pair[0]]], default=(-1, 0))
        total = sum(count for _, count in following) + 1
        return [
            Guess(
                token,
                TRUST[level] * (count + (token == latest[0])) / total,
                ("context", level),
                automaton.follow(place, token),
            )
            for token, count in following
        ]
