"""Goose: a deep spine copied from the context, with shallow branches from recycled tokens.

Two sources without training, of very different reliability. A chain that continues an earlier
occurrence of the text's last tokens (the spine) is right several times as often as the successors
that the model gave some token the last time (the branches). So the tree is uneven: the spine runs
deep, and at every token of it stand the alternatives for the case that it goes wrong there:

    confidence   c = 1 if all earlier occurrences agree; min(.9, .7 + .2 (l - 8) / 12) for a chain
                 of l >= 8 tokens; .6 l / 8 below
    budget       B = 60 + floor(40 c) nodes; at most floor(B (rho + c (1 - rho))) of them are spine,
                 rho = .15, .3, .5 for a running acceptance of the spine below .2, below .4, above
    branches     half of the rest to the root, half along the spine, 1/i to its i-th token; what is
                 left grows breadth first, down to depth 6: below a branch of probability p at depth
                 d come min(ceil(p left), floor(10 / d)) successors, at least one

A successor's probability is there the one among the k kept, and below .01 it is no branch.

That is `spine_tree`, drafted when `nodes` is given. By default the same two sources meet in the
library's `tree_expansion`: every guess, copied or recycled, has a calibrated rate, and the tree
takes the best of them as long as they pay on this machine. Uneven trees come out by themselves; the
probabilities are the model's own, over the whole vocabulary.

On 15 prompts of the two sets in `benchmarks`, cold, 64 tokens each (SmolLM2-135M), the paper's tree
gives more tokens per pass (1.7 against 1.4 on prompts that nothing was tuned on, 2.0 against 1.8 on
the others), but reads up to 100 of them: by the latency curve of two cores it is the slower one by
a quarter. So expansion is the default. Expansion on probabilities among the kept is no better
(1.37, 1.76 against 1.37, 1.77).

Source: Goose: Anisotropic Speculation Trees for Training-Free Speculative Decoding (arXiv
2604.02047). Ours: expansion in place of fixed budgets, the suffix automaton there, and that the
last committed token's successors are filed under its predecessor too. The extension of a chain
beyond its first 20 tokens is reconstructed.
"""

from __future__ import annotations

import math
from bisect import bisect
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor

from tokenry.core.checks import within
from tokenry.decode.speculation.context import MatchCursor, Matcher
from tokenry.decode.speculation.latency import latency_curve
from tokenry.decode.speculation.recycling import RANGES, AdjacencyMatrix, likely, table_for
from tokenry.decode.speculation.speculate import drafter
from tokenry.decode.speculation.tree import TokenTree
from tokenry.decode.speculation.tree_expansion import Calibration, Guess, expand_tree
from tokenry.decode.speculation.verify import Accepted
from tokenry.text.ngram_index import NGramPositions

Successors = Callable[[int, int], list[tuple[int, float]]]
"""(token before, token) -> likely next tokens and their probabilities, the likeliest first."""

LENGTHS = (5, 4, 3)  # of the n-grams that a chain may continue
CHAIN = 20  # tokens copied at a time
LONGEST = 100  # tokens of an extended chain
LONG = 8  # a chain that is trusted
LEAST = 0.01  # a successor less likely than this is no branch
DEEPEST = 6  # level of a branch
CONFIDENT_NODES = 40  # more of them for a chain that is fully trusted
SPINE_SHARES = (0.15, 0.3, 0.5)  # rho, by the running acceptance of the spine:
SPINE_ACCEPTANCE = (0.2, 0.4)  # below .2, below .4, above
TRUST = (0.0, 0.4, 0.6)  # in what was recycled after a token, and after a pair
BIGRAMS = 1 << 16  # pairs remembered, the oldest forgotten


class PathCursor(NamedTuple):
    """The end of a path: where it stands in the context, and its last two tokens."""

    match: MatchCursor
    before: int
    token: int


@dataclass
class CopyMemory:
    """What stays from text to text: successors of tokens and of pairs, and the calibration."""

    table: AdjacencyMatrix | None = None
    pairs: dict[tuple[int, int], list[tuple[int, float]]] = field(default_factory=dict)
    calibration: Calibration = field(default_factory=Calibration)
    spine: float = 0.5  # running share of the spine's tokens that were accepted

    def successors(self, before: int, token: int) -> tuple[int, list[tuple[int, float]]]:
        """What is known after the pair, else after the token alone; and after how many of them."""
        after_pair = self.pairs.get((before, token))
        if after_pair is not None:
            return 2, after_pair
        assert self.table is not None
        return 1, self.table.row(token)

    def file(self, pair: tuple[int, int], successors: list[tuple[int, float]]) -> None:
        self.pairs.pop(pair, None)  # a pair that is seen again is the newest
        self.pairs[pair] = successors
        if len(self.pairs) > BIGRAMS:
            del self.pairs[next(iter(self.pairs))]


