"""Reduction as more than a saving, at laptop scale: a reader that has only seen short inputs.

A token is a key and a value: the sum of their embeddings, and noise. A small transformer learns to
answer "the value of this key?" from 8 to 32 tokens. It is then asked with 128: the one that answers
and 127 with other keys. A reducer sees the same tokens and the question, not the answer, and keeps
a quarter of them: by similarity to the question, at random, merged by similarity to each other, or
pooled by position. Operations are counted with those that the choice itself takes.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from tokenry.core.reduction import Merging, Pooling, Reduction, merge_to, select_top
from tokenry.lab.toy_model import toy_model
from tokenry.learn.fit import fit, linear
from tokenry.measure.reduction import reduction_report
from tokenry.papers.base import Measurement, Outcome, Paper, mean_and_error

KEYS, VALUES, WIDTH, NOISE = 256, 16, 64, 0.6
SHORTEST, LONG, KEPT = 8, 128, 32
STEPS, BATCH, QUESTIONS, READERS = 400, 64, 400, 3
SHOWN = 8  # inputs behind the table of diagnostics


def reproduce(seed: int) -> Outcome:
    accuracies: dict[str, list[float]] = {}
    diagnostics: dict[str, dict[str, float]] = {}
    for reader in range(READERS):
        generator = torch.Generator().manual_seed(1000 * seed + reader)
        world = World(generator)
        model = trained_reader(world, 1000 * seed + reader, generator)
        short = world.questions(QUESTIONS, KEPT, generator)
        accuracies.setdefault("32 tokens, as trained", []).append(accuracy(model, *short))
        tokens, question, answer = world.questions(QUESTIONS, LONG, generator)
        reducers = ways(generator)
        accuracies.setdefault("all tokens", []).append(accuracy(model, tokens, question, answer))
        for name, reduce in reducers.items():
            fewer = reduce(tokens, question).apply(tokens)
            accuracies.setdefault(name, []).append(accuracy(model, fewer, question, answer))
            if reader == 0:
                diagnostics[name] = described(model, reduce, tokens[:SHOWN], question[:SHOWN])
    score = {name: mean_and_error(torch.tensor(found)) for name, found in accuracies.items()}
    work = {"all tokens": operations(LONG), "relevance": operations(KEPT) + 2 * LONG * WIDTH}

    def exceeds(one: str, other: str) -> bool:
        (a, error), (b, other_error) = score[one], score[other]
        return a - b > 2 * (error**2 + other_error**2) ** 0.5

    measurements = [Measurement(f"accuracy, {n}", mean, "", seed) for n, (mean, _) in score.items()]
    measurements += [
        Measurement(f"{n}", x / 1e6, "MFLOP a question", seed) for n, x in work.items()
    ]
    measurements += [
        Measurement(f"{label}, {name}", value, "", seed)
        for name, report in diagnostics.items()
        for label, value in report.items()
    ]
    return Outcome(
        held=exceeds("relevance", "all tokens")
        and exceeds("all tokens", "random")
        and work["relevance"] < work["all tokens"],
        needs="accuracy(relevance) > accuracy(all tokens) > accuracy(random), each by two standard "
        "errors over three readers, with fewer operations",
        measurements=measurements,
        reason=f"A quarter of the tokens, chosen for the question, answers "
        f"{score['relevance'][0]:.0%} where all of them answer {score['all tokens'][0]:.0%} and a "
        f"random quarter {score['random'][0]:.0%}; merged by likeness {score['merging'][0]:.0%}. "
        "The paper is a position paper without an experiment of its own: this one is ours.",
        figure=lambda figure: draw(figure, score),
    )


class World:
    """Embeddings of keys and values, and questions about them."""

    def __init__(self, generator: torch.Generator):
        self.keys = torch.randn(KEYS, WIDTH, generator=generator) / WIDTH**0.5
        self.values = torch.randn(VALUES, WIDTH, generator=generator) / WIDTH**0.5

    def questions(
        self, count: int, length: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """tokens [B, N, d], the question [B, d], and the answer [B]; every key once."""
        keys = torch.rand(count, KEYS, generator=generator).argsort(-1)[:, :length]
        values = torch.randint(VALUES, (count, length), generator=generator)
        noise = torch.randn(count, length, WIDTH, generator=generator) * NOISE / WIDTH**0.5
        place = torch.randint(length, (count,), generator=generator)
        rows = torch.arange(count)
        tokens = self.keys[keys] + self.values[values] + noise
        return tokens, self.keys[keys[rows, place]], values[rows, place]


def trained_reader(world: World, seed: int, generator: torch.Generator) -> Any:
    model = toy_model(VALUES, 2 * LONG, seed, width=WIDTH)

    def loss(step: int, generator: torch.Generator) -> Tensor:
        length = int(torch.randint(SHORTEST, KEPT + 1, (), generator=generator))
        tokens, question, answer = world.questions(BATCH, length, generator)
        return cross_entropy(answers(model, tokens, question), answer)

    fit(
        loss,
        model,
        steps=STEPS,
        learning_rate=3e-3,
        schedule=linear(),
        weight_decay=0.01,
        clip=None,
        seed=generator,
    )
    return model.eval()


def answers(model: Any, tokens: Tensor, question: Tensor) -> Tensor:
    """Logits over values, [B, VALUES]: the question stands last."""
    inputs = torch.cat([tokens, question[:, None]], 1)
    return model(inputs_embeds=inputs, use_cache=False).logits[:, -1]


@torch.no_grad()
def accuracy(model: Any, tokens: Tensor, question: Tensor, answer: Tensor) -> float:
    return float((answers(model, tokens, question).argmax(-1) == answer).float().mean())


Reduce = Callable[[Tensor, Tensor], Reduction]


def ways(generator: torch.Generator) -> dict[str, Reduce]:
    """Four reducers of tokens [..., N, d] for a question [..., d]."""

    def relevance(tokens: Tensor, question: Tensor) -> Reduction:
        return select_top((tokens @ question[..., None])[..., 0], KEPT)

    def at_random(tokens: Tensor, question: Tensor) -> Reduction:
        return select_top(torch.rand(tokens.shape[:-1], generator=generator), KEPT)

    def merging(tokens: Tensor, question: Tensor) -> Reduction:
        return merge_to(tokens, KEPT)

    def pooling(tokens: Tensor, question: Tensor) -> Reduction:
        groups = torch.arange(LONG).div(LONG // KEPT, rounding_mode="floor")
        return Pooling(Merging(groups).matrix())

    return {
        "relevance": relevance,
        "random": at_random,
        "merging": merging,
        "pooling": pooling,
    }


def described(model: Any, reduce: Reduce, tokens: Tensor, question: Tensor) -> dict[str, float]:
    """Diagnostics, mean over inputs."""
    reports = [
        reduction_report(
            x, reduce(x, q), model=model, reduce=lambda y, q=q: reduce(y, q), noise=0.1
        )
        for x, q in zip(tokens, question, strict=True)
    ]
    wanted = ("coverage", "redundancy", "effective rank, reduced", "information lost", "stability")
    return {name: sum(r[name] for r in reports) / len(reports) for name in wanted}


def operations(length: int, layers: int = 2) -> int:
    """Floating-point operations of the reader for one question of `length` tokens and itself."""
    n = length + 1
    weights = layers * (4 * WIDTH**2 + 3 * WIDTH * 2 * WIDTH)
    attention = layers * 2 * n * WIDTH  # scores and sums, per token
    return 2 * n * (weights + attention) + 2 * WIDTH * VALUES


def draw(figure: Any, score: dict[str, tuple[float, float]]) -> None:
    axes = figure.subplots()
    names = list(score)
    means, errors = zip(*score.values(), strict=True)
    axes.barh(names, means, xerr=errors)
    axes.invert_yaxis()
    axes.axvline(1 / VALUES, color="grey", linewidth=0.8)
    axes.set(xlabel="questions answered (line: guessing)")


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
