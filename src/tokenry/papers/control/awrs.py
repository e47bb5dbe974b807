"""AWRS: exact constrained generation that asks the constraint about a few tokens only.

Two parts. On SmolLM2, a constraint that no grammar expresses (an addition whose result is right) is
a Python function on text; counted is how often AWRS calls it for each token, where a mask calls it
for every token of the vocabulary. On an enumerable toy model, the distance of the weighted texts
from the exactly known conditional distribution is compared with that of plain local masking, with
the same number of texts.
"""

import math
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tokenry.decode.constraints.base import Constraint, State
from tokenry.decode.constraints.predicate import Predicate
from tokenry.decode.generate import generate
from tokenry.decode.samplers.awrs import AWRS
from tokenry.decode.samplers.base import DEAD, Step, TokenSampler
from tokenry.decode.samplers.masked import Masked
from tokenry.decode.samplers.samples import Samples
from tokenry.decode.samplers.smc import smc
from tokenry.model.hub import load
from tokenry.papers.base import Measurement, Outcome, Paper
from tokenry.tasks.worlds.toy_lm import ToyLM, ToyState, total_variation

PROMPT = "Write an addition of two numbers with its result, like 12 + 30 = 42. Only that."
UNFINISHED = re.compile(r"(\d{1,3}( (\+( (\d{1,3}( (= ?)?)?)?)?)?)?)?")
ADDITION = re.compile(r"(\d{1,3}) \+ (\d{1,3}) = (\d+)")
PARTICLES, LIMIT, TEXTS, TOY_LIMIT = 8, 25, 2000, 5
FEW = 100
MAX_REJECTS = 500  # keeps the weights exact; without it a draw in the far tail takes thousands


def reproduce(seed: int) -> Outcome:
    """Both parts; held if calls per token are few and every toy run is nearer to the target."""
    calls = calls_on_a_real_model(seed)
    toy = [distances(other) for other in range(seed, seed + 3)]
    measured = [
        Measurement("constraint calls per token, AWRS", calls.per_token, "calls", seed),
        Measurement("most constraint calls for one token", calls.most, "calls", seed),
        Measurement("constraint calls per token, mask", calls.vocabulary, "calls", seed),
        Measurement("seconds for the calls of one mask", calls.mask_seconds, "s", seed),
        Measurement("log-probability of the constraint", calls.log_evidence, "nats", seed),
        Measurement("ended texts that are right additions", calls.right, "share", seed),
    ]
    for offset, (weighted, masked) in enumerate(toy):
        at = seed + offset
        measured.append(Measurement("distance to the target, AWRS with SMC", weighted, "TV", at))
        measured.append(Measurement("distance to the target, masking", masked, "TV", at))
    few = calls.per_token < FEW
    nearer = all(weighted < masked for weighted, masked in toy)
    reasons = [
        *([] if few else [f"{calls.per_token:.0f} calls per token are not below {FEW}"]),
        *([] if nearer else ["masking came nearer to the target on at least one toy model"]),
    ]
    return Outcome(
        held=few and nearer,
        needs=f"AWRS calls the constraint fewer than {FEW} times a token on SmolLM2 (a mask: once "
        "for each of its 49,152 tokens), and on every toy model AWRS with SMC is nearer to the "
        "enumerated conditional distribution than local masking, in total variation",
        measurements=measured,
        reason="; ".join(reasons)
        or f"with at most {MAX_REJECTS} refusals a draw: a few draws that need a token which the "
        "model finds very unlikely would take thousands of calls and dominate the mean",
        figure=lambda figure: draw(figure, calls, toy),
    )


@dataclass
class Recording(TokenSampler):
    """A sampler that keeps, for every draw, the calls that it took and its weight."""

    inner: TokenSampler
    drawn: list[Step] = field(default_factory=list)

    def steps(
        self, logprobs: Tensor, states: Sequence[State], generator: torch.Generator
    ) -> list[Step]:
        steps = self.inner.steps(logprobs, states, generator)
        self.drawn.extend(steps)
        return steps


@dataclass(frozen=True)
class Calls:
    """What the run on the real model showed."""

    per_token: float
    vocabulary: int
    mask_seconds: float
    log_evidence: float
    right: float
    drawn: list[Step]

    @property
    def most(self) -> int:
        return max(step.checks for step in self.drawn)


def calls_on_a_real_model(seed: int) -> Calls:
    """Additions from SmolLM2."""
    loaded = load("smollm2")
    constraint = Predicate(may_become_right, is_right, loaded.tokenizer)
    recording = Recording(AWRS(max_rejects=MAX_REJECTS))
    messages = [{"role": "user", "content": PROMPT}]
    samples = generate(
        loaded, messages, constraint, recording, PARTICLES, max_new_tokens=LIMIT, seed=seed
    )
    start = time.perf_counter()
    vocabulary = len(constraint.initial().mask())
    seconds = time.perf_counter() - start
    ended = [text for text, done in zip(samples.texts, samples.finished, strict=True) if done]
    right = sum(map(is_right, ended)) / max(len(ended), 1)
    return Calls(
        samples.checks_per_token, vocabulary, seconds, samples.log_evidence, right, recording.drawn
    )


