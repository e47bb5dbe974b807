"""ASAp: what masking distorts, and how soon a sampler that learns from its texts has put it right.

Every accepted text is listed, so that distributions are compared exactly, without sampling noise:
the target Q (the model given the constraint), that of masking, and that of ASAp's next text after n
texts, which its trie of prefixes determines. On SmolLM2: five binary digits, 00000 or beginning
with 1, of which the model begins with 0 and then seldom finishes as 00000. On toy models: an odd
sum of at most six tokens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tokenry.decode.constraints.base import Constraint, State
from tokenry.decode.constraints.grammar import Grammar
from tokenry.decode.generate import prompt_ids
from tokenry.decode.samplers.asap import ASAp
from tokenry.decode.samplers.prefix_trie import Node
from tokenry.decode.samplers.request import Request
from tokenry.model.decoding import DecodingState
from tokenry.model.hub import load
from tokenry.papers.base import Measurement, Outcome, Paper
from tokenry.papers.control.awrs import OddSum
from tokenry.tasks.worlds.toy_lm import ToyLM, ToyState, total_variation

PROMPT = "A random binary string of length 5: "
GRAMMAR = "00000|1[01]{4}"
TEXTS, EVERY, TOYS, TOY_LIMIT = 300, 10, 3, 6

Text = tuple[int, ...]
Tree = dict[Text, dict[int, float]]  # log p of the accepted tokens after every accepted prefix


@dataclass(frozen=True)
class Point:
    """ASAp's next text after so many: its distances to the target, in nats and in [0, 1]."""

    texts: int
    kl: float
    distance: float


@dataclass(frozen=True)
class Run:
    """One model. masking: its texts, those left out that the limit cuts off. points: ASAp on the
    way. z: the constraint's probability. bound: ASAp's upper bound on it. estimate: the mean weight
    of its texts."""

    name: str
    seed: int
    masking: Point
    points: list[Point]
    z: float
    bound: float
    estimate: float
    mean_logprob: tuple[float, float, float]  # E[log p(text)] of the target, of masking, of ASAp


def reproduce(seed: int) -> Outcome:
    """SmolLM2 and three toy models; held if ASAp is nearer than masking on every one of them."""
    runs = [on_a_real_model(seed), *(on_a_toy(100 * seed + n) for n in range(TOYS))]
    measured = []
    for run in runs:
        first, last = run.masking, run.points[-1]
        target, masking, asap = run.mean_logprob
        rows = (
            ("KL(target || masking)", first.kl, "nats"),
            (f"KL(target || ASAp after {TEXTS} texts)", last.kl, "nats"),
            ("distance to the target, masking", first.distance, "TV"),
            (f"distance to the target, ASAp after {TEXTS} texts", last.distance, "TV"),
            ("mean log-probability of a text, target", target, "nats"),
            ("mean log-probability of a text, masking", masking, "nats"),
            (f"mean log-probability of a text, ASAp after {TEXTS} texts", asap, "nats"),
            ("probability of the constraint", run.z, ""),
            ("ASAp's upper bound on it", run.bound, ""),
            ("mean weight of ASAp's texts", run.estimate, ""),
        )
        measured += [Measurement(f"{run.name}: {label}", v, u, run.seed) for label, v, u in rows]
    nearer = [
        run.points[-1].kl < run.masking.kl and run.points[-1].distance < run.masking.distance
        for run in runs
    ]
    shares = [run.points[-1].distance / run.masking.distance for run in runs]
    return Outcome(
        held=all(nearer),
        needs=f"on every model, after {TEXTS} texts ASAp's next text is nearer to the target than "
        "masking's in KL(target || sampler) and in total variation",
        measurements=measured,
        reason=f"of masking's distance {min(shares):.2f} to {max(shares):.2f} are left; both "
        "distances are exact, over texts that end within the limit",
        figure=lambda figure: draw(figure, runs),
    )


def on_a_real_model(seed: int) -> Run:
    """Binary strings from SmolLM2, whose logits after all 37 accepted prefixes are read once."""
    loaded = load("smollm2")
    ids = prompt_ids(loaded.tokenizer, PROMPT)
    constraint = Grammar.regex(GRAMMAR, loaded.tokenizer)
    state = DecodingState.start(loaded.model, torch.tensor([ids]))
    logits: dict[Text, Tensor] = {}
    level: list[tuple[Text, State]] = [((), constraint.begin(ids))]
    while level:
        grown = []
        for row, (text, at) in enumerate(level):
            logits[text] = state.logits[row].clone()
            tokens = set(at.mask().nonzero()[:, 0].tolist()) - constraint.eos
            grown += [(row, token, (*text, token), at.advance(token)) for token in sorted(tokens)]
        if grown:
            state.select(torch.tensor([row for row, *_ in grown]))
            state.append(torch.tensor([token for _, token, *_ in grown]))
        level = [(text, at) for _, _, text, at in grown]
    return follow("SmolLM2", Tabled(logits), constraint, 1 + max(map(len, logits)), seed)


def on_a_toy(seed: int) -> Run:
    return follow(f"toy {seed}", ToyLM(vocab_size=4, order=2, seed=seed), OddSum(), TOY_LIMIT, seed)


