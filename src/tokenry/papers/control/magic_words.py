"""Magic words on SmolLM2: how many tokens in front of a text make a wanted token its next one.

States are six openings of sentences. For each, a target of rank 2 to 75 in the state's own
prediction; for four of them also one drawn from the whole vocabulary. Greedy back-generation of up
to three tokens, then a short gradient search (GCG) with four, over a short list of candidates: the
target, its neighbours, and random words. The second part checks the bound on a small attention
layer: nothing that a search finds lies below it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tokenry.learn.fit import fit
from tokenry.measure.audit.reachability import (
    ControlPrompt,
    attention_unreachability_bound,
    backoff_prompt_search,
)
from tokenry.measure.audit.report import word_tokens
from tokenry.model.hub import load
from tokenry.papers.base import Measurement, Outcome, Paper

STATES = (
    "The weather was",
    "My brother wanted to",
    "She opened the",
    "They said that",
    "At night the",
    "A good friend is",
)
NEAR, RANDOM, GREEDY = 75, 4, 3
LIKE_TARGET, WORDS = 16, 40  # candidates: tokens nearest to the target, and random words
GCG: dict[str, Any] = {"topk": 32, "batch": 24, "iters": 3}
HEADS, RESTARTS, UPDATES = 8, 100, 100


@dataclass(frozen=True)
class Search:
    """One target and what the back-off search found for it."""

    near: bool
    rank: int
    found: ControlPrompt

    def within(self, k: int) -> bool:
        return self.found.reached and self.found.length <= k


def reproduce(seed: int) -> Outcome:
    """Searches on SmolLM2 and the bound on random heads."""
    searches = search_targets(seed)
    lengths = [0, *range(1, GREEDY + 1), GREEDY + 1]
    shares = {
        name: [share(searches, near, k) for k in lengths]
        for name, near in (("rank 2 to 75", True), ("any token", False))
    }
    ratios = [bound_ratio(seed * 100 + head) for head in range(HEADS)]
    measured = [
        Measurement(f"reached with at most {k} tokens, {name}", value, "share", seed)
        for name, values in shares.items()
        for k, value in zip(lengths, values, strict=True)
    ]
    measured += [
        Measurement("least distance to an output below the bound", min(ratios), "relative", seed)
    ]
    near, anywhere = shares.values()
    rises = near[-1] > near[1] > 0
    easier = near[-1] > anywhere[-1]
    sound = min(ratios) > 1e-3
    return Outcome(
        held=rises and easier and sound,
        needs="some targets of rank 2 to 75 are reached with one control token, and more with up "
        "to four; more of them than of targets drawn from the whole vocabulary; and "
        "on every attention head the output whose bound is above k stays out of reach of k tokens",
        measurements=measured,
        reason=f"{len(STATES)} likely and {RANDOM} random targets, "
        f"{LIKE_TARGET + WORDS} candidate tokens (the target, the nearest to it, random words) "
        f"instead of all 49,152, and {GCG['iters']} rounds of gradient search instead of 34: "
        "the shares are lower bounds",
        figure=lambda figure: draw(figure, lengths, shares, ratios),
    )


def share(searches: list[Search], near: bool, k: int) -> float:
    chosen = [search for search in searches if search.near == near]
    return sum(search.within(k) for search in chosen) / len(chosen)


def search_targets(seed: int) -> list[Search]:
    """A likely target for each state, and a random one for the first of them."""
    model, tokenizer = load("smollm2")
    draw = torch.Generator().manual_seed(seed)
    words = word_tokens(model, tokenizer)
    sampled = words[torch.randperm(len(words), generator=draw)[:WORDS]].tolist()
    found = []
    for place, state in enumerate(STATES):
        ids = tokenizer(state)["input_ids"]
        with torch.no_grad():
            order = model(torch.tensor([ids])).logits[0, -1].argsort(descending=True)
        ranks = [int(torch.randint(1, NEAR, (), generator=draw))]  # from 0: the second is 1
        if place < RANDOM:
            ranks.append(int(torch.randint(1, len(order), (), generator=draw)))
        for number, rank in enumerate(ranks):
            near = neighbours(model, int(order[rank]))
            candidates = dict.fromkeys([*near, *sampled])
            result = backoff_prompt_search(
                model, ids, [int(order[rank])], greedy=GREEDY, lengths=(GREEDY + 1,),
                candidates=candidates, generator=draw, **GCG,
            )  # fmt: skip
            found.append(Search(number == 0, rank + 1, result))
    return found


def neighbours(model: Any, token: int) -> list[int]:
    """The token and those whose embeddings have the largest cosine with its own."""
    weight = model.get_input_embeddings().weight.detach()
    cosine = torch.nn.functional.cosine_similarity(weight, weight[token], dim=-1)
    return cosine.topk(LIKE_TARGET).indices.tolist()


def bound_ratio(seed: int) -> float:
    """How near control below the bound comes to a wanted output, relative to the start.

    The distance is that to any multiple of the wanted output; the largest over positions, the
    smallest over restarts.
    """
    draw = torch.Generator().manual_seed(seed)
    x0, wq, wk, wv, wanted = (
        torch.randn(rows, 4, generator=draw, dtype=torch.float64) * size
        for rows, size in ((3, 1.0), (4, 0.3), (4, 0.3), (4, 1.0), (3, 1.0))
    )
    norm = 0.4
    least = float(attention_unreachability_bound(x0, wq, wk, wv, wanted, norm).max())
    k = max(1, math.ceil(least) - 1)
    if least <= 1:
        return math.inf  # one token is not excluded: nothing to be checked
    control = torch.randn(RESTARTS, k, 4, generator=draw, dtype=torch.float64).requires_grad_()
    fit(
        lambda step, _: distance(control, x0, wq, wk, wv, wanted, norm).sum(),
        [control],
        steps=UPDATES,
        learning_rate=0.05,
        optimizer=torch.optim.Adam,
        clip=None,
    )
    with torch.no_grad():
        free = distance(control[:1] * 0, x0, wq, wk, wv, wanted, norm)
        reached = distance(control, x0, wq, wk, wv, wanted, norm)
    return float(reached.min() / free[0])


def distance(
    control: Tensor, x0: Tensor, wq: Tensor, wk: Tensor, wv: Tensor, wanted: Tensor, norm: float
) -> Tensor:
    """[R]: how far attention's outputs are from the directions wanted, at the worst position."""
    size = control.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    rows = control * (norm / size).clamp(max=1.0)
    keys = torch.cat([rows, x0.expand(len(rows), -1, -1)], 1)
    scores = (x0 @ wq) @ (keys @ wk).mT / math.sqrt(wk.shape[1])
    output = scores.softmax(-1) @ (keys @ wv)  # [R, m, d]
    along = (output * wanted).sum(-1, keepdim=True) / wanted.square().sum(-1, keepdim=True)
    return (output - along * wanted).norm(dim=-1).amax(-1)


def draw(
    figure: Any, lengths: list[int], shares: dict[str, list[float]], ratios: list[float]
) -> None:
    """Shares reached by length, and the distances below the bound."""
    left, right = figure.subplots(1, 2)
    for name, values in shares.items():
        left.plot(lengths, values, marker="o", label=f"target: {name}")
    left.set(xlabel="control tokens, at most", ylabel="share reached", ylim=(-0.02, 1.02))
    left.set_xticks(lengths)
    left.legend()
    right.bar(range(len(ratios)), [min(ratio, 1.0) for ratio in ratios], color="tab:grey")
    right.set(xlabel="attention head", ylabel="distance left, fewer tokens than the bound")


PAPER = Paper(
    number=53,
    key="magic-words",
    title="What's the Magic Word? A Control Theory of LLM Prompting",
    arxiv="2310.04444",
    role="analysis",
    family="control",
    claim="A few tokens in front of a text suffice to make most plausible tokens, and some "
    "implausible ones, the likeliest next token; attention bounds how few cannot.",
    reproduce=reproduce,
    threads=1,
)
