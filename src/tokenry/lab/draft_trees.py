"""Shapes of draft trees: n-grams as a draft, trees of fixed ranks, and what a tree is worth.

A tree of fixed ranks has at each node the r-th guess of the draft below it (the r-th most probable
token, or the r-th draw) wherever its paths say so, whatever the draft's probabilities are.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from tokenry.decode.speculation.best_first import ChildGuesses, Expand, TreeExpansion, best_first
from tokenry.decode.speculation.draft_source import DraftFunction
from tokenry.decode.speculation.dyspec import DraftMemory, DySpec, DySpecDraft
from tokenry.decode.speculation.goose import Goose, GooseDraft, Successors, spine_tree
from tokenry.decode.speculation.rejection import acceptance, distribution_with_proposals
from tokenry.decode.speculation.replay import replay
from tokenry.decode.speculation.speculate import Drafter
from tokenry.decode.speculation.tree import TokenTree, path_probabilities
from tokenry.decode.speculation.verify import Accepted
from tokenry.lab.drafting import Text
from tokenry.model.decoding import DecodingState
from tokenry.text.ngrams import NGramModel

Paths = Sequence[tuple[int, ...]]
RANKS = 8  # guesses of one position whose acceptance is measured


class NGramDraft:
    """Counts as a draft function, texts [n, T] -> logits [n, V]: the weighted sum of the relative
    frequencies after the last tokens, of every order."""

    def __init__(self, ngrams: NGramModel):
        self.ngrams = ngrams
        self.always = torch.zeros(ngrams.vocab_size)
        self.logits_always = torch.full_like(self.always, -torch.inf)
        self._add(self.always, self.logits_always, ())

    def __call__(self, texts: Tensor) -> Tensor:
        return torch.stack([self.logits(text) for text in texts[:, -self.ngrams.order :].tolist()])

    def logits(self, text: Sequence[int]) -> Tensor:
        mixed, logits = self.always.clone(), self.logits_always.clone()
        for order in range(1, self.ngrams.order):
            self._add(mixed, logits, text[-order:])
        return logits

    def _add(self, mixed: Tensor, logits: Tensor, context: Sequence[int]) -> None:
        """Add the frequencies after `context`, and set the logits that this changes."""
        tokens, counts = self.ngrams.followers(context)
        if len(tokens):
            mixed[tokens] += self.ngrams.weights[len(context)] * counts / counts.sum()
            logits[tokens] = mixed[tokens].log()


# ---- fixed shapes


def complete_tree(breadth: int, nodes: int) -> Paths:
    """The first nodes of the complete tree, level by level."""
    paths: list[tuple[int, ...]] = [()]
    for path in paths:
        if len(paths) > nodes:
            break
        paths += [(*path, rank) for rank in range(breadth)]
    return paths[1 : nodes + 1]


def chains(breadth: int, nodes: int) -> Paths:
    """Chains that part at the root."""
    return [(at % breadth, *(0,) * (at // breadth)) for at in range(nodes)]


def best_tree(rates: Sequence[float], nodes: int) -> Paths:
    """The tree with the most expected tokens if guesses are accepted with these rates, the first
    with the highest."""
    falling = sorted(rates, reverse=True)
    below = ChildGuesses(list(range(len(rates))), falling, falling, falling)
    tree = best_first(0, lambda _, nodes: [below] * len(nodes), nodes)
    paths: list[tuple[int, ...]] = [()]
    for node in range(1, len(tree)):
        paths.append((*paths[tree.parents[node]], tree.tokens[node]))
    return paths[1:]


def balanced_tree(
    end: Sequence[int], chain: Sequence[int], nodes: int, successors: Successors, breadth: int = 3
) -> TokenTree:
    """`breadth` children for every node, level by level; the copied token, where the path so far is
    the chain's beginning, comes first. Arguments as for `goose.spine_tree`."""
    tokens, parents = [end[-1]], [-1]
    waiting = deque([(0, end[-2] if len(end) > 1 else -1, 0)])  # node, token before it, along
    while waiting and len(tokens) < nodes:
        node, before, along = waiting.popleft()
        copied = [chain[along]] if 0 <= along < len(chain) else []
        known = [token for token, _ in successors(before, tokens[node])]
        for rank, token in enumerate(list(dict.fromkeys([*copied, *known]))[:breadth]):
            if len(tokens) == nodes:
                break
            tokens.append(token)
            parents.append(node)
            on_chain = bool(copied) and rank == 0
            waiting.append((len(tokens) - 1, tokens[node], along + 1 if on_chain else -1))
    return TokenTree(tuple(tokens), tuple(parents))