def is_right(text: str) -> bool:
    """Whether the text is an addition with the right result."""
    match = ADDITION.fullmatch(text)
    return bool(match) and int(match[1]) + int(match[2]) == int(match[3])  # type: ignore[index]


def may_become_right(text: str) -> bool:
    """Whether the text begins such an addition."""
    if match := ADDITION.fullmatch(text):
        return str(int(match[1]) + int(match[2])).startswith(match[3])
    return bool(UNFINISHED.fullmatch(text))


def distances(seed: int) -> tuple[float, float]:
    """Total variation to the target on one toy model: (AWRS with SMC, local masking)."""
    model = ToyLM(vocab_size=4, order=2, eos=0, seed=seed)
    truth, _ = model.conditional(odd_sum, TOY_LIMIT)

    def found(**options: Any) -> dict[tuple[int, ...], float]:
        state = ToyState.start(model, torch.zeros(1, 0, dtype=torch.long))
        return weighted_texts(
            smc(
                state,
                OddSum(),
                particles=TEXTS,
                max_new_tokens=TOY_LIMIT,
                generator=seed,
                **options,
            )
        )

    weighted = found(sampler=AWRS(max_accepts=3))
    masked = found(sampler=Masked(), weighted=False)
    return total_variation(weighted, truth), total_variation(masked, truth)


def weighted_texts(samples: Samples) -> dict[tuple[int, ...], float]:
    """Each text with the sum of its normalised weights."""
    total: dict[tuple[int, ...], float] = {}
    for ids, weight in zip(samples.ids, samples.weights.tolist(), strict=True):
        if weight > 0:
            total[tuple(ids)] = total.get(tuple(ids), 0.0) + weight
    return total


def odd_sum(text: tuple[int, ...]) -> bool:
    """The toy constraint: token 3 at most once, no 3 right after a leading 1, an odd sum."""
    return may_get_odd(text) and sum(text) % 2 == 1


def may_get_odd(text: tuple[int, ...]) -> bool:
    return text.count(3) <= 1 and text[:2] != (1, 3)


class OddSum(Constraint):
    """`odd_sum` over four tokens, of which 0 ends the text."""

    vocab_size, eos = 4, frozenset([0])

    def initial(self) -> State:
        return _OddState(())


@dataclass(frozen=True)
class _OddState:
    text: tuple[int, ...]
    finished: bool = False
    mask_cost: float = 4.0

    @property
    def complete(self) -> bool:
        return not self.finished and odd_sum(self.text)

    def allows(self, token: int) -> bool:
        if token == 0:
            return self.complete
        return not self.finished and may_get_odd((*self.text, token))

    def mask(self) -> Tensor:
        return torch.tensor([self.allows(token) for token in range(4)])

    def advance(self, token: int) -> State:
        return _OddState(self.text, True) if token == 0 else _OddState((*self.text, token))


def draw(figure: Any, calls: Calls, toy: list[tuple[float, float]]) -> None:
    """Calls against the weight of each draw, and the distances on the toy models."""
    left, right = figure.subplots(1, 2)
    drawn = [step for step in calls.drawn if step.log_weight > DEAD]
    left.scatter([-step.log_weight / math.log(2) for step in drawn], [s.checks for s in drawn], s=8)
    left.set_yscale("log")
    left.set_xlabel("−log₂ weight of the draw (estimates the accepted mass)")
    left.set_ylabel("calls of the constraint")
    left.axhline(calls.vocabulary, linestyle="--", color="grey")
    left.text(0, calls.vocabulary, "a mask", va="bottom")
    places = range(len(toy))
    right.bar([p - 0.2 for p in places], [w for w, _ in toy], 0.4, label="AWRS with SMC")
    right.bar([p + 0.2 for p in places], [m for _, m in toy], 0.4, label="local masking")
    right.set_xticks(list(places))
    right.set_xlabel("toy model")
    right.set_ylabel("total variation to the target")
    right.legend()


PAPER = Paper(
    number=7,
    key="awrs",
    title="Fast Controlled Generation from Language Models with Adaptive Weighted Rejection "
    "Sampling",
    arxiv="2504.05410",
    role="sampler",
    family="control",
    claim="A handful of constraint checks a token, instead of one for each vocabulary entry, give "
    "texts that are valid and, with their weights, distributed as the model under the constraint.",
    reproduce=reproduce,
)