@dataclass(frozen=True)
class Tabled:
    """A model that is known after some prefixes only."""

    table: Mapping[Text, Tensor]

    def logits(self, text: list[int]) -> Tensor:
        return self.table[tuple(text)]


def follow(name: str, model: Any, constraint: Constraint, limit: int, seed: int) -> Run:
    """Draw texts one after the other, and measure on the way."""
    tree = accepted(model, constraint, limit)
    exact = exact_futures(tree, constraint.eos)
    z = exact.bound
    target = distribution(tree, constraint.eos, exact)
    masked = distribution(tree, constraint.eos, None)
    request = Request(
        ToyState.start(model, torch.zeros(1, 0, dtype=torch.long)),
        constraint,
        max_new_tokens=limit,
        generator=torch.Generator().manual_seed(seed),
    )
    asap = ASAp(rows=1)
    root = asap.memory.root(request)

    def compare(texts: int, sampler: dict[Text, float]) -> Point:
        kl = math.fsum(p * math.log(p / sampler[text]) for text, p in target.items() if p > 0)
        return Point(texts, kl, total_variation(target, sampler))

    points, weights, now = [], [], masked
    for texts in range(0, TEXTS + 1, EVERY):
        now = distribution(tree, constraint.eos, root)
        points.append(compare(texts, now))
        if texts < TEXTS:
            weights.append(float(asap(request, EVERY).log_weights.exp().mean()))
    logprob = {text: math.log(p * z) if p > 0 else -math.inf for text, p in target.items()}

    def mean_logprob(sampler: dict[Text, float]) -> float:
        return math.fsum(p * logprob[text] for text, p in sampler.items() if p > 0)

    means = mean_logprob(target), mean_logprob(masked), mean_logprob(now)
    estimate = math.fsum(weights) / len(weights)
    return Run(name, seed, compare(0, masked), points, z, root.bound, estimate, means)


def accepted(model: Any, constraint: Constraint, limit: int) -> Tree:
    """What may follow every accepted prefix of fewer than `limit` tokens, the end included."""
    tree: Tree = {}
    level: list[tuple[Text, State]] = [((), constraint.initial())]
    while level:
        text, state = level.pop()
        logprobs = model.logits(list(text)).double().log_softmax(-1)
        tokens = state.mask().nonzero()[:, 0].tolist()
        tree[text] = {token: float(logprobs[token]) for token in tokens}
        if len(text) + 1 < limit:
            going = [token for token in tokens if token not in constraint.eos]
            level += [((*text, token), state.advance(token)) for token in going]
    return tree


def exact_futures(tree: Tree, eos: frozenset[int]) -> Node:
    """A trie with c(u) itself in the place of its bound."""

    def fill(text: Text, node: Node) -> float:
        total = 0.0
        for token, logprob in tree.get(text, {}).items():
            child = node.child(token)
            future = 1.0 if token in eos else fill((*text, token), child)
            total += math.exp(logprob) * future
        node.log_bound = math.log(total) if total > 0 else -math.inf
        return total

    root = Node()
    fill((), root)
    return root


def distribution(tree: Tree, eos: frozenset[int], root: Node | None) -> dict[Text, float]:
    """Of the texts that end, when tokens are as likely as p c~ and the last one must be the end.
    Without a trie that is masking, which does not know of the limit."""
    found: dict[Text, float] = {}

    def walk(text: Text, node: Node | None, chance: float) -> None:
        scores = {}
        for token, logprob in tree[text].items():
            ends_or_goes_on = token in eos or (*text, token) in tree
            if root is None or ends_or_goes_on:
                child = node.children.get(token) if node else None
                scores[token] = math.exp(logprob + (child.log_bound if child else 0.0)), child
        total = math.fsum(score for score, _ in scores.values())
        for token, (score, child) in scores.items():
            share = chance * score / total if total > 0 else 0.0
            if token in eos:
                found[text] = share
            elif (*text, token) in tree:
                walk((*text, token), child, share)

    walk((), root, 1.0)
    ended = math.fsum(found.values())
    return {text: p / ended for text, p in found.items()}


def draw(figure: Any, runs: list[Run]) -> None:
    """KL and total variation against the number of texts; masking is dashed."""
    left, right = figure.subplots(1, 2)
    for run in runs:
        texts = [point.texts for point in run.points]
        (line,) = left.plot(texts, [point.kl for point in run.points], label=run.name)
        right.plot(texts, [point.distance for point in run.points], label=run.name)
        left.axhline(run.masking.kl, linestyle="--", color=line.get_color())
        right.axhline(run.masking.distance, linestyle="--", color=line.get_color())
    left.set(xlabel="texts drawn (dashed: masking)", ylabel="KL(target ‖ next text), nats")
    right.set(xlabel="texts drawn (dashed: masking)", ylabel="total variation to the target")
    left.set_yscale("symlog", linthresh=1e-3)
    right.set_ylim(bottom=0)
    left.legend()


PAPER = Paper(
    number=17,
    key="asap",
    title="Grammar-Aligned Decoding",
    arxiv="2405.21047",
    role="sampler",
    family="control",
    claim="Masking by a grammar distorts the model's distribution; a sampler that remembers which "
    "prefixes could not be completed converges to the undistorted one.",
    reproduce=reproduce,
    threads=1,
)