def fixed_trees(drafter: DySpec, rates: Sequence[float]) -> dict[str, FixedTree]:
    """Trees of fixed ranks with the drafter's draft and number of nodes. rates: how often the
    draft's guesses of every rank are accepted, for the best of them."""
    nodes = drafter.nodes or 0
    paths = {
        "chain": chains(1, nodes),
        "four chains": chains(4, nodes),
        "binary tree": complete_tree(2, nodes),
        "quaternary tree": complete_tree(4, nodes),
        "best fixed tree": best_tree(rates, nodes),
    }
    return {
        name: FixedTree(replace(drafter, memory=DraftMemory()), fixed)
        for name, fixed in paths.items()
    }


@dataclass(frozen=True)
class FixedTree:
    """A drafter that puts the guesses of DySpec's draft into a tree of fixed ranks."""

    drafter: DySpec
    paths: Paths
    reads_prompt: bool = False

    def begin(self, model: Any, prompt: Sequence[int]) -> FixedDraft:
        source = self.drafter.begin(model, prompt).source
        draft = FixedDraft(self.drafter, source, prompt, {})
        draft.paths = self.paths
        return draft


class FixedDraft(DySpecDraft):
    """One text's drafts."""

    paths: Paths

    def draft(self, last_token: int, budget: int) -> TokenTree:
        self.pending.append(last_token)
        self.length, self.probs = self.length + 1, {}
        tree = by_ranks(
            last_token, self.expand, [path for path in self.paths if len(path) <= budget]
        )
        return self.planted(tree, list(range(len(tree))))


def by_ranks(root: int, expand: Expand, paths: Paths) -> TreeExpansion:
    """The tree of these rank paths, as far as there are guesses; one call of `expand` a level."""
    tree = TreeExpansion([root])
    node_of: dict[tuple[int, ...], int] = {(): 0}
    for depth in range(1, max(map(len, paths), default=0) + 1):
        level = sorted(path for path in paths if len(path) == depth and path[:-1] in node_of)
        parents = list(dict.fromkeys(path[:-1] for path in level))
        if not parents:
            break
        guesses = expand(tree, [node_of[parent] for parent in parents])
        below = dict(zip(parents, guesses, strict=True))
        for path in level:
            if path[-1] < len(below[path[:-1]].tokens):
                node_of[path] = tree.add(node_of[path[:-1]], path[-1], below[path[:-1]])
    return tree


# ---- Goose's two sources in other shapes


@dataclass(frozen=True)
class ShapedGoose(Goose):
    """Goose with another tree of as many nodes: shape(draft, chain, confidence), the chain being
    what is copied from the context."""

    shape: Callable[[GooseDraft, Sequence[int], float], TokenTree] = GooseDraft.shape

    def begin(self, model: Any, prompt: Sequence[int]) -> GooseDraft:
        draft = super().begin(model, prompt)
        draft.shape = partial(self.shape, draft)  # type: ignore[method-assign]
        return draft


def chain_alone(draft: GooseDraft, chain: Sequence[int], confidence: float) -> TokenTree:
    nodes = draft.drafter.nodes or 1
    return noted(TokenTree.chain([draft.text[-1], *chain[: nodes - 1]]), "spine")


def successors_alone(draft: GooseDraft, chain: Sequence[int], confidence: float) -> TokenTree:
    return GooseDraft.shape(draft, [], 0.0)


def balanced(draft: GooseDraft, chain: Sequence[int], confidence: float) -> TokenTree:
    def successors(before: int, token: int) -> list[tuple[int, float]]:
        return draft.memory.successors(before, token)[1]

    tree = balanced_tree(draft.text[-2:], chain, draft.drafter.nodes or 1, successors)
    return noted(tree, "branch")


def noted(tree: TokenTree, note: str) -> TokenTree:
    return replace(tree, notes=("root", *[note] * (len(tree) - 1)))


@dataclass
class Tally:
    """Of the guesses with each note whose parent was right, how many were right themselves."""

    right: Counter[str] = field(default_factory=Counter)
    tried: Counter[str] = field(default_factory=Counter)

    def __call__(self, tree: TokenTree, accepted: Accepted) -> None:
        for node in range(1, len(tree)):
            if tree.parents[node] in accepted.path:
                self.right[tree.notes[node]] += node in accepted.path
                self.tried[tree.notes[node]] += 1

    def __add__(self, other: Tally) -> Tally:
        return Tally(self.right + other.right, self.tried + other.tried)

    def share(self, note: str) -> float:
        return self.right[note] / max(self.tried[note], 1)


