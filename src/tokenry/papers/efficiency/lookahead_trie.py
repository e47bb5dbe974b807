"""Lookahead at laptop scale: tokens per pass of SmolLM2 when it answers from documentation.

Sixteen functions of the standard library; each prompt shows a docstring and asks for a part of it.
A second round asks something else about the same functions, so that the trie of outputs knows some
of the answers' words. The model's greedy answers are generated once, in a batch. Since a draft from
a trie looks at tokens only, how many passes every variant takes follows from the answers: a step
accepts the tree's longest path along the answer. One answer is generated with the drafter as well.

"Chain" is the paper's single chain with the same number of nodes. Prompt lookup copies what
followed the latest earlier occurrence of the text's last tokens.
"""

from __future__ import annotations

import inspect
from functools import partial
from typing import Any

import torch

from tokenry.decode.speculation.baselines import PromptLookup
from tokenry.decode.speculation.lookahead import Lookahead
from tokenry.lab.drafting import Speed, as_replayed, replayed, written
from tokenry.lab.models import chat_prompt, language_model
from tokenry.lab.outcome import Outcome, verdict
from tokenry.lab.plots import curves
from tokenry.lab.scale import Scale, at
from tokenry.lab.table import Table
from tokenry.papers.base import Paper
from tokenry.tasks.standard_library import DOCUMENTED, drawn, member

QUESTIONS = (
    "Quote the sentences of this documentation that say what it returns or does.",
    "Explain this documentation to a beginner, quoting from it.",
)
ROUNDS = ("first round", "second round, cold", "second round, warm")


def reproduce(seed: int, scale: Scale = "full") -> Outcome:
    count, new, sizes = at(scale, full=(16, 40, (4, 8, 16, 32, 64)), smoke=(2, 8, (4, 8)))
    model, tokenizer = language_model(scale)
    names = drawn(DOCUMENTED, count, torch.Generator().manual_seed(seed))
    texts = [f"{name}: {(inspect.getdoc(member(name)) or '')[:600]}" for name in names]
    prompts = [chat_prompt(tokenizer, f"{ask}\n\n{text}") for ask in QUESTIONS for text in texts]
    answers = written(model, prompts, new)
    first, second, table = answers[:count], answers[count:], Table()

    speeds: dict[tuple[str, str, int], Speed] = {}
    kinds: dict[str, Any] = {"tree": "hier", "chain": "one"}
    for kind, mode in kinds.items():
        for size in sizes:
            warm = Lookahead(nodes=size, mode=mode)
            cold = [replayed(model, Lookahead(nodes=size, mode=mode), [one]) for one in second]
            first_speed = replayed(model, warm, first)
            rounds = (first_speed, sum(cold, Speed()), replayed(model, warm, second))
            for part, one in zip(ROUNDS, rounds, strict=True):
                speeds[part, kind, size] = one
                one.add_to(table, f"{part}, {kind}, {size} nodes", seed)
    lookup = replayed(model, PromptLookup(tokens=12), second)
    lookup.add_to(table, "second round, prompt lookup, 12 nodes", seed)

    most = sizes[-1]
    (early, cold, warm), chain = ([speeds[part, kind, most] for part in ROUNDS]
                                  for kind in kinds)  # fmt: skip
    same = as_replayed(model, partial(Lookahead, nodes=most), first[0])
    lines = {f"{part}, {kind}": [(s, speeds[part, kind, s].per_pass) for s in sizes]
             for part, kind, _ in speeds}  # fmt: skip
    return verdict(
        table,
        {
            "a drafted text and its steps are as computed": same,
            f"with {most} nodes the tree gives more tokens per pass than the chain, over both "
            "rounds": (early + warm).over(chain[0] + chain[2]),
            "in the first round the chain gives more than one": chain[0].above(1.0),
            "in the second the tree gives more if it has seen the first": warm.over(cold),
            "and if it has not, more than prompt lookup": cold.over(lookup),
        },
        reason="Judged in passes. On a laptop's processor a pass over 65 tokens costs several over "
        "one; there the drafter takes fewer nodes unless told otherwise.",
        plots=[curves(lines, "draft nodes", "tokens per pass", log="x")],
    )


PAPER = Paper(
    number=78,
    key="lookahead-trie",
    title="Lookahead: An Inference Acceleration Framework for LLMs with Lossless Generation "
    "Accuracy",
    arxiv="2312.12728",
    role="drafter",
    family="efficiency",
    claim="A trie of the prompt and of earlier answers drafts several branches at once: more "
    "tokens per pass than one copied chain, the more the trie has seen, with the same text.",
    reproduce=reproduce,
    threads=1,
)
