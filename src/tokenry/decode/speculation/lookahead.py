"""Lookahead: draft what followed the last tokens before, in the prompt and in earlier texts.

Two tries of counted branches (see `trie_cache`): one of the prompt, which goes with its text, and
one of all generated texts, which stays. The query is the text's last two tokens. Behind it, in both
tries, hang its continuations; a node that was seen f_in times in the prompt and f_out times in
generated texts ranks by

    f = (1 - w) f_in + w f_out,        w = 1e-4,

so that the prompt decides and generated texts break ties. Drafted are the N nodes of largest f, but
up to N/2 by f_out alone; of equal ones the deeper ("hier": a tree whose branches share prefixes).
"one" drafts the chain that follows the largest f. If that gives fewer than `branch_length` nodes,
the query's last token is asked alone.

Source: Lookahead: An Inference Acceleration Framework for LLMs with Lossless Generation Accuracy
(arXiv 2312.12728). Ours: generated tokens are in the trie at once and not only when their branches
are full; the prompt's trie is dropped with its text, where the paper sets its counts to 0; the
nodes are found best first, without visiting the rest of the trie; texts are not cut at an
end-of-text token, which chat prompts have inside. Without a number of nodes the tree grows where it
pays on this machine (see `tree_expansion`), a guess being as likely as its share of f, times how
much a match of that many tokens is trusted (as in `context`).
"""

from __future__ import annotations

import heapq
from bisect import bisect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from torch import Tensor

from tokenry.core.checks import one_of, within
from tokenry.core.errors import VocabularyError
from tokenry.decode.speculation.context import TRUST
from tokenry.decode.speculation.latency import latency_curve
from tokenry.decode.speculation.speculate import drafter
from tokenry.decode.speculation.tree import TokenTree
from tokenry.decode.speculation.tree_expansion import Calibration, Guess, expand_tree, preorder
from tokenry.decode.speculation.trie_cache import Node, TrieCache
from tokenry.decode.speculation.verify import Accepted

SHARES = (0.3, 0.6, 0.9)  # within which guesses are calibrated together
BREADTH = 16  # guesses below one node of a tree that is fitted to the machine


@dataclass
class BranchMemory:
    """What a drafter has learned: branches of generated texts, and how far shares hold."""

    outputs: TrieCache | None = None
    calibration: Calibration = field(default_factory=Calibration)


@drafter("lookahead", paper=78)
@dataclass(frozen=True)
class Lookahead:
    """Drafts from a trie of the prompt and of earlier outputs; needs no second model.

    Args:
        branch_length: how deep a draft may be.
        nodes: how many to draft (the paper's is 64); None takes as many as pay on this machine.
        mode: "hier" drafts a tree, "one" a chain.
        query_length: tokens that have to match at most.
        output_weight: w.
        memory: what it has learned so far; give `BranchMemory(TrieCache.load(path))` to start from
            a saved trie, `BranchMemory()` to start cold.
    """

    branch_length: int = 12
    nodes: int | None = None
    mode: Literal["hier", "one"] = "hier"
    query_length: int = 2
    output_weight: float = 1e-4
    memory: BranchMemory = field(default_factory=BranchMemory, repr=False, compare=False)
    reads_prompt = False

    def __post_init__(self) -> None:
        within(self, "[1, inf)", "branch_length", "query_length", integer=True)
        within(self, "[0, inf)", "nodes", integer=True, optional=True)
        within(self, "[0, 1]", "output_weight")
        one_of("Lookahead.mode", self.mode, ("hier", "one"))

    def begin(self, model: Any, prompt: Sequence[int]) -> LookaheadDraft:
        size = model.config.get_text_config().vocab_size
        memory, length = self.memory, self.branch_length + self.query_length - 1
        if memory.outputs is None:
            memory.outputs = TrieCache(length)
        if memory.outputs.vocab_size not in (None, size):
            raise VocabularyError(
                f"the drafter's trie is of {memory.outputs.vocab_size} tokens, the model has "
                f"{size}: give each model a drafter of its own"
            )
        memory.outputs.vocab_size = size
        own = TrieCache(length, None, None)
        own.put(prompt)
        return LookaheadDraft(self, own, prompt, latency_curve(model) if self.nodes is None else {})


class LookaheadDraft:
    """One text: the prompt's trie, and the stream of what is generated into the shared one."""

    def __init__(
        self,
        drafter: Lookahead,
        prompt_trie: TrieCache,
        prompt: Sequence[int],
        latency: Mapping[int, float],
    ):
        assert drafter.memory.outputs is not None
        self.drafter, self.latency = drafter, latency
        self.tries = prompt_trie, drafter.memory.outputs
        self.stream = drafter.memory.outputs.stream()
        self.text = list(prompt)
        self.written = 0  # generated tokens

    def draft(self, last_token: int, budget: int) -> TokenTree:
        if not self.written:  # the first one comes with the prompt's pass
            self._write([last_token])
        how = self.drafter
        query = self.text[-how.query_length :]
        depth = min(budget, how.branch_length)
        if how.nodes is not None:
            return retrieve(*self.tries, query, how.nodes, depth, how.mode, how.output_weight)
        calibration = how.memory.calibration
        return expand_tree(last_token, self, calibration, depth, latency=self.latency)

    def update(self, tree: TokenTree, logits: Tensor, accepted: Accepted) -> None:
        self._write(accepted.tokens)
        if tree.notes:
            self.drafter.memory.calibration.learn(tree, accepted)

    def _write(self, tokens: Sequence[int]) -> None:
        self.stream.extend(tokens)
        self.text += tokens
        self.written += len(tokens)

    def root(self) -> tuple[int, TrieCursor]:
        """How long the longest match of the text's end is that was followed by anything, and where
        it leads."""
        query = self.text[-self.drafter.query_length :]
        return next(iter(matches(*self.tries, query)), (0, TrieCursor(None, None)))

    def guesses(self, cursor: tuple[int, TrieCursor]) -> list[Guess]:
        length, above = cursor
        weight, take = self.drafter.output_weight, BREADTH if self.drafter.mode == "hier" else 1
        scored = [(mixed(child, weight), token, child) for token, child in above.followers()]
        total = sum(score for score, _, _ in scored)
        if not total > 0:
            return []
        guesses = []
        for score, token, child in heapq.nlargest(take, scored, key=lambda entry: entry[0]):
            share = score / total
            level = min(length, len(TRUST) - 1)
            kind = ("trie", child.prompt is not None, min(level, 4), bisect(SHARES, share))
            guesses.append(Guess(token, TRUST[level] * share, kind, cursor))
        return guesses

    def after(self, guess: Guess) -> tuple[int, TrieCursor]:
        length, above = guess.cursor
        return length + 1, above.behind(guess.token)