@drafter("goose", paper=180)
@dataclass(frozen=True)
class Goose:
    """Copies from the context and recycles tokens; needs no second model and no training.

    Args:
        k: successors kept per token and per pair of tokens; the paper's is 10.
        nodes: the paper's tree with this budget (its own is 60), instead of one grown to pay on
            this machine.
        width: children of a branch of the paper's tree at depth 1, divided by the depth below; its
            own is 10.
        memory: what it has learned so far, with `nodes` or without; replace it to start cold.
    """

    k: int = 10
    nodes: int | None = None
    width: int = 10
    memory: CopyMemory = field(default_factory=CopyMemory, repr=False, compare=False)
    reads_prompt = False

    def __post_init__(self) -> None:
        within(self, "[1, inf)", "k", integer=True)
        within(self, "[0, inf)", "nodes", integer=True, optional=True)
        within(self, "[1, inf)", "width", integer=True)

    def begin(self, model: Any, prompt: Sequence[int]) -> GooseDraft:
        self.memory.table = table_for(model, self.memory.table, self.k)
        return GooseDraft(self, prompt, latency_curve(model) if self.nodes is None else {})


class GooseDraft:
    """One text: its automaton, and the drafter's memory."""

    def __init__(self, drafter: Goose, prompt: Sequence[int], latency: Mapping[int, float]):
        self.drafter, self.memory, self.latency = drafter, drafter.memory, latency
        self.matcher = Matcher(prompt)
        self.text = list(prompt)
        self.index = None if drafter.nodes is None else NGramIndex(prompt)

    def draft(self, last_token: int, budget: int) -> TokenTree:
        self.text.append(last_token)
        if self.index is None:
            self.matcher.read([last_token])
            calibration = self.memory.calibration
            return expand_tree(last_token, self, calibration, budget, latency=self.latency)
        self.index.extend([last_token])
        chain, agreed = self.index.chain()
        confidence = match_confidence(len(chain), agreed)
        if confidence > 0.6:
            chain = self.index.extended(chain, agreed)
        return self.shape(chain, confidence).limited(budget)

    def shape(self, chain: Sequence[int], confidence: float) -> TokenTree:
        """The paper's tree around a chain."""
        assert self.drafter.nodes is not None
        return spine_tree(
            self.text[-2:], chain, confidence, self.memory.spine, self.drafter.nodes,
            lambda before, token: self.memory.successors(before, token)[1],
            self.drafter.width,
        )  # fmt: skip

    def root(self) -> PathCursor:
        before = self.text[-2] if len(self.text) > 1 else -1
        return PathCursor(self.matcher.cursor, before, self.text[-1])

    def guesses(self, cursor: PathCursor) -> list[Guess]:
        """Copied and recycled guesses together; one that both make is of a kind of its own."""
        copied = self.matcher.rated(cursor.match)
        tier, successors = self.memory.successors(cursor.before, cursor.token)
        recycled = dict(successors)
        guesses = []
        for token in copied.keys() | recycled.keys():
            copy, p = copied.get(token), recycled.get(token, 0.0)
            prob, kind = TRUST[tier] * p, (tier, bisect(RANGES, p))
            if copy is not None:
                prob, kind = 1 - (1 - copy[0]) * (1 - prob), (copy[1], tier if p else 0)
            guesses.append(Guess(token, prob, kind, cursor))
        return guesses

    def after(self, guess: Guess) -> PathCursor:
        cursor = guess.cursor
        return PathCursor(self.matcher.after(cursor.match, guess.token), cursor.token, guess.token)

    def update(self, tree: TokenTree, logits: Tensor, accepted: Accepted) -> None:
        probs, ids = likely(logits, self.drafter.k)
        if self.drafter.nodes is not None:
            probs = probs / probs.sum(-1, keepdim=True)
        assert self.memory.table is not None
        self.memory.table.write(tree.tokens, ids, probs, accepted)
        before = [self.text[-2] if len(self.text) > 1 else -1]
        before += [tree.tokens[parent] for parent in tree.parents[1:]]
        rows = [
            list(zip(*row, strict=True)) for row in zip(ids.tolist(), probs.tolist(), strict=True)
        ]
        for node in (*range(len(tree)), *accepted.path):
            self.memory.file((before[node], tree.tokens[node]), rows[node])
        self.text += accepted.tokens[:-1]
        if self.index is None:
            self.memory.calibration.learn(tree, accepted)
            self.matcher.read(accepted.tokens[:-1])
        else:
            self.index.extend(accepted.tokens[:-1])
            spine = [node for node in range(len(tree)) if tree.notes[node] == "spine"]
            if spine:
                share = sum(node in accepted.path for node in spine) / len(spine)
                self.memory.spine += 0.3 * (share - self.memory.spine)


