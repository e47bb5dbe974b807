"""Mixture: several drafters guess, and the model reads the best of all their guesses.

Every drafter drafts its own tree for the text. The trees are laid over each other: a path that two
of them guess is one path. A node then counts, as in `tree_expansion`,

    q_n = q_parent(n) · rate(n),      p(n) = 1 - Π_d (1 - p_d(n)) over the drafters d that made n,

rate(n) being p(n) as far as guesses of the same origin came true so far, and the most probable
nodes are read, as many as pay on this machine. Each drafter learns from the whole pass, also from
what the others guessed.

    generate_with_drafter(model, ids, Mixture((Goose(), Lookahead())))
    tokenry generate "def fibonacci(n):" -t 0 --draft goose+lookahead

The text is the one without a draft, whatever the drafters are: a tree is verified by one draw from
the model's own distribution per token. (Trees that a drafter sampled lose their proposals here, and
with them the greater acceptance that these give to sampled texts.)

Source: ours; that guesses of several sources make one tree is Goose's idea (arXiv 2604.02047),
whose two sources share one tree expansion instead.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from tokenry.core.checks import within
from tokenry.core.errors import InputError
from tokenry.decode.speculation.context import ContextNGrams
from tokenry.decode.speculation.latency import latency_curve
from tokenry.decode.speculation.recycling import TokenRecycling
from tokenry.decode.speculation.speculate import Draft, Drafter, ReadingDraft, drafter
from tokenry.decode.speculation.tree import TokenTree, best_size, path_probabilities
from tokenry.decode.speculation.tree_expansion import MOST_NODES, Calibration, Guess, preorder
from tokenry.decode.speculation.verify import Accepted
from tokenry.model.decoding import DecodingState

UNRATED = 0.5  # probability of a guess whose drafter gives none, until it is calibrated
DEPTHS = 8  # such guesses are calibrated by their depth, down to this one


def context_and_recycling() -> tuple[Drafter, ...]:
    return ContextNGrams(), TokenRecycling()


@drafter("mixture")
@dataclass(frozen=True)
class Mixture:
    """Drafts the best guesses of several drafters; at most one of them may read its trees itself,
    as `mtp` and `fspad` do.

    Args:
        drafters: two or more.
        nodes: how many guesses to read; None takes as many as pay on this machine.
        calibration: how far guesses of every origin were right so far.
    """

    drafters: tuple[Drafter, ...] = field(default_factory=context_and_recycling)
    nodes: int | None = None
    calibration: Calibration = field(default_factory=Calibration, repr=False, compare=False)

    def __post_init__(self) -> None:
        if len(self.drafters) < 2 or not all(hasattr(one, "begin") for one in self.drafters):
            raise InputError(f"a mixture needs two or more drafters, got {self.drafters!r}")
        within(self, "[0, inf)", "nodes", integer=True, optional=True)

    @property
    def reads_prompt(self) -> bool:
        return any(one.reads_prompt for one in self.drafters)

    def begin(self, model: Any, prompt: Sequence[int]) -> MixtureDraft:
        latency = latency_curve(model) if self.nodes is None else {}
        drafts = [one.begin(model, prompt) for one in self.drafters]
        readers = [draft for draft in drafts if isinstance(draft, ReadingDraft)]
        if len(readers) > 1:
            names = " and ".join(type(draft).__name__ for draft in readers)
            raise InputError(f"{names} each read the tree themselves: mix only one of them")
        if readers:
            return ReadingMixtureDraft(self, drafts, latency, readers[0])
        return MixtureDraft(self, drafts, latency)


class MixtureDraft:
    """One text: a draft of each drafter."""

    def __init__(self, mixture: Mixture, drafts: Sequence[Draft], latency: Mapping[int, float]):
        self.mixture, self.drafts, self.latency = mixture, drafts, latency
        self.notes: list[Sequence[Any]] = []  # per drafter, its notes on its own last tree

    def draft(self, last_token: int, budget: int) -> TokenTree:
        trees = [draft.draft(last_token, budget).limited(budget) for draft in self.drafts]
        self.notes = [tree.notes for tree in trees]
        tree = overlaid(trees)
        rates = [1.0, *map(self.mixture.calibration.rate, tree.notes[1:])]
        worth = path_probabilities(tree.parents, rates)
        order = sorted(range(1, len(tree)), key=lambda node: (-worth[node], node))
        if self.mixture.nodes is None:
            size = best_size([worth[node] for node in order[:MOST_NODES]], self.latency)
        else:
            size = self.mixture.nodes
        tree = tree.select([0, *sorted(order[:size])])
        return tree.select(preorder(tree))

    def update(self, tree: TokenTree, logits: Tensor, accepted: Accepted) -> None:
        if not tree.notes:  # the prompt, for those that asked to see it
            for drafter, draft in zip(self.mixture.drafters, self.drafts, strict=True):
                if drafter.reads_prompt:
                    draft.update(tree, logits, accepted)
            return
        self.mixture.calibration.learn(tree, accepted)
        for number, draft in enumerate(self.drafts):
            draft.update(replace(tree, notes=self._notes(number, tree)), logits, accepted)

    def _notes(self, number: int, tree: TokenTree) -> tuple[Any, ...]:
        """A drafter's notes on the mixed tree: its own, and that a node is another's."""
        own = self.notes[number]
        if not own:
            return ()
        made = ((note.cursor or {}).get(number) for note in tree.notes)
        return tuple(
            Guess(token, 0.0, "another drafter's", None) if node is None else own[node]
            for token, node in zip(tree.tokens, made, strict=True)
        )


class ReadingMixtureDraft(MixtureDraft):
    """A mixture in which one drafter reads the tree itself, since it needs more than logits."""

    def __init__(
        self,
        mixture: Mixture,
        drafts: Sequence[Draft],
        latency: Mapping[int, float],
        reading: ReadingDraft,
    ):
        super().__init__(mixture, drafts, latency)
        self.reading = reading

    def read(self, state: DecodingState, tree: TokenTree) -> Tensor:
        return self.reading.read(state, tree)


def overlaid(trees: Sequence[TokenTree]) -> TokenTree:
    """All paths of several trees with one root, each once. A node's note is a guess whose cursor
    says which of the trees have it, and as which of their nodes."""
    tokens, parents = [trees[0].tokens[0]], [-1]
    made: list[dict[int, int]] = [dict.fromkeys(range(len(trees)), 0)]
    node_of: dict[tuple[int, int], int] = {}  # (parent, token) -> node
    for number, tree in enumerate(trees):
        index_of = [0]  # of the tree's nodes among all
        for token, parent in zip(tree.tokens[1:], tree.parents[1:], strict=True):
            at = node_of.setdefault((index_of[parent], token), len(tokens))
            if at == len(tokens):
                tokens.append(token)
                parents.append(index_of[parent])
                made.append({})
            made[at].setdefault(number, len(index_of))
            index_of.append(at)
    notes = [Guess(tokens[0], 1.0, None, made[0])]
    for token, makers in zip(tokens[1:], made[1:], strict=True):
        guesses = {number: guessed(trees[number], node) for number, node in makers.items()}
        prob = 1 - math.prod(1 - guess.prob for guess in guesses.values())
        kinds = [("alone", number, guess.kind) for number, guess in guesses.items()]
        kind = kinds[0] if len(kinds) == 1 else ("agreed", *guesses)
        notes.append(Guess(token, prob, kind, makers))
    return TokenTree(tuple(tokens), tuple(parents), tuple(notes))


def guessed(tree: TokenTree, node: int) -> Guess:
    """A drafter's own rating of a node, or one by its depth."""
    note = tree.notes[node] if tree.notes else None
    if isinstance(note, Guess):
        return note
    return Guess(tree.tokens[node], UNRATED, ("depth", min(tree.depths[node], DEPTHS)), None)
