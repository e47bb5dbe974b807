"""DySpec at laptop scale: trees of 32 guesses in six shapes, for SmolLM2 writing Python.

The draft is a trigram model of the standard library, without the modules that the prompts are from.
Against the tree that follows its probabilities stand fixed ones (`lab.draft_trees`); the best of
them is fitted to how often guesses of every rank are accepted in the very texts. Greedy texts say
how many passes a shape takes; in sampled ones a tree's tokens are expected exactly.
"""

from __future__ import annotations

from functools import partial

import torch

from tokenry.decode.speculation.dyspec import DySpec
from tokenry.lab.draft_trees import (
    NGramDraft,
    calls_per_tree,
    expected_tokens,
    fixed_trees,
    greedy_rates,
    sampled_rates,
)
from tokenry.lab.drafting import as_replayed, replayed, written
from tokenry.lab.models import language_model
from tokenry.lab.outcome import Outcome, verdict
from tokenry.lab.plots import curves
from tokenry.lab.scale import Scale, at
from tokenry.lab.table import Evidence, Table, paired
from tokenry.papers.base import Paper
from tokenry.tasks.standard_library import MODULES, beginnings
from tokenry.text.ngrams import NGramModel

ORDERS = (0.05, 0.25, 0.7)  # weights of the trigram model's orders
T = 0.6


def reproduce(seed: int, scale: Scale = "full") -> Outcome:
    count, prompt, new, sizes, every, modules = at(
        scale, full=(10, 64, 48, (8, 32), 8, MODULES), smoke=(2, 8, 8, (2, 4), 4, MODULES[2:7])
    )
    table, nodes = Table(), sizes[-1]
    model, tokenizer = language_model(scale)
    prompts, others = beginnings(tokenizer, modules, prompt, count, seed)
    draft = NGramDraft(NGramModel.fit(others, model.config.vocab_size, weights=ORDERS))

    plain = written(model, prompts, new, eos_token_id=[])
    rates, speeds = greedy_rates(draft, plain), {}
    for size in sizes:
        dynamic = DySpec(draft, nodes=size, temperature=1.0)
        for name, drafter in {"DySpec": dynamic, **fixed_trees(dynamic, rates)}.items():
            speeds[name, size] = replayed(model, drafter, plain)
            speeds[name, size].add_to(table, f"T = 0, {size} nodes, {name}", seed)
    make = partial(DySpec, draft, nodes=nodes, temperature=1.0)
    same = as_replayed(model, make, plain[0], eos_token_id=[])
    for expansion in ("levels", "heap"):
        calls = calls_per_tree(model, draft, plain[0], nodes=nodes, expansion=expansion)
        table.add(f"draft calls per tree, {expansion}", calls, "calls", seed)

    generator = torch.Generator().manual_seed(seed)
    options = {"temperature": T, "eos_token_id": [], "generator": generator}
    sampled = written(model, prompts, new, **options)
    dynamic = DySpec(draft, nodes=nodes, sampled=True, temperature=T)
    drawing = fixed_trees(dynamic, sampled_rates(model, draft, sampled, T, seed))
    drafters = (dynamic, *drawing.values())
    tokens = torch.stack([expected_tokens(model, drafters, text, every, T) for text in sampled])
    expected = dict(zip(("DySpec", *drawing), tokens.transpose(0, 2), strict=True))
    means = {f"T = {T}, {nodes} nodes, {n}": float(x.mean()) for n, x in expected.items()}
    table.add_all(means, "tokens per pass, expected", seed)

    checks: dict[str, Evidence | bool] = {"a drafted text and its steps are as computed": same}
    for name in drawing:
        greedy = speeds["DySpec", nodes].over(speeds[name, nodes])
        checks[f"T = 0: with {nodes} nodes more tokens per pass than the {name}"] = greedy
        slack = 0.0 if name == "chain" else 0.25
        ours, fixed = (expected[way].mean(0) for way in ("DySpec", name))
        label = f"T = {T}: more tokens are expected than of the {name} less {slack:g}"
        checks[label] = paired((ours + slack).tolist(), fixed.tolist())
    lines = {name: [(s, speeds[name, s].per_pass) for s in sizes] for name in expected}
    return verdict(
        table,
        checks,
        reason="Judged in tokens per pass, with a trigram draft, which knows little. The best "
        "fixed tree was fitted to the texts it is judged on.",
        plots=[curves(lines, "draft nodes", "tokens per pass, greedy", log="x")],
    )


PAPER = Paper(
    number=106,
    key="dyspec",
    title="DySpec: Faster Speculative Decoding with Dynamic Token Tree Structure",
    arxiv="2410.11744",
    role="drafter",
    family="efficiency",
    claim="A draft tree that grows along the draft's own probabilities gives more tokens per pass "
    "than fixed trees of the same size, greedy or sampled, with the same distribution of texts.",
    reproduce=reproduce,
    threads=1,
)