class NGramIndex(NGramPositions):
    """Where every n-gram of a text stands, to continue an earlier occurrence of its end."""

    def __init__(self, text: Sequence[int], lengths: Sequence[int] = LENGTHS):
        super().__init__(text, lengths)

    def chain(self, ahead: Sequence[int] = (), most: int = CHAIN) -> tuple[list[int], bool]:
        """What followed the first occurrence of the longest n-gram at the end of text and `ahead`;
        and whether there were several occurrences that all went on with the same token."""
        starts = self.after(ahead)
        agreed = len(starts) > 1 and len({self.text[start] for start in starts}) == 1
        return (self.text[starts[0] : starts[0] + most] if starts else []), agreed

    def extended(self, chain: list[int], agreed: bool) -> list[int]:
        """A chain that goes on from its own end; with agreement only as long as there is some."""
        chain = list(chain)
        while len(chain) < LONGEST:
            more, still = self.chain(chain, min(CHAIN, LONGEST - len(chain)))
            if not more or (agreed and not still):
                break
            chain += more
        return chain


def match_confidence(length: int, agreed: bool) -> float:
    """How far a chain of this length is trusted, from 0 to 1."""
    if not length:
        return 0.0
    if agreed:
        return 1.0
    return min(0.9, 0.7 + 0.2 * (length - LONG) / 12) if length >= LONG else 0.6 * length / LONG


def harmonic_split(budget: int, parts: int) -> list[int]:
    """A budget over positions i = 1, 2, ... in proportion to 1/i, rounded down, at least 1 each."""
    total = sum(1 / i for i in range(1, parts + 1))
    return [max(1, int(budget / i / total)) for i in range(1, parts + 1)]


def spine_tree(
    end: Sequence[int],
    chain: Sequence[int],
    confidence: float,
    acceptance: float,
    budget: int,
    successors: Successors,
    width: int = 10,
) -> TokenTree:
    """The paper's tree (see the module's text).

    Notes: "root", "spine", "branch".

    Args:
        end: the text's last two tokens, or its only one.
        acceptance: running share of the spine that was accepted.
        width: children of a branch at depth 1, its share at a depth below.
    """
    before, root = (end[-2] if len(end) > 1 else -1), end[-1]
    # B = 60 + floor(40 c) nodes, of which the spine gets at most floor(B (rho + c (1 - rho)))
    budget += int(CONFIDENT_NODES * confidence)
    ratio = SPINE_SHARES[bisect(SPINE_ACCEPTANCE, acceptance)]
    most = int(budget * (ratio + confidence * (1 - ratio)))
    length = min(len(chain), most, max(budget - 1, 0))
    tokens, parents, notes, depths = [root], [-1], ["root"], [0]
    taken: set[tuple[int, int]] = set()

    def add(parent: int, token: int, note: str) -> int:
        tokens.append(token)
        parents.append(parent)
        notes.append(note)
        depths.append(depths[parent] + 1)
        taken.add((parent, token))
        return len(tokens) - 1

    # the spine: nodes 1 to `length`, one below the other
    for token in chain[:length]:
        add(len(tokens) - 1, token, "spine")
    # half of what is left goes along the spine, the other half to the root
    left = budget - 1 - length
    along = max(1, left // 2) if length and left > 0 else 0
    waiting: deque[tuple[int, float]] = deque()  # branches, and their probabilities

    def branch(node: int, most: int) -> int:
        """Up to `most` successors of a node as branches; how many there were."""
        previous = tokens[parents[node]] if parents[node] >= 0 else before
        added = 0
        for token, p in successors(previous, tokens[node]):
            if added >= most or p < LEAST:
                break
            if (node, token) not in taken:
                waiting.append((add(node, token, "branch"), p))
                added += 1
        return added

    branch(0, left - along)
    # 1/i of the spine's share to its i-th token; what a token does not use is used by later ones
    for node, share in enumerate(harmonic_split(along, length), start=1):
        along -= branch(node, min(share, along))
    # then breadth first: min(ceil(p left), floor(10 / d)) successors of a branch at depth d
    while waiting and len(tokens) < budget:
        node, p = waiting.popleft()
        if depths[node] < DEEPEST:
            left = budget - len(tokens)
            children = max(1, min(math.ceil(left * p), width // depths[node]))
            branch(node, min(children, left))
    return TokenTree(tuple(tokens), tuple(parents), tuple(notes))