SHAPES = {
    "chain alone": chain_alone,
    "successors alone": successors_alone,
    "balanced tree": balanced,
    "goose": GooseDraft.shape,
}
"""What Goose's two sources can be made into."""


def expected_by_shape(nodes: int, spine: float, branch: float) -> dict[str, float]:
    """Guesses accepted by each shape: the sum over nodes of the probability of their path, where
    every token has one copied successor, right with probability `spine`, and four recycled ones,
    each with `branch`."""
    copied, recycled = range(1, nodes), [(-token, branch) for token in range(1, 5)]
    trees = {
        "chain alone": TokenTree.chain([0, *copied]),
        "successors alone": spine_tree([0], [], 0.0, 0.3, nodes, lambda *_: recycled),
        "balanced tree": balanced_tree([0], copied, nodes, lambda *_: recycled),
        "goose": spine_tree([0], copied, 0.3, 0.3, nodes, lambda *_: recycled),
    }
    expected = {}
    for name, tree in trees.items():
        rates = [spine if token > 0 else branch for token in tree.tokens]
        expected[name] = sum(path_probabilities(tree.parents, rates)[1:])
    return expected


# ---- how often guesses are accepted, and what trees are worth


def greedy_rates(draft: NGramDraft, texts: Sequence[Text]) -> list[float]:
    """How often the draft's guess of every rank is the next token of the texts."""
    hits = []
    for prompt, answer in texts:
        text = [*prompt, *answer]
        for at in range(len(prompt), len(text)):
            hits.append(draft.logits(text[:at]).topk(RANKS).indices == text[at])
    return torch.stack(hits).float().mean(0).tolist()


@torch.inference_mode()
def sampled_rates(
    model: Any, draft: NGramDraft, texts: Sequence[Text], temperature: float, seed: int
) -> list[float]:
    """How probably the draw of every rank is the one that is accepted, in the mean over every third
    position of the texts, which are of one length."""
    generator = torch.Generator().manual_seed(seed)
    rows = [[*prompt, *answer] for prompt, answer in texts]
    logits = model(torch.tensor(rows)).logits.float()
    accepted = []
    for row, text, predicted in zip(rows, texts, logits, strict=True):
        for at in range(len(text[0]), len(row), 3):
            target = (predicted[at - 1] / temperature).softmax(-1).double()
            q = (draft.logits(row[:at]) / temperature).softmax(-1)
            tokens = torch.multinomial(q, RANKS, generator=generator)
            drawn_from = q.repeat(RANKS, 1)
            for rank in range(1, RANKS):
                drawn_from[rank:, tokens[rank - 1]] = 0
            chances, _ = distribution_with_proposals(target, tokens.tolist(), drawn_from)
            accepted.append(chances)
    return torch.tensor(accepted).mean(0).tolist()


@torch.inference_mode()
def expected_tokens(
    model: Any, drafters: Sequence[Drafter], text: Text, every: int, temperature: float
) -> Tensor:
    """Tokens of one step, expected exactly from the rule of verification, at every `every`-th token
    of a text: [steps, drafters]. The model reads the trees of all drafters in one pass."""
    (prompt, answer), expected = text, []
    row = [*prompt, *answer]
    for at in range(len(prompt), len(row), every):
        before, last = row[: at - 1], row[at - 1]
        trees = [one.begin(model, before).draft(last, len(answer)) for one in drafters]
        # side by side on one prefix, each with a root of its own
        starts = accumulate(map(len, trees), initial=0)
        parents = [
            parent + start if parent >= 0 else -1
            for tree, start in zip(trees, starts, strict=False)
            for parent in tree.parents
        ]
        tokens = [token for tree in trees for token in tree.tokens]
        state = DecodingState.start(model, torch.tensor([before]))
        logits = state.tree(torch.tensor(tokens), torch.tensor(parents))
        probs = (logits / temperature).softmax(-1).split([len(tree) for tree in trees])
        expected.append([sum(acceptance(*pair)) for pair in zip(trees, probs, strict=True)])
    return torch.tensor(expected)


def calls_per_tree(model: Any, draft: DraftFunction, text: Text, **options: Any) -> float:
    """How often DySpec asks its draft for one tree, on average over a text."""
    calls = 0

    def counted(texts: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return draft(texts)

    steps = replay(model, DySpec(counted, **options), *text)
    return calls / len(steps)
