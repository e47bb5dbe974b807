"""Goose at laptop scale: one uneven tree against its sources and an even tree of the same size.

SmolLM2 rewrites, quotes and documents small functions of the standard library, greedily. Four ways
to spend 60 nodes a pass: the chain copied from the context alone; recycled successors alone; a
balanced tree, in which every node gets the same number of children from both sources, level by
level; and Goose's spine with branches. All learn from their own passes, from nothing.

The second part needs no model: with a spine whose tokens are right with probability .6 and branches
right with .1, the expected accepted length of 60 nodes is exact.
"""

from __future__ import annotations

import inspect

import torch

from tokenry.lab.draft_trees import SHAPES, ShapedGoose, Tally, expected_by_shape
from tokenry.lab.drafting import alike, redrafted, speed, written
from tokenry.lab.models import chat_prompt, language_model
from tokenry.lab.outcome import Outcome, verdict
from tokenry.lab.plots import bars
from tokenry.lab.scale import Scale, at
from tokenry.lab.table import Evidence, Table, paired
from tokenry.papers.base import Paper
from tokenry.tasks.standard_library import SMALL, drawn, member

TASKS = (
    "Print this function again with a docstring:\n\n",
    "Rename its arguments to one letter each and print the whole function:\n\n",
    "Explain this function line by line, quoting every line:\n\n",
)
NODES = 60


def prompt_on(name: str) -> str:
    code = inspect.cleandoc(inspect.getsource(member(name))).splitlines()[:24]
    return TASKS[SMALL.index(name) % len(TASKS)] + "\n".join(code)


def reproduce(seed: int, scale: Scale = "full") -> Outcome:
    count, new, nodes = at(scale, full=(8, 48, NODES), smoke=(2, 4, 6))
    model, tokenizer = language_model(scale)
    names = drawn(SMALL, count, torch.Generator().manual_seed(seed))
    prompts = [chat_prompt(tokenizer, prompt_on(name)) for name in names]
    plain, table, same, speeds = written(model, prompts, new), Table(), True, {}
    for name, shape in SHAPES.items():
        drafter, tallies = ShapedGoose(nodes=nodes, shape=shape), [Tally() for _ in prompts]
        texts = redrafted(model, plain, drafter, [{"on_step": tally} for tally in tallies])
        speeds[name], same = speed(texts), same and alike(texts, plain)
        speeds[name].add_to(table, name, seed)
    for note in ("spine", "branch"):  # of Goose, which came last
        table.add(f"{note} guesses right", sum(tallies, Tally()).share(note), "", seed)
    exact = expected_by_shape(NODES, spine=0.6, branch=0.1)
    table.add_all(exact, "accepted tokens", name="exact")
    spine, branch = ([tally.share(note) for tally in tallies] for note in ("spine", "branch"))
    checks: dict[str, Evidence | bool] = {"every text is that of plain decoding": same}
    for name in list(SHAPES)[:-1]:
        checks[f"more tokens per pass than the {name}"] = speeds["goose"].over(speeds[name])
    checks["where the parent is right, the spine's guess is so more than twice as often as "
           "a branch"] = paired(spine, [2 * share for share in branch])  # fmt: skip
    checks["in exact expectation no tree accepts more"] = exact["goose"] >= max(exact.values())
    return verdict(
        table,
        checks,
        plots=[
            bars({"SmolLM2": {name: one.per_pass for name, one in speeds.items()}},
                 "tokens per pass"),
            bars({"exact": exact}, "accepted tokens, expected"),
        ],
    )  # fmt: skip


PAPER = Paper(
    number=180,
    key="goose",
    title="Goose: Anisotropic Speculation Trees for Training-Free Speculative Decoding",
    arxiv="2604.02047",
    role="drafter",
    family="efficiency",
    claim="A deep spine copied from the context with shallow recycled branches accepts more per "
    "pass than either source alone or a balanced tree of the same size.",
    reproduce=reproduce,
    threads=1,
)
