"""Adaptive unlearning of hallucinated module names, in a character model that spells them.

Lines such as "qotra\\nimport textwrap\\n": a topic of five letters, the first of which leaves 10
modules to choose from, and the import. One name in five of the corpus does not exist: it is made of
halves of Python modules, as an outdated corpus or a model would have it. A small transformer fitted
to the lines writes such names, and misspells others. On its own texts, with the same masks and
steps: gradient ascent, NPO and the hybrid objective on texts collected once, and the hybrid with
three rounds of discovery, each of which collects the current model's texts on the prompts that
failed, mutated.
"""

from __future__ import annotations

import copy
import random
import sys
from dataclasses import dataclass
from functools import cached_property
from statistics import mean
from typing import Any

import torch
from torch import Tensor

from tokenry.core.batch import TokenBatch
from tokenry.lab.toy_model import toy_model
from tokenry.lab.toy_training import NegativeLogLikelihood, sample_on, train_on
from tokenry.learn.preference.unlearning import AdaptiveUnlearning, discover
from tokenry.learn.reference import FrozenModel
from tokenry.model.score import score
from tokenry.papers.base import Measurement, Outcome, Paper
from tokenry.text.names import NameRegistry, NameSpan, hallucination_rate, tri_mask

SEEDS = 1
LETTERS = "abcdefghijklmnopqrstuvwxyz"
CHARACTERS = LETTERS + " \n"
NAMES, INVENTED, LINES, POOL, HELD_OUT, LONGEST = 100, 20, 10_000, 400, 400, 9
ROUNDS, STEPS, BATCH, LEARNING_RATE = 3, 60, 32, 5e-4
METHODS = {
    "ascent": AdaptiveUnlearning(keep=0.0, kind="ascent"),
    "npo": AdaptiveUnlearning(keep=0.0, kind="npo"),
    "hybrid": AdaptiveUnlearning(),
    "hybrid, loop": AdaptiveUnlearning(),
}
Example = tuple[str, str, list[NameSpan]]


@dataclass(frozen=True)
class Result:
    """Shares of generated names that do not exist, on held-out and on mutated prompts; perplexity
    of everything in held-out lines but the names; KL(reference || model) per token."""

    rate: float
    mutated: float
    perplexity: float
    name_kl: float
    other_kl: float
    rounds: tuple[float, ...] = ()


@dataclass(frozen=True)
class ImportLines:
    """The corpus: topics of five letters; the first one says which modules may be meant."""

    seed: int

    @cached_property
    def existing(self) -> list[str]:
        known = [
            name
            for name in sorted(sys.stdlib_module_names)
            if 3 <= len(name) <= LONGEST - 1 and set(name) <= set(LETTERS)
        ]
        return random.Random(self.seed).sample(known, NAMES - INVENTED)

    @cached_property
    def names(self) -> list[str]:
        """What the corpus imports: modules that exist, and plausible ones that do not."""
        draw, invented = random.Random(self.seed), set()
        while len(invented) < INVENTED:
            first, second = draw.sample(self.existing, 2)
            name = first[:3] + second[-3:]
            invented |= {name} - sys.stdlib_module_names
        names = [*self.existing, *sorted(invented)]
        draw.shuffle(names)
        return names

    @cached_property
    def registry(self) -> NameRegistry:
        return NameRegistry.of(self.existing)

    def topics(self, count: int, seed: int) -> list[str]:
        draw = random.Random(f"{self.seed}:{seed}")
        return ["".join(draw.choices(LETTERS, k=5)) for _ in range(count)]

    def lines(self, topics: list[str], seed: int = 0) -> list[str]:
        """Prompt and import of each topic: one of the 10 modules that its first letter may mean."""
        draw = random.Random(f"{self.seed}:{seed}:lines")
        return [
            prompt(topic) + draw.choice(self.names[LETTERS.index(topic[0]) % 10 :: 10]) + "\n"
            for topic in topics
        ]


