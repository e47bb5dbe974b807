"""Reduction as more than a saving, at laptop scale: a model that has only seen short inputs.

A token is a key and a value: the sum of their embeddings, and noise. A small transformer learns to
answer "the value of this key?" from 8 to 32 tokens. It is then asked with 128: the one that answers
and 127 with other keys. A reducer sees the same tokens and the question, not the answer, and keeps
a quarter of them: by similarity to the question, at random, merged by similarity to each other, or
pooled by position. Operations are counted with those that the choice itself takes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tokenry.core.reduction import Merging, Pooling, Reduction, merge_to, select_top
from tokenry.lab.outcome import Outcome, verdict
from tokenry.lab.plots import bars
from tokenry.lab.recall import keyed_model
from tokenry.lab.scale import Scale, at
from tokenry.lab.table import Table, over_seeds
from tokenry.papers.base import Paper
from tokenry.tasks.worlds.keyed_tokens import KeyedTokens

LONG, KEPT, SHOWN = 128, 32, 8
WORK = ("all tokens", "relevance")


def reducers(generator: torch.Generator) -> dict[str, Callable[[Tensor, Tensor], Reduction]]:
    """Of tokens [..., N, d] for a question [..., d]."""
    groups = torch.arange(LONG).div(LONG // KEPT, rounding_mode="floor")
    return {
        "relevance": lambda x, question: select_top((x @ question[..., None])[..., 0], KEPT),
        "random": lambda x, _: select_top(torch.rand(x.shape[:-1], generator=generator), KEPT),
        "merging": lambda x, _: merge_to(x, KEPT),
        "pooling": lambda x, _: Pooling(Merging(groups).matrix()),
    }


def reproduce(seed: int, scale: Scale = "full") -> Outcome:
    models, steps, questions = at(scale, full=(6, 400, 400), smoke=(2, 3, 20))
    table = Table()

    def measure(number: int) -> None:
        world = KeyedTokens(number)
        model, generator = keyed_model(world, steps), world.generator
        short = world.questions(questions, KEPT, generator)
        accuracy = {"32 tokens, as trained": model.accuracy(*short)}
        tokens, question, answer = world.questions(questions, LONG, generator)
        accuracy["all tokens"] = model.accuracy(tokens, question, answer)
        for name, reduce in reducers(generator).items():
            fewer = reduce(tokens, question).apply(tokens)
            accuracy[name] = model.accuracy(fewer, question, answer)
            if number == 100 * seed:
                report = model.described(reduce, tokens[:SHOWN], question[:SHOWN])
                table.add_all({f"{label}, {name}": x for label, x in report.items()}, seed=number)
        table.add_all({f"accuracy, {name}": value for name, value in accuracy.items()}, seed=number)
        work = (model.operations(LONG), model.operations(KEPT) + 2 * LONG * world.width)
        for name, value in zip(WORK, work, strict=True):
            table.add(name, value / 1e6, "MFLOP a question", number)

    list(over_seeds(measure, seed, models))
    means = {name: table.mean(name) for name in table.labels() if name.startswith("accuracy, ")}
    return verdict(
        table,
        {
            "a quarter of the tokens, chosen for the question, answers better than all of them": (
                table.gap("accuracy, relevance", "accuracy, all tokens")
            ),
            "and all better than a random quarter": table.gap(
                "accuracy, all tokens", "accuracy, random"
            ),
            "with fewer operations": table.mean("relevance") < table.mean("all tokens"),
        },
        reason="The paper is a position paper without an experiment of its own: this one is ours.",
        plots=[bars({"models": means}, "questions answered")],
    )


PAPER = Paper(
    number=79,
    key="token-reduction-survey",
    title="Token Reduction Should Go Beyond Efficiency in Generative Models: From Vision, Language "
    "to Multimodality",
    arxiv="2505.18227",
    role="reduction",
    family="efficiency",
    claim="Reducing tokens can make answers better, not only cheaper: what is kept matters.",
    reproduce=reproduce,
    threads=1,
)
