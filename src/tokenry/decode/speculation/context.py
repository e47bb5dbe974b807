"""Context n-grams: draft what followed the end of the text when it stood there before.

With s the longest suffix of the text (prompt and output) that occurs earlier in it, the guesses are
the tokens t that followed s, each with its share of the occurrences, times how much a match of that
length is trusted:

    p(t) = trust(|s|) · (count(s t) + [t came last]) / (Σ_t' count(s t') + 1),

and the next level goes on from the longest substring that ends in s t. One suffix automaton finds
all of it in constant time per token. Prompt lookup is the special case of one chain, the first
occurrence, and a fixed length of s. Trust is calibrated while decoding.

Rewritten text differs from its model in single tokens: a value, a deeper indentation. So when a
match of several tokens ends because another token came than followed it, the drafter also goes on
as if the likeliest follower had come (`Replaced`), for as long as that keeps being right.

Source: the plain technique is prompt lookup decoding; matching by a suffix automaton follows "SAM
Decoding: Speculative Decoding via Suffix Automaton" (arXiv 2411.10666). The tree of all
continuations, the calibration and going on behind a replaced token are ours.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor

from tokenry.core.checks import within
from tokenry.decode.speculation.latency import latency_curve
from tokenry.decode.speculation.speculate import drafter
from tokenry.decode.speculation.tree import TokenTree
from tokenry.decode.speculation.tree_expansion import Calibration, Guess, expand_tree
from tokenry.decode.speculation.verify import Accepted
from tokenry.text.suffix_automaton import Match, SuffixAutomaton

TRUST = (0.0, 0.15, 0.35, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85)  # by the match's length; then the last
BROKEN = 2  # a shorter match that ends does not go on behind the token that ended it
GOES_ON = {2: 0.15, 3: 0.15, 4: 0.25}  # trust in the next token then, by that match's length
WENT_ON = 0.6  # trust once a token behind the replaced one was right


@drafter("context")
@dataclass(frozen=True)
class ContextNGrams:
    """Drafts by copying from the text itself; best where output repeats input.

    Args:
        shortest: matches of fewer tokens are not used.
        nodes: how many to draft; None takes as many as pay on this machine.
        calibration: how far matches of every length were right so far.
    """

    shortest: int = 1
    nodes: int | None = None
    calibration: Calibration = field(default_factory=Calibration, repr=False, compare=False)
    reads_prompt = False

    def __post_init__(self) -> None:
        within(self, "[1, inf)", "shortest", integer=True)
        within(self, "[0, inf)", "nodes", integer=True, optional=True)

    def begin(self, model: Any, prompt: Sequence[int]) -> ContextDraft:
        latency = latency_curve(model) if self.nodes is None else {}
        return ContextDraft(self, prompt, latency)


class ContextDraft:
    """The text so far, as an automaton."""

    def __init__(self, drafter: ContextNGrams, prompt: Sequence[int], latency: Mapping[int, float]):
        self.drafter, self.latency = drafter, latency
        self.matcher = Matcher(prompt, drafter.shortest)

    def draft(self, last_token: int, budget: int) -> TokenTree:
        self.matcher.read([last_token])
        how = self.drafter
        return expand_tree(
            last_token, self, how.calibration, budget, nodes=how.nodes, latency=self.latency
        )

    def root(self) -> MatchCursor:
        return self.matcher.cursor

    def guesses(self, cursor: MatchCursor) -> list[Guess]:
        return [Guess(t, *rated, cursor) for t, rated in self.matcher.rated(cursor).items()]

    def after(self, guess: Guess) -> MatchCursor:
        return self.matcher.after(guess.cursor, guess.token)

    def update(self, tree: TokenTree, logits: Tensor, accepted: Accepted) -> None:
        self.drafter.calibration.learn(tree, accepted)
        self.matcher.read(accepted.tokens[:-1])


class Replaced(NamedTuple):
    """Going on as if another token had not come in place of the expected one.

    Attributes:
        match: where that leads.
        length: of the match that ended there.
        right: tokens since then that were right.
    """

    match: Match
    length: int
    right: int


class MatchCursor(NamedTuple):
    """The end of a path: what it matches in the text, and what it matches but for one token."""

    match: Match
    replaced: Replaced | None


class Matcher:
    """Guesses from the earlier occurrences of a text's end; `cursor` is that end."""

    def __init__(self, prompt: Sequence[int], shortest: int = 1):
        self.automaton, self.shortest = SuffixAutomaton(prompt), shortest
        self.cursor = MatchCursor(self.automaton.suffix(), None)

    def read(self, tokens: Iterable[int]) -> None:
        """The text goes on."""
        for token in tokens:
            replaced = self.after(self.cursor, token).replaced
            self.automaton.extend([token])
            self.cursor = MatchCursor(self.automaton.suffix(), replaced)

    def after(self, cursor: MatchCursor, token: int) -> MatchCursor:
        """Where a path leads that goes on with this token."""
        automaton = self.automaton
        match, replaced = automaton.follow(cursor.match, token), cursor.replaced
        if replaced is not None and token in automaton.next[replaced.match.state]:
            there = automaton.follow(replaced.match, token)
            replaced = Replaced(there, replaced.length, replaced.right + 1)
        else:
            replaced = None
            if match.length <= cursor.match.length >= BROKEN and (
                likely := self.copies(cursor.match)
            ):
                expected = max(likely, key=lambda token: likely[token])
                there = automaton.follow(cursor.match, expected)
                replaced = Replaced(there, cursor.match.length, 0)
        if replaced is not None and replaced.match.state == match.state and match.length > BROKEN:
            replaced = None  # the match says the same, and is trusted by itself
        return MatchCursor(match, replaced)

    def copies(self, match: Match) -> dict[int, float]:
        """Tokens that followed a match, with their shares."""
        following = self.automaton.following(match)
        below = self.automaton.next[match.state]
        latest = max(following, key=lambda pair: self.automaton.latest[below[pair[0]]], default=())
        total = sum(count for _, count in following) + 1
        return {token: (count + (token in latest[:1])) / total for token, count in following}

    def rated(self, cursor: MatchCursor) -> dict[int, tuple[float, Hashable]]:
        """Tokens that may come next, with the probability and the kind of each guess."""
        rated: dict[int, tuple[float, Hashable]] = {}
        if cursor.match.length >= self.shortest:
            level = min(cursor.match.length, len(TRUST) - 1)
            for token, share in self.copies(cursor.match).items():
                rated[token] = TRUST[level] * share, ("context", level)
        if (replaced := cursor.replaced) is not None:
            level = min(replaced.length, max(GOES_ON))
            trust = WENT_ON if replaced.right else GOES_ON[level]
            for token, share in self.copies(replaced.match).items():
                prob, kind = rated.get(token, (0.0, ("replaced", level)))
                kind = (kind, min(replaced.right, 1))
                rated[token] = 1 - (1 - prob) * (1 - trust * share), kind
        return rated