def reproduce(seed: int) -> Outcome:
    """One corpus, seed `seed * 100`."""
    runs = [results(seed * 100 + offset) for offset in range(SEEDS)]
    measurements = [
        Measurement(f"{name}: {what}", value, unit, seed * 100 + offset)
        for offset, run in enumerate(runs)
        for name, found in run.items()
        for what, value, unit in (
            ("hallucinated names, held-out prompts", found.rate, ""),
            ("hallucinated names, mutated prompts", found.mutated, ""),
            ("perplexity outside names", found.perplexity, ""),
            ("KL on name tokens", found.name_kl, "nats"),
            ("KL elsewhere", found.other_kl, "nats"),
        )
    ]

    def average(name: str, field: str) -> float:
        return mean(getattr(run[name], field) for run in runs)

    before, loop = average("before", "rate"), average("hybrid, loop", "rate")
    kept = average("hybrid, loop", "perplexity") / average("before", "perplexity")
    ascent = average("ascent", "perplexity") / average("before", "perplexity")
    mutated = average("hybrid, loop", "mutated"), average("hybrid", "mutated")
    kl = average("hybrid, loop", "name_kl"), average("hybrid, loop", "other_kl")
    conditions = {
        "halved": loop <= 0.5 * before,
        "perplexity kept": kept <= 1.05 < ascent,
        "loop below static on mutated prompts": mutated[0] < mutated[1],
        "KL on names": kl[0] > 5 * kl[1],
    }
    return Outcome(
        held=all(conditions.values()),
        needs="hybrid with the loop at least halves the share of "
        "hallucinated names on held-out prompts, keeps the perplexity outside names within 5% "
        "where ascent does not, is below the static hybrid on mutated prompts, and its KL per "
        "token is more than 5 times larger on names than elsewhere",
        measurements=measurements,
        reason="; ".join(f"{name}: {'yes' if met else 'no'}" for name, met in conditions.items())
        + f" (rate {before:.3f} to {loop:.3f}; perplexity x{kept:.3f}, ascent x{ascent:.3f}; "
        f"mutated {mutated[0]:.3f} against {mutated[1]:.3f}; KL {kl[0]:.3f} against {kl[1]:.4f})",
        figure=lambda figure: _draw(figure, runs[0]),
    )


def results(seed: int) -> dict[str, Result]:
    """The model before, and after each method."""
    corpus = ImportLines(seed)
    lines = corpus.lines(corpus.topics(LINES, 0))
    model = train_on(
        lambda draw: batch_of([lines[i] for i in torch.randint(LINES, (48,), generator=draw)]),
        NegativeLogLikelihood(),
        toy_model(len(CHARACTERS), 24, seed),
        steps=250,
        learning_rate=3e-3,
        decay=0.5,
        seed=seed,
    )
    heldout = corpus.topics(HELD_OUT, 1)
    texts = respond(model, heldout, seed)
    failing = [t for t, x in zip(heldout, texts, strict=True) if _fails(x, corpus)]
    mutated = mutate(failing * 4, seed + 1)
    pool = corpus.topics(POOL, 2)

    found = {"before": measure(model, model, corpus, heldout, mutated, seed)}
    for name, objective in METHODS.items():
        policy, examples, prompts, rates = copy.deepcopy(model), [], pool, []
        rounds = ROUNDS if name == "hybrid, loop" else 1
        for number in range(rounds):
            new, changed, rate = discover(
                lambda asked, p=policy, n=number: respond(p, asked, seed + 10 + n),
                prompts,
                corpus.registry,
                lambda failed, n=number: mutate(failed * 3, seed + 20 + n),
            )
            examples += new
            rates.append(rate)
            prompts = (changed + pool)[: len(pool)]
            batches = _balanced(examples, corpus)
            train_on(
                batches, objective, policy, steps=STEPS * ROUNDS // rounds,
                learning_rate=LEARNING_RATE, seed=seed + number, reference=model,
            )  # fmt: skip
        result = measure(policy, model, corpus, heldout, mutated, seed)
        found[name] = Result(**{**vars(result), "rounds": (*rates, result.rate)})
    return found


def measure(
    policy: Any,
    reference: Any,
    corpus: ImportLines,
    heldout: list[str],
    mutated: list[str],
    seed: int,
) -> Result:
    """Everything that is reported about a model."""
    rates = [
        hallucination_rate(respond(policy, topics, seed + 2), corpus.registry)[0]
        for topics in (heldout, mutated)
    ]
    lines = corpus.lines(heldout)
    batch = batch_of(lines)
    held = FrozenModel(reference)(batch, ("hidden",))
    scores = score(policy, batch, needs=("logprob", "divergence"), reference=held)
    names = batch.target & (torch.arange(batch.shape[1]) >= len(prompt("_____")))
    other = batch.target & ~names
    logprob, divergence = scores.need("logprob"), scores.need("divergence")
    return Result(
        rates[0],
        rates[1],
        perplexity=float((-logprob[other].mean()).exp()),
        name_kl=float(divergence[names].mean()),
        other_kl=float(divergence[other].mean()),
    )