# ---- retrieval


class TrieCursor(NamedTuple):
    """One continuation in both tries."""

    prompt: Node | None
    output: Node | None

    def followers(self) -> Iterator[tuple[int, TrieCursor]]:
        """The tokens that came next, the prompt's first, and where they lead."""
        mine = self.prompt.children if self.prompt else {}
        theirs = self.output.children if self.output else {}
        for token, node in mine.items():
            yield token, TrieCursor(node, theirs.get(token))
        for token, node in theirs.items():
            if token not in mine:
                yield token, TrieCursor(None, node)

    def behind(self, token: int) -> TrieCursor:
        """Where one of them leads."""
        return TrieCursor(*(above.children.get(token) if above else None for above in self))


def retrieve(
    prompt: TrieCache,
    outputs: TrieCache,
    query: Sequence[int],
    nodes: int = 64,
    depth: int = 12,
    mode: Literal["hier", "one"] = "hier",
    output_weight: float = 1e-4,
) -> TokenTree:
    """At most `nodes` continuations of the tokens `query`, at most `depth` deep, as a draft on top
    of its last token."""
    tree = TokenTree((query[-1],), (-1,))
    for _, cursor in matches(prompt, outputs, query):
        if mode == "one":
            tree = chain(query[-1], cursor, min(nodes, depth), output_weight)
        else:
            tree = branches(query[-1], cursor, nodes, depth, output_weight)
        if len(tree) > min(nodes, depth):
            break
    return tree


def matches(
    prompt: TrieCache, outputs: TrieCache, query: Sequence[int]
) -> Iterator[tuple[int, TrieCursor]]:
    """Where the query leads, then its shorter ends, as far as anything follows there; and how many
    tokens they have."""
    for start in range(len(query)):
        cursor = TrieCursor(prompt.find(query[start:]), outputs.find(query[start:]))
        if next(cursor.followers(), None):
            yield len(query) - start, cursor


def mixed(cursor: TrieCursor, output_weight: float) -> float:
    inside = cursor.prompt.count if cursor.prompt else 0.0
    outside = cursor.output.count if cursor.output else 0.0
    return (1 - output_weight) * inside + output_weight * outside


def chain(root: int, cursor: TrieCursor, length: int, output_weight: float) -> TokenTree:
    """Always on with the largest f."""
    tokens = [root]
    while len(tokens) <= length:
        best = max(cursor.followers(), key=lambda pair: mixed(pair[1], output_weight), default=None)
        if best is None:
            break
        tokens.append(best[0])
        cursor = best[1]
    return TokenTree.chain(tokens)


def branches(
    root: int, cursor: TrieCursor, nodes: int, depth: int, output_weight: float
) -> TokenTree:
    """The `nodes` continuations of largest f, half of them at most by f_out alone. Counts never
    grow along a branch, so a heap finds them."""
    tokens, parents, scores = [root], [-1], [0.0]
    known: dict[tuple[int, int], int] = {}

    def take(limit: int, weigh: Callable[[TrieCursor], float]) -> None:
        # (-f, of equal ones the latest, parent, token, its cursor, its depth)
        heap: list[tuple[float, int, int, int, TrieCursor, int]] = []
        entries = 0

        def offer(parent: int, above: TrieCursor, level: int) -> None:
            nonlocal entries
            if level > depth:
                return
            scored = [(weigh(child), token, child) for token, child in above.followers()]
            for score, token, child in reversed(
                heapq.nlargest(limit, scored, key=lambda entry: entry[0])
            ):
                if score > 0:
                    entries += 1
                    heapq.heappush(heap, (-score, -entries, parent, token, child, level))

        offer(0, cursor, 1)
        while heap and len(tokens) <= limit:
            _, _, parent, token, child, level = heapq.heappop(heap)
            if (parent, token) not in known:
                known[parent, token] = len(tokens)
                tokens.append(token)
                parents.append(parent)
                scores.append(mixed(child, output_weight))
            offer(known[parent, token], child, level + 1)

    take(nodes // 2, lambda cursor: cursor.output.count if cursor.output else 0.0)
    take(nodes, lambda cursor: mixed(cursor, output_weight))
    levels = TokenTree(tuple(tokens), tuple(parents)).depths
    order = sorted(range(len(tokens)), key=lambda node: (levels[node], -scores[node], node))
    tree = TokenTree(tuple(tokens), tuple(parents)).select(order)
    return tree.select(preorder(tree))
