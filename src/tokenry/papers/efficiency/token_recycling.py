"""Token Recycling at laptop scale: tokens per forward pass of SmolLM2 on code and prose.

Ten prompts in one order, greedy. The paper's tree of 80 nodes, with a table that starts empty, is
set against the same tree whose table stays as the first half of the texts left it (frozen), and
against prompt lookup: a chain copied from behind the latest earlier occurrence of the last tokens,
up to ten guesses. A second pass over the prompts starts from the filled table (hot). The frozen
table is judged on the second half of the prompts, as is its rival. Frozen tables and lookup see
tokens only, so their passes follow from the texts.
"""

from __future__ import annotations

import torch

from tokenry.decode.speculation.baselines import PromptLookup
from tokenry.decode.speculation.recycling import TokenRecycling
from tokenry.decode.speculation.tree import TreeTemplate
from tokenry.lab.drafting import Frozen, alike, redrafted, replayed, speed, written
from tokenry.lab.models import chat_prompt, language_model
from tokenry.lab.outcome import Outcome, verdict
from tokenry.lab.plots import bars
from tokenry.lab.scale import Scale, at
from tokenry.lab.table import Table
from tokenry.papers.base import Paper
from tokenry.tasks.standard_library import drawn

PROMPTS = (
    "Write a Python class Stack with push, pop, peek and a size.",
    "Explain why the sky is blue.",
    "Write a Python function that merges two sorted lists, with a test.",
    "Describe how bread is made, step by step.",
    "Write a Python function that counts the words in a file.",
    "Tell a short story about a lighthouse keeper.",
    "Write a Python function that reverses a linked list.",
    "Describe how a bicycle stays upright.",
    "Write a Python class Queue with two stacks inside.",
    "Explain what a rainbow is to a child.",
    "Write a Python function that reads a table of numbers from a file.",
    "Write a letter that asks a neighbour to water the plants.",
    "Write a Python function that finds all primes below a number.",
    "Explain how vaccines work.",
    "Write a Python decorator that counts how often a function is called.",
    "Tell a short story about two rivers that meet.",
)


def reproduce(seed: int, scale: Scale = "full") -> Outcome:
    count, new, template = at(
        scale,
        full=(10, 32, TreeTemplate.default()),
        smoke=(4, 6, TreeTemplate(((0,), (1,), (0, 0)))),
    )
    model, tokenizer = language_model(scale)
    chosen = drawn(PROMPTS, count, torch.Generator().manual_seed(seed))
    prompts = [chat_prompt(tokenizer, message) for message in chosen]
    first, second = slice(0, count // 2), slice(count // 2, count)
    plain = written(model, prompts, new)

    recycling = TokenRecycling(template=template, learn_prompt="nothing")
    texts = redrafted(model, plain[first], recycling)
    frozen = replayed(model, Frozen(recycling), plain[second])
    texts += redrafted(model, plain[second], recycling)
    again = redrafted(model, plain, recycling)
    cold, hot, lookup = speed(texts), speed(again), replayed(model, PromptLookup(), plain)
    table, same = Table(), alike(texts, plain) and alike(again, plain)
    speeds = {"token recycling, cold": cold, "token recycling, hot": hot, "prompt lookup": lookup}
    speeds |= {"second half: cold": cold[second], "second half: frozen table": frozen}
    for label, value in speeds.items():
        value.add_to(table, label, seed)
    steps = sum(one.steps for one in texts)
    table.add("tokens read by a step, cold", sum(sum(one.nodes) for one in texts) / steps, "", seed)
    return verdict(
        table,
        {
            "every text is that of plain decoding": same,
            "from an empty table it gives more than 1.4 tokens per pass": cold.above(1.4),
            "in the second half more than with a frozen table": cold[second].over(frozen),
            "with the filled table more than from an empty one": hot.over(cold),
        },
        reason="Judged in passes. On a laptop a pass over 81 tokens costs several passes over one, "
        "so that the paper's tree is no faster than plain decoding there; trees that are fitted to "
        "the machine are timed in benchmarks/speculation.py.",
        plots=[bars({"tokens per pass": {n: s.per_pass for n, s in speeds.items()}}, "")],
    )


PAPER = Paper(
    number=67,
    key="token-recycling",
    title="Turning Trash into Treasure: Accelerating Inference of Large Language Models with "
    "Token Recycling",
    arxiv="2408.08696",
    role="drafter",
    family="efficiency",
    claim="Candidate tokens kept from earlier passes, accepted or not, draft trees that give about "
    "two tokens a pass without training, a second model, or a change in the text.",
    reproduce=reproduce,
)