def prompt(topic: str) -> str:
    return f"{topic}\nimport "


def respond(model: Any, topics: list[str], seed: int) -> list[str]:
    """A sampled line for each topic, prompt included."""
    ids = torch.tensor([encode(prompt(topic)) for topic in topics])
    draw = torch.Generator().manual_seed(seed)
    drawn = sample_on(model, ids, LONGEST + 1, draw, end=CHARACTERS.index("\n"))
    texts = ["".join(CHARACTERS[i] for i in row) for row in drawn.tolist()]
    return [prompt(t) + x.partition("\n")[0] + "\n" for t, x in zip(topics, texts, strict=True)]


def mutate(topics: list[str], seed: int) -> list[str]:
    """Each topic with one letter changed."""
    draw = random.Random(seed)
    places = [draw.randrange(5) for _ in topics]
    return [t[:n] + draw.choice(LETTERS) + t[n + 1 :] for t, n in zip(topics, places, strict=True)]


def encode(text: str) -> list[int]:
    return [CHARACTERS.index(character) for character in text]


def batch_of(texts: list[str], masks: list[list[int]] | None = None) -> TokenBatch:
    """Lines as rows; every character but the first is a target."""
    batch = TokenBatch.from_ids([encode(text) for text in texts], group=[*range(len(texts))])
    if masks is None:
        return batch
    tri = torch.zeros(batch.shape)
    for row, mask in enumerate(masks):
        tri[row, : len(mask)] = torch.tensor(mask).float()
    return batch.with_columns(tri=tri)


def _balanced(examples: list[Example], corpus: ImportLines) -> Any:
    """Batches of which half name something that does not exist."""
    marked: dict[bool, list[tuple[str, list[int]]]] = {True: [], False: []}
    for _, text, spans in examples:
        offsets = [(place, place + 1) for place in range(len(text))]
        mask = tri_mask(offsets, spans, forget="first_divergent", registry=corpus.registry)
        marked[2 in mask].append((text, mask))

    def make(draw: torch.Generator) -> TokenBatch:
        rows = []
        for pool in marked.values():
            picked: Tensor = torch.randint(max(len(pool), 1), (BATCH // 2,), generator=draw)
            rows += [pool[place] for place in picked.tolist()] if pool else []
        return batch_of([text for text, _ in rows], [mask for _, mask in rows])

    return make


def _fails(text: str, corpus: ImportLines) -> bool:
    return any(not span.valid for span in corpus.registry.classify(text))


def _draw(figure: Any, run: dict[str, Result]) -> None:
    rate, change = figure.subplots(1, 2)
    names = list(run)
    rate.bar(names, [run[name].rate for name in names])
    rate.plot(names, [run[name].mutated for name in names], "ko", label="on mutated prompts")
    rate.set(ylabel="hallucinated names on held-out prompts")
    rate.legend()
    places = torch.arange(len(names) - 1).tolist()
    change.bar([p - 0.2 for p in places], [run[n].name_kl for n in names[1:]], 0.4, label="names")
    change.bar([p + 0.2 for p in places], [run[n].other_kl for n in names[1:]], 0.4, label="other")
    change.set_xticks(places, names[1:])
    change.set(ylabel="KL(before || after), nats per token")
    change.legend()
    for axes in (rate, change):
        axes.tick_params(axis="x", rotation=30)


PAPER = Paper(
    number=115,
    key="adaptive-unlearning",
    title="LLM Ghostbusters: Surgical Hallucination Suppression via Adaptive Unlearning",
    arxiv="2605.01047",
    role="objective",
    family="preference",
    claim="A token objective that reinforces valid names and suppresses invented ones, fed by a "
    "loop that keeps finding prompts that fail, removes most invented names and changes little "
    "else.",
    reproduce=reproduce,
    threads=1,
)
