"""Magic words on SmolLM2: how many tokens in front of a text make a wanted token its next one.

For each opening of a sentence, a target of rank 2 to 75 in its own prediction and one drawn from
the whole vocabulary. Greedy back-generation of up to three tokens, then a short gradient search
(GCG) with four, over a short list of candidates: the target, its neighbours, and random words. Then
the bound is checked on small attention heads: nothing that a search finds lies below it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import cosine_similarity

from tokenry.lab.attention_control import bound_ratio
from tokenry.lab.models import language_model
from tokenry.lab.outcome import Outcome, verdict
from tokenry.lab.plots import curves
from tokenry.lab.scale import Scale, at
from tokenry.lab.table import Table, items_above, paired
from tokenry.measure.audit.reachability import backoff_prompt_search
from tokenry.measure.audit.report import word_tokens
from tokenry.papers.base import Paper

STATES = (
    "The weather was", "My brother wanted to", "She opened the", "They said that", "At night the",
    "A good friend is", "We never found", "In the kitchen a", "He wrote a letter to",
    "The train from", "Nobody knew why", "On the table lay",
)  # fmt: skip
NEAREST, GREEDY = 75, 3
GCG: dict[str, Any] = {"topk": 32, "batch": 24, "iters": 3}
SMALL: dict[str, Any] = {"topk": 2, "batch": 2, "iters": 1}
NEAR, ANY = "rank 2 to 75", "any token"


def reproduce(seed: int, scale: Scale = "full") -> Outcome:
    """A likely and a random target for each state; eight heads with seeds from `100 seed`."""
    states, likely, words, gcg, heads, search = at(
        scale,
        full=(12, 16, 40, GCG, 8, (100, 100)),
        smoke=(2, 3, 3, SMALL, 2, (2, 2)),
    )
    model, tokenizer = language_model(scale)
    draw, vocabulary = torch.Generator().manual_seed(seed), word_tokens(model, tokenizer)
    sampled = vocabulary[torch.randperm(len(vocabulary), generator=draw)[:words]].tolist()
    weight = model.get_input_embeddings().weight.detach()
    needed: dict[str, list[float]] = {NEAR: [], ANY: []}  # tokens; infinite if not reached
    for state in STATES[:states]:
        ids = tokenizer(state)["input_ids"]
        with torch.no_grad():
            order = model(torch.tensor([ids])).logits[0, -1].argsort(descending=True)
        ranks = [int(torch.randint(1, top, (), generator=draw)) for top in (NEAREST, len(order))]
        for name, rank in zip(needed, ranks, strict=True):  # from 0: the second is 1
            target = int(order[rank])
            alike = cosine_similarity(weight, weight[target], dim=-1).topk(likely).indices.tolist()
            found = backoff_prompt_search(
                model, ids, [target], greedy=GREEDY, lengths=(GREEDY + 1,),
                candidates=dict.fromkeys([*alike, *sampled]), generator=draw, **gcg,
            )  # fmt: skip
            needed[name].append(found.length if found.reached else torch.inf)
    table, shares = Table(), {}
    for name, lengths in needed.items():
        shares[name] = [sum(n <= k for n in lengths) / states for k in range(GREEDY + 2)]
        for k, share in enumerate(shares[name]):
            table.add(f"reached with at most {k} tokens, {name}", share, "share", seed)
    ratios = [bound_ratio(100 * seed + head, *search) for head in range(heads)]
    table.add("least distance to an output below the bound", min(ratios), "relative", seed)
    within = {name: [n <= GREEDY + 1 for n in lengths] for name, lengths in needed.items()}
    one = [n <= 1 for n in needed[NEAR]]
    return verdict(
        table,
        {
            "some targets of rank 2 to 75 are reached with one control token": items_above(one),
            "and more with up to four": paired(within[NEAR], one),
            "more of them than of targets drawn from the whole vocabulary": paired(
                within[NEAR], within[ANY]
            ),
            "on every attention head the output whose bound is above k stays out of reach of k "
            "tokens": min(ratios) > 1e-3,
        },
        reason=f"{likely + words} candidate tokens instead of all of the vocabulary, and "
        f"{gcg['iters']} rounds of gradient search instead of 34: the shares are lower bounds",
        plots=[
            curves({n: enumerate(s) for n, s in shares.items()}, "control tokens", "share reached")
        ],
    )


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
)
