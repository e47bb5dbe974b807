"""GUARD: one constraint, five proposals; how often each satisfies it, how far it bends the model.

A 2-layer transformer is fitted to a Markov chain over 16 tokens, eight of them a text. The
constraint asks for one token, which few texts contain. Behind another first token, the prompt, the
same transformer has learned an eager version of the language, every step of which likes that token
so much that six texts of ten contain it, some of them several times: a prompt that mostly gets what
it asks for, and overdoes it. Proposals are the model itself, the prompted
model, a copy that was fitted to accepted prompted texts, and copies trained by the distributional
policy gradient, from the model as it is and from the fitted one. Whatever a proposal writes that
breaks the constraint is rejected, so all of them give valid texts only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tokenry.core.batch import TokenBatch
from tokenry.decode.constraints.base import Constraint, State, refuse
from tokenry.decode.samplers.divergences import Divergences, guard_divergences
from tokenry.decode.samplers.guard import Guard, start
from tokenry.decode.samplers.rejection import Rejection
from tokenry.decode.samplers.request import Request
from tokenry.decode.samplers.texts import text_logprobs
from tokenry.lab.on_policy_world import fit_likelihood
from tokenry.lab.toy_model import toy_model
from tokenry.learn.policy.proposal import alive, columns, train_proposal
from tokenry.papers.base import Measurement, Outcome, Paper
from tokenry.tasks.worlds.preference import MarkovPolicy, PreferenceWorld

WANTED = 0  # the token that a text must contain
RATE, PROMPTED_RATE = 0.02, 0.6  # the shares of texts that do, in the language and when prompted
STEPS, SAMPLES, LEARNING_RATE = 80, 256, 1e-3
WARM = {"warm_texts": 256, "warm_steps": 20}
TARGET_TEXTS, OUTPUT_TEXTS = 300, 600


def reproduce(seed: int) -> Outcome:
    """Held if the trained proposal is accepted far more often than the model, and bends it less
    than the prompt does."""
    world = Small(seed)
    base, wanted = world.model, world.constraint
    options = {"steps": STEPS, "samples": SAMPLES, "learning_rate": LEARNING_RATE, "rows": SAMPLES}
    options |= {"max_new_tokens": world.limit, "seed": seed}
    hinted = {"warm_prompt": [world.hint], **WARM}
    loaded = base, None
    fitted, _ = train_proposal(loaded, [world.start], wanted, **{**options, "steps": 0}, **hinted)
    cold, cold_points = train_proposal(loaded, [world.start], wanted, **options)
    warm, warm_points = train_proposal(loaded, [world.start], wanted, **options, **hinted)
    judge = Judge(world, seed)
    found = {
        "the model itself": judge(base, world.start),
        "prompted": judge(base, world.hint),
        "fitted to prompted texts": judge(fitted, world.start),
        "trained, cold start": judge(cold, world.start),
        "trained, warm start": judge(warm, world.start),
    }
    measured = [Measurement("probability of the constraint, Z", judge.z, "", seed)]
    for name, divergences in found.items():
        measured += [
            Measurement(f"{name}: acceptance rate", divergences.acceptance, "", seed),
            Measurement(f"{name}: KL(target || output)", divergences.target_output, "nats", seed),
            Measurement(f"{name}: KL(output || target)", divergences.output_target, "nats", seed),
            Measurement(
                f"{name}: KL(target || proposal)", divergences.target_proposal, "nats", seed
            ),
        ]
    measured.append(Measurement("valid texts of all outputs", judge.valid, "share", seed))
    trained, prompted = found["trained, warm start"], found["prompted"]
    often = trained.acceptance > 5 * judge.z
    near = trained.target_output < prompted.target_output
    return Outcome(
        held=often and near and judge.valid == 1.0,
        needs="warm-started training is accepted more than five times as often as the model, its "
        "output is nearer to the target than the prompted model's in KL(target || output), and "
        "every text is valid",
        measurements=measured,
        reason=f"acceptance {trained.acceptance / judge.z:.0f} times the model's at "
        f"{trained.target_output:.2f} nats from the target; the prompt: "
        f"{prompted.acceptance / judge.z:.0f} times at {prompted.target_output:.2f} nats",
        figure=lambda figure: draw(figure, found, {"cold": cold_points, "warm": warm_points}),
    )


class Small:
    """The world of one seed: a language, a constraint, and the model of both prompts."""

    def __init__(self, seed: int):
        world = PreferenceWorld(seed=seed, vocabulary=16, length=8, spread=1.2)
        self.end, self.start, self.hint = 16, 17, 18
        self.limit = world.length + 1
        generator = torch.Generator().manual_seed(seed)
        language = with_rate(world.language, RATE)
        eager = with_rate(world.language, PROMPTED_RATE)
        self.constraint = Containing(WANTED, self.end, vocabulary=19)

        def batch() -> TokenBatch:
            halves = language.sample(96, generator), eager.sample(32, generator)
            rows = [
                torch.nn.functional.pad(
                    torch.nn.functional.pad(half, (1, 0), value=first), (0, 1), value=self.end
                )
                for half, first in zip(halves, (self.start, self.hint), strict=True)
            ]
            ids = torch.cat(rows)
            every = torch.ones_like(ids, dtype=torch.bool)
            target = every.clone()
            target[:, 0] = False
            return TokenBatch(ids, every, target)

        self.model = fit_likelihood(toy_model(19, 12, seed, start=self.start), batch, steps=300)

    def request(self, model: Any, first: int, seed: int) -> Request:
        return Request(
            start(model, [first]),
            self.constraint,
            prompt_ids=(first,),
            max_new_tokens=self.limit,
            generator=torch.Generator().manual_seed(seed),
        )


def with_rate(language: MarkovPolicy, rate: float) -> MarkovPolicy:
    """The language with the wanted token's logit raised or lowered by one number in every step, so
    that this share of texts contains it."""
    low, high = -12.0, 12.0
    for _ in range(40):
        middle = (low + high) / 2
        boost = torch.zeros(language.logprob.shape[-1], dtype=language.logprob.dtype)
        boost[WANTED] = middle
        found = MarkovPolicy((language.logprob + boost).log_softmax(-1))
        low, high = (middle, high) if containing(found) < rate else (low, middle)
    return found


def containing(language: MarkovPolicy) -> float:
    """Probability that a text contains the wanted token."""
    without = language.logprob.exp()
    without[..., WANTED] = 0.0
    states = torch.zeros(without.shape[1], dtype=without.dtype)
    states[-1] = 1.0
    for step in without:
        states = torch.nn.functional.pad(states @ step, (0, 1))
    return 1.0 - float(states.sum())


class Judge:
    """Measures proposals on texts of the target, drawn once, and on their own accepted ones."""

    def __init__(self, world: Small, seed: int):
        self.world, self.seed = world, seed
        self.base = world.request(world.model, world.start, seed)
        texts = Rejection(rows=1024, max_trials=10**6)(self.base, TARGET_TEXTS)
        self.z, self.target = texts.acceptance, columns(alive(texts))
        self.of_target = text_logprobs(self.base, *self.target, rows=512)
        self.valid = 1.0

    def __call__(self, model: Any, first: int) -> Divergences:
        proposal = self.world.request(model, first, self.seed)
        if model is self.world.model and first == self.world.start:
            nothing = torch.zeros(1)
            return guard_divergences(nothing, nothing, math.log(self.z), math.log(self.z))
        guard = Guard(decoding=proposal.decoding, rows=512, max_trials=10**6)
        output = guard(self.base, OUTPUT_TEXTS)
        self.valid = min(self.valid, sum(map(self.world.constraint, output.ids)) / len(output.ids))
        ratio = self.of_target - text_logprobs(proposal, *self.target, rows=512)
        return guard_divergences(
            ratio, output.log_ratio, math.log(self.z), math.log(output.acceptance)
        )


class Containing(Constraint):
    """Texts that contain a token."""

    def __init__(self, wanted: int, end: int, vocabulary: int):
        self.wanted, self.end = wanted, end
        self.vocab_size, self.eos = vocabulary, frozenset([end])

    def __call__(self, text: Sequence[int]) -> bool:
        return self.wanted in text

    def initial(self) -> State:
        return _ContainingState(self, False, False)


@dataclass(frozen=True)
class _ContainingState:
    constraint: Containing
    met: bool
    finished: bool
    mask_cost: float = 1.0

    @property
    def complete(self) -> bool:
        return self.met and not self.finished

    def allows(self, token: int) -> bool:
        if token == self.constraint.end:
            return self.complete
        return not self.finished and 0 <= token < self.constraint.vocab_size

    def mask(self) -> Tensor:
        return torch.tensor([self.allows(t) for t in range(self.constraint.vocab_size)])

    def advance(self, token: int) -> State:
        if not self.allows(token):
            raise refuse(token, "before the wanted one")
        met = self.met or token == self.constraint.wanted
        return _ContainingState(self.constraint, met, token == self.constraint.end)


def draw(figure: Any, found: dict[str, Divergences], points: dict[str, Any]) -> None:
    """Acceptance against distortion, and acceptance during training."""
    left, right = figure.subplots(1, 2)
    for name, divergences in found.items():
        left.scatter([divergences.acceptance], [max(divergences.target_output, 0.0)], label=name)
    left.set(xlabel="acceptance rate", ylabel="KL(target ‖ output), nats", xscale="log")
    left.legend(fontsize="small")
    for name, steps in points.items():
        right.plot([p.step for p in steps], [p.acceptance for p in steps], label=f"{name} start")
    right.set(xlabel="update", ylabel="acceptance rate")
    right.legend(fontsize="small")


PAPER = Paper(
    number=21,
    key="guard",
    title="Guaranteed Generation from Large Language Models",
    arxiv="2410.06716",
    role="sampler",
    family="control",
    claim="A proposal trained towards the constrained model, followed by rejection, satisfies the "
    "constraint always, quickly, and with less distortion than a prompt that asks for it.",
    reproduce=reproduce,
    threads=1,
)
