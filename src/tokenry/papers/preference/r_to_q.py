"""From r to Q*: what a DPO policy knows about single tokens, and how to search with it.

Credit. Sentences of a sparse grammar; the rejected one is the chosen one with one token replaced by
an ungrammatical one, from which it goes on grammatically. After DPO the token with the lowest
implicit reward c_t = beta log(pi / pi_ref) of held-out rejected sentences should be the replaced
one, though no token was labelled.

Search. In the toy preference world, log pi of a DPO policy adds up rewards and values, so that
beam search is search for reward: its completions are compared with greedy and sampled ones. As a
control, the same for the closed-form optimum, whose likeliest completion is found exactly.

Decline. Started from a model that was fitted to the chosen completions, DPO's implicit rewards of
chosen and rejected completions must both fall: over reference samples their mean is -beta KL.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cached_property
from statistics import mean
from typing import Any

import torch
from torch import Tensor

from tokenry.core.batch import TokenBatch
from tokenry.decode.rollouts import rollouts
from tokenry.decode.search import beam_search_policy
from tokenry.lab.preference_world import fit_reference, sample_sequences
from tokenry.learn.compute import compute_loss
from tokenry.learn.fit import fit
from tokenry.learn.preference.dpo import DPO
from tokenry.learn.preference.pairs import implicit_token_rewards
from tokenry.learn.reference import FrozenModel
from tokenry.model.score import score
from tokenry.papers.base import Measurement, Outcome, Paper
from tokenry.tasks.worlds.preference import MarkovPolicy, Pairs, PreferenceWorld

RUNS = 2
CREDIT_BETA, WORLD_BETA = 1.0, 0.1
STEPS, BATCH, RATE = 100, 32, 3e-4
FIT: dict[str, int] = {"steps": 200, "batch_size": 64}
HELD_OUT = 500
PROMPT, PROMPTS, SAMPLES = 2, 100, 8
WIDTHS = (1, 2, 5, 10)
EXACT_BETAS = (0.3, 0.5, 1.0)

Row = tuple[str, float, str]
Point = tuple[float, float]


def reproduce(seed: int) -> Outcome:
    found: dict[str, list[float]] = {}
    measurements, drawn = [], {}
    for run in range(RUNS):
        at = seed * 100 + run
        shares, picture = credit(at)
        rewards, falls, curves = search_and_decline(at)
        drawn = drawn or {"picture": picture, "curves": curves, "rewards": rewards}
        for label, value, unit in (*shares, *rewards, *falls):
            found.setdefault(label, []).append(value)
            measurements.append(Measurement(label, value, unit, at))
    average = {label: mean(values) for label, values in found.items()}
    located = average["replaced token has the lowest credit"]
    sampled, greedy, beam = (
        average[f"true reward: {name}"] for name in ("sampling", "greedy", "beam of 5")
    )
    fallen = [average[f"from SFT: implicit reward of {s}"] for s in ("chosen", "rejected")]
    held = located >= 0.7 and beam > greedy >= sampled and max(fallen) < 0
    return Outcome(
        held=held,
        needs=f"means over {RUNS} worlds: in at least 70 % of held-out rejected sentences the "
        "replaced token has the lowest credit; true reward of beam search (5) > greedy >= "
        "sampling; and from an SFT start both implicit rewards end below 0",
        measurements=measurements,
        reason=None
        if held
        else f"replaced token located in {located:.0%}; implicit rewards {fallen[0]:+.2f} chosen, "
        f"{fallen[1]:+.2f} rejected; true reward: beam {beam:.2f}, greedy {greedy:.2f}, sampling "
        f"{sampled:.2f}. What search maximises is reward plus beta times the reference's "
        f"log-probability: {_exact(average)}; the trained policies are not at their optimum",
        figure=lambda figure: _draw(figure, **drawn),
    )


@dataclass(frozen=True)
class Grammar(PreferenceWorld):
    """Each token allows `successors` tokens after it. The language breaks that rule at `noise`."""

    successors: int = 4
    noise: float = 0.1

    @cached_property
    def allowed(self) -> Tensor:
        """[V + 1, V] bool; the last row is for the first token."""
        generator = torch.Generator().manual_seed(self.seed)
        ranks = torch.rand(self.vocabulary + 1, self.vocabulary, generator=generator).argsort(-1)
        return ranks < self.successors

    @cached_property
    def grammatical(self) -> MarkovPolicy:
        chain = self.allowed.double() / self.successors
        return MarkovPolicy(chain.log().expand(self.length, -1, -1))

    @cached_property
    def language(self) -> MarkovPolicy:  # type: ignore[override]
        chain = (1 - self.noise) * self.grammatical.logprob.exp() + self.noise / self.vocabulary
        return MarkovPolicy(chain.log())

    def corrupt(self, sequences: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """One token of each sequence replaced by one that may not stand there, and what follows
        by what may follow it; and the place of that token."""
        place = torch.randint(self.length, (len(sequences),), generator=generator)
        corrupted = sequences.clone()
        for step in range(self.length):
            before = corrupted[:, step - 1] if step else place.new_full(place.shape, self.start)
            fitting = self.allowed[before]
            weight = torch.where((place == step)[:, None], ~fitting, fitting).double()
            token = torch.multinomial(weight, 1, generator=generator)[:, 0]
            corrupted[:, step] = torch.where(step >= place, token, corrupted[:, step])
        return corrupted, place


def credit(seed: int) -> tuple[list[Row], tuple[Tensor, Tensor]]:
    """Where the lowest credit falls in held-out sentences; and the credit of a few of them."""
    world = Grammar(seed=seed)
    generator = torch.Generator().manual_seed(seed)
    reference = fit_reference(world, seed, **FIT)
    chosen = world.grammatical.sample(2000 + HELD_OUT, generator)
    rejected, place = world.corrupt(chosen, generator)
    pairs = Pairs(chosen[:2000], rejected[:2000])
    policy, _ = train(DPO(CREDIT_BETA), world, reference, pairs, seed)
    batch, place = world.sequences_batch(rejected[2000:]), place[2000:]
    both = score(policy, batch), score(reference, batch)
    credits = implicit_token_rewards(batch, *both, beta=CREDIT_BETA)[:, 1:]
    located = float((credits.argmin(1) == place).float().mean())
    return [("replaced token has the lowest credit", located, "")], (credits[:12], place[:12])


def search_and_decline(seed: int) -> tuple[list[Row], list[Row], dict[str, list[Point]]]:
    """In one toy world: mean true reward of completions of held-out prompts by the way they are
    found; and DPO's implicit rewards when it starts from the base and from an SFT model."""
    world = PreferenceWorld(seed=seed)
    generator = torch.Generator().manual_seed(seed)
    base = fit_reference(world, seed, **FIT)
    pairs = world.pairs(2000, generator, sample_sequences(base, world, 4000, generator))
    tuned = fine_tuned(base, world, pairs, generator)
    policy, from_base = train(DPO(WORLD_BETA), world, base, pairs, seed)
    _, from_tuned = train(DPO(WORLD_BETA), world, tuned, pairs, seed)
    curves = {"base": from_base, "SFT": from_tuned}
    falls = [
        (
            f"from {name}: implicit reward of {side}",
            mean(p[n] for p in points[-STEPS // 5 :]),
            "nats",
        )
        for name, points in curves.items()
        for n, side in enumerate(("chosen", "rejected"))
    ]
    starts = world.language.sample(PROMPTS, generator)[:, :PROMPT]
    return searched(world, base, policy, starts, seed), falls, curves


def searched(
    world: PreferenceWorld, base: Any, policy: Any, starts: Tensor, seed: int
) -> list[Row]:
    prompts = [[world.start, *start] for start in starts.tolist()]
    length = world.length - PROMPT
    table = torch.cat([world.token_reward, torch.zeros(1)])  # the start token is worth nothing

    def reward(texts: list[list[int]]) -> float:
        return float(table[torch.tensor(texts)].sum(-1).mean())

    def sampled(model: Any) -> float:
        drawn = rollouts(model, prompts, SAMPLES, max_new_tokens=length, seed=seed)
        return reward([text for texts in drawn for text in texts])

    found = [("reference, sampling", sampled(base)), ("sampling", sampled(policy))]
    for width in WIDTHS:
        texts = beam_search_policy(policy, prompts, width, max_new_tokens=length)
        found.append(("greedy" if width == 1 else f"beam of {width}", reward(texts)))
    found += exact_search(world, starts)
    return [(f"true reward: {name}", value, "per completion") for name, value in found]


def exact_search(world: PreferenceWorld, starts: Tensor) -> list[tuple[str, float]]:
    """True rewards of the greedy and of the likeliest completion of the closed-form optimum."""
    found = []
    for beta in EXACT_BETAS:
        logprob = world.optimum(beta).logprob
        value, following = logprob.new_zeros(world.vocabulary), {}
        for step in reversed(range(PROMPT, world.length)):
            best, following[step] = (logprob[step] + value).max(-1)
            value = best[:-1]
        greedy = {step: logprob[step].argmax(-1) for step in following}
        for name, choices in (("greedy", greedy), ("exact search", following)):
            token, total = starts[:, -1], torch.zeros(len(starts), dtype=torch.float64)
            for step in range(PROMPT, world.length):
                token = choices[step][token]
                total += world.token_reward[token]
            found.append((f"optimum at beta {beta:g}, {name}", float(total.mean())))
    return found


def train(
    goal: DPO, world: PreferenceWorld, reference: Any, pairs: Pairs, seed: int
) -> tuple[Any, list[Point]]:
    """DPO from the reference; the policy and, of each step, both implicit rewards."""
    policy = copy.deepcopy(reference).requires_grad_(True)
    frozen = FrozenModel(reference)
    points = []

    def loss(step: int, generator: torch.Generator) -> Tensor:
        index = torch.randint(len(pairs), (BATCH,), generator=generator)
        found = compute_loss(goal, world.batch(pairs, index), policy, frozen)
        means = [float(found.metrics[f"rewards/{side}"].mean()) for side in ("chosen", "rejected")]
        points.append((means[0], means[1]))
        return found.loss

    fit(loss, policy, steps=STEPS, learning_rate=RATE, clip=None, seed=seed)
    return policy.eval().requires_grad_(False), points


def fine_tuned(
    base: Any, world: PreferenceWorld, pairs: Pairs, generator: torch.Generator, steps: int = 60
) -> Any:
    """The base fitted to the chosen completions."""
    model = copy.deepcopy(base).requires_grad_(True)

    def loss(step: int, generator: torch.Generator) -> Tensor:
        index = torch.randint(len(pairs), (2 * BATCH,), generator=generator)
        batch: TokenBatch = world.sequences_batch(pairs.chosen[index])
        logprob = score(model, batch, ("logprob",), grad=True).need("logprob")
        return -logprob.sum() / batch.target.sum()

    fit(loss, model, steps=steps, learning_rate=RATE, clip=None, seed=generator)
    return model.eval().requires_grad_(False)


def _exact(average: dict[str, float]) -> str:
    rows = []
    for beta in EXACT_BETAS:
        found, greedy = (
            average[f"true reward: optimum at beta {beta:g}, {name}"]
            for name in ("exact search", "greedy")
        )
        rows.append(f"{found:.2f} against {greedy:.2f} at beta {beta:g}")
    return "on the closed-form optimum exact search against greedy gets " + ", ".join(rows)


def _draw(
    figure: Any,
    picture: tuple[Tensor, Tensor],
    curves: dict[str, list[Point]],
    rewards: list[Row],
) -> None:
    heat, bars, lines = figure.subplots(1, 3)
    credits, place = picture
    limit = float(credits.abs().max())
    heat.imshow(credits, cmap="RdBu", vmin=-limit, vmax=limit)
    heat.scatter(place, range(len(place)), marker="x", color="k", label="replaced token")
    heat.set(xlabel="token", ylabel="rejected sentence", title="credit c_t")
    heat.legend()
    bars.barh(
        [label.removeprefix("true reward: ") for label, *_ in rewards], [r[1] for r in rewards]
    )
    bars.set(xlabel="true reward")
    for name, points in curves.items():
        for n, side in enumerate(("chosen", "rejected")):
            lines.plot([p[n] for p in points], "-" if n == 0 else "--", label=f"{name}, {side}")
    lines.axhline(0, color="k", linewidth=0.5)
    lines.set(xlabel="step", ylabel="implicit reward")
    lines.legend()


PAPER = Paper(
    number=30,
    key="r-to-q",
    title="From r to Q*: Your Language Model is Secretly a Q-Function",
    arxiv="2404.12358",
    role="analysis",
    family="preference",
    claim="A DPO policy is an optimal Q-function: its token log-ratios locate errors without token "
    "labels, beam search on it is search for reward, and implicit rewards fall from an SFT start.",
    reproduce=reproduce,
    threads=1,
)
