"""Token Recycling at laptop scale: tokens per forward pass of SmolLM2 on code and prose.

Six prompts in one order, greedy. The paper's tree of 80 nodes, with a table that starts empty, is
set against the same tree whose table stays as the first prompts' texts left it (frozen), and
against prompt lookup: a chain copied from behind the latest earlier occurrence of the last tokens,
up to ten guesses. A second pass over the prompts starts from the filled table (hot). The frozen
table is learned on the first half of the prompts and judged on the second, as is its rival.

Seconds are those of this machine, where a pass over 81 tokens costs several passes over one, and
rough, since the runs follow one another; `benchmarks/speculation.py` times the tree that is fitted
to the machine.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tokenry.decode.speculation.baselines import NoDraft, PromptLookup
from tokenry.decode.speculation.recycling import RecyclingDraft, TokenRecycling
from tokenry.decode.speculation.speculate import (
    Draft,
    Drafter,
    Speculation,
    generate_with_drafter,
)
from tokenry.decode.speculation.tree import TokenTree, TreeTemplate
from tokenry.decode.speculation.verify import Accepted
from tokenry.papers.base import Measurement, Outcome, Paper

PROMPTS = (
    "Write a Python class Stack with push, pop, peek and a size.",
    "Explain why the sky is blue.",
    "Write a Python function that merges two sorted lists, with a test.",
    "Describe how bread is made, step by step.",
    "Write a Python function that counts the words in a file.",
    "Tell a short story about a lighthouse keeper.",
)
NEW = 40


def reproduce(seed: int) -> Outcome:
    import tokenry

    model, tokenizer = tokenry.load("smollm2")
    order = torch.randperm(len(PROMPTS), generator=torch.Generator().manual_seed(seed)).tolist()
    prompts = [encode(tokenizer, PROMPTS[index]) for index in order]
    half = len(prompts) // 2

    recycling = TokenRecycling(template=TreeTemplate.default(), learn_prompt="nothing")
    cold = run(model, prompts[:half], recycling)
    frozen = run(model, prompts[half:], Frozen(recycling))
    cold += run(model, prompts[half:], recycling)
    hot = run(model, prompts, recycling)
    lookup = run(model, prompts, PromptLookup())
    plain = run(model, prompts, NoDraft())
    runs = {
        "token recycling, cold": cold,
        "token recycling, hot": hot,
        "prompt lookup": lookup,
        "no draft": plain,
    }
    same = all(
        mine.ids == theirs.ids
        for found in runs.values()
        for mine, theirs in zip(found, plain, strict=True)
    )
    measurements = [
        Measurement(label, per_pass(found), "tokens per pass", seed)
        for label, found in runs.items()
        if found is not plain
    ]
    measurements += [
        Measurement("second half: cold", per_pass(cold[half:]), "tokens per pass", seed),
        Measurement("second half: frozen table", per_pass(frozen), "tokens per pass", seed),
    ]
    measurements += [
        Measurement(label, speed(found) / speed(plain), "times the speed of no draft", seed)
        for label, found in runs.items()
        if found is not plain
    ]
    measurements.append(Measurement("texts equal to plain decoding", float(same), "", seed))
    updated, kept = per_pass(cold[half:]), per_pass(frozen)
    held = same and per_pass(cold) > 1.4 and updated > kept and per_pass(hot) >= per_pass(cold)
    return Outcome(
        held=held,
        needs="same texts; tokens per pass: cold > 1.4, cold > frozen, hot >= cold",
        measurements=measurements,
        reason=(
            f"Judged in passes. In seconds the paper's tree ran at {speed(cold) / speed(plain):.2f}"
            " times the speed of decoding without a draft: here 81 tokens do not cost as little as "
            "one, as on the paper's accelerators."
        ),
        figure=lambda figure: draw(figure, {"cold": cold, "hot": hot, "prompt lookup": lookup}),
    )


def run(model: Any, prompts: Sequence[Tensor], drafter: Drafter) -> list[Speculation]:
    return [generate_with_drafter(model, prompt, drafter, NEW) for prompt in prompts]


def per_pass(found: Sequence[Speculation]) -> float:
    return sum(len(one.new_ids) for one in found) / sum(one.forward_calls for one in found)


def speed(found: Sequence[Speculation]) -> float:
    return sum(len(one.new_ids) for one in found) / sum(one.seconds for one in found)


class Frozen:
    """A drafter that no longer learns."""

    reads_prompt = False

    def __init__(self, drafter: TokenRecycling):
        self.drafter = replace(drafter, learn_prompt="nothing")

    def begin(self, model: Any, prompt: Sequence[int]) -> Draft:
        return FrozenDraft(self.drafter, {})


class FrozenDraft(RecyclingDraft):
    def update(self, tree: TokenTree, logits: Tensor, accepted: Accepted) -> None:
        pass


def encode(tokenizer: Any, prompt: str) -> Tensor:
    messages = [{"role": "user", "content": prompt}]
    return tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )["input_ids"]


def draw(figure: Any, runs: dict[str, list[Speculation]]) -> None:
    axes = figure.subplots()
    for label, found in runs.items():
        steps = torch.tensor([length for one in found for length in one.accept_lengths])
        total = steps.cumsum(0)
        running = total / torch.arange(1, len(steps) + 1)
        axes.plot(total.tolist(), running.tolist(), label=label)
    axes.set(xlabel="generated tokens", ylabel="tokens per step so far")
    axes.axhline(1, color="grey", linewidth=0.8)
    axes.legend()


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
