"""One bench for policies with verifiable rewards: a base that is right now and then, and a budget.

The base policy has read right answers, by default to sums with and without working
(`tasks.worlds.written_addition`), until it is right often enough to learn from its own; it is
trained once and kept. Every objective then starts from it, sees the same prompts in the same order,
and ends with the step that has used up the same number of sampled tokens, so that one that writes
longer sees fewer answers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from statistics import fmean, pstdev
from typing import Any

import torch
from torch import Tensor

from tokenry.core.aggregate import masked_mean
from tokenry.core.batch import TokenBatch
from tokenry.lab.on_policy_world import roll_out, samples_until, train_on_policy
from tokenry.lab.scale import Scale, at
from tokenry.lab.table import Table, over_seeds
from tokenry.lab.toy_training import fit_toy
from tokenry.learn.objective import Objective
from tokenry.learn.policy.presets import GRPO
from tokenry.learn.policy.sources.base import RolloutSource
from tokenry.measure.probes.critical_tokens import pass_at_k
from tokenry.model.score import score
from tokenry.tasks.worlds.split_sums import SplitSums
from tokenry.tasks.worlds.written_addition import WrittenAddition

SAMPLES = 8
"""Answers of a prompt, in training and in the measurement of pass@8's estimate (twice as many)."""
WRITTEN = WrittenAddition()
RATES = (2e-4, 5e-4)
"""Learning rates that every objective is tried with."""
UNITS = {
    "pass@1": "",
    "pass@8": "",
    "entropy": "nats",
    "length": "tokens",
    "different": "",
    "tokens to 60 %": "tokens",
    "roughness": "",
}


Outcomes = dict[tuple[str, float], dict[str, float]]
"""(method, learning rate) -> measures, by the names of `UNITS`."""


@dataclass(frozen=True)
class Trained:
    """What came of an objective: the policy, and (tokens sampled, reward) of every step."""

    policy: Any
    path: list[tuple[float, float]]

    @property
    def roughness(self) -> float:
        """Standard deviation of how the reward changes from one step to the next."""
        changes = [after - before for (_, before), (_, after) in pairwise(self.path)]
        return pstdev(changes) if changes else 0.0

    def tokens_to(self, reward: float, over: int = 8) -> float:
        """Sampled tokens until the mean reward of `over` steps gets there, or all."""
        steps = range(over, len(self.path) + 1)
        means = [(self.path[n - 1][0], fmean(r for _, r in self.path[n - over : n])) for n in steps]
        return samples_until(means or self.path[-1:], reward)


@dataclass(frozen=True)
class PolicyBench:
    """seed: of the base, the prompts and the sampling. level: how often the base is right when its
    training ends. tokens: the budget. prompts: of a step, with `SAMPLES` answers each. judged:
    prompts of a measurement. fit_steps: the most that the base trains."""

    seed: int
    level: float = 0.4
    tokens: int = 60_000
    prompts: int = 16
    judged: int = 200
    fit_steps: int = 1500
    world: WrittenAddition | SplitSums = field(default_factory=WrittenAddition)

    @cached_property
    def base(self) -> Any:
        """The policy that all start from."""
        length = self.world.context

        def good(model: Any) -> bool:
            return float(self.answers(model, self.judged, 1)[1].float().mean()) >= self.level

        data = (self.world, self.level, self.judged)
        settings: dict[str, Any] = {"steps": self.fit_steps, "good": good, "every": 25, "decay": 0}
        return fit_toy(
            self.world.given, self.world.vocabulary, length, self.seed, data=data, **settings
        )

    def train(
        self,
        objective: Objective,
        learning_rate: float = 1e-3,
        prompts: Callable[[int, torch.Generator], Tensor] | None = None,
        **options: Any,
    ) -> Trained:
        """The base trained by an objective until the budget is used up.

        prompts: other ones than the world's. options: of `train_on_policy`; the reference is the
        base.
        """
        used: list[int] = []
        size = self.prompts * SAMPLES

        def count(batch: TokenBatch) -> dict[str, float]:
            used.append(drawn_tokens(batch))
            return {}

        policy, points = train_on_policy(
            objective,
            self.base,
            prompts or self.world.prompts,
            lambda batch: self.world.correct(batch).float(),
            reference=self.base,
            steps=-(-self.tokens // size),  # an answer has one token at least
            batch_size=size,
            samples=SAMPLES,
            max_new_tokens=self.world.longest,
            eos=self.world.end,
            learning_rate=learning_rate,
            seed=self.seed,
            observe=count,
            measure=lambda done, policy: sum(used) >= self.tokens,
            **options,
        )
        rewards = [point.reward[0] for point in points]
        totals = torch.tensor(used).cumsum(0).tolist()
        return Trained(policy, list(zip(map(float, totals), rewards, strict=True)))

    @torch.no_grad()
    def measure(self, policy: Any) -> dict[str, float]:
        """Of fresh answers to prompts that are the same for every policy: pass@1 (the mean reward),
        pass@8, the entropy of a token in nats, the length in tokens, and how many different right
        answers a prompt gets in `2 SAMPLES`."""
        batch, correct = self.answers(policy, self.judged, 2 * SAMPLES)
        right = correct.view(2 * SAMPLES, self.judged).sum(0).tolist()
        passed = [pass_at_k(2 * SAMPLES, count, SAMPLES) for count in right]
        entropy = score(policy, batch, ("entropy",)).need("entropy")
        answers = batch.ids.masked_fill(~batch.target, -1)
        answers = torch.cat([self.asked_by(2 * SAMPLES)[:, None], answers], 1)
        return {
            "pass@1": float(correct.float().mean()),
            "pass@8": sum(passed) / len(passed),
            "entropy": float(masked_mean(entropy, batch.target)),
            "length": float(batch.target.sum(-1).float().mean()),
            "different": len(answers[correct].unique(dim=0)) / self.judged,
        }

    def outcome(
        self, objective: Objective, learning_rate: float, **options: Any
    ) -> dict[str, float]:
        """What a training by the objective came to, by the names of `UNITS`."""
        trained = self.train(objective, learning_rate, **options)
        path = {"tokens to 60 %": trained.tokens_to(0.6), "roughness": trained.roughness}
        return self.measure(trained.policy) | path

    def asked_by(self, samples: int) -> Tensor:
        """Which prompt each of `answers` belongs to, [samples * judged]."""
        return torch.arange(self.judged).repeat(samples)

    def answers(self, policy: Any, count: int, samples: int) -> tuple[TokenBatch, Tensor]:
        """Answers to prompts that are the same for every policy, sample after sample, and whether
        each is right, [samples * count] bool."""
        generator = torch.Generator().manual_seed(10**6 + self.seed)
        prompts, longest = self.world.prompts(count, generator), self.world.longest
        options: dict[str, Any] = {
            "max_new_tokens": longest,
            "eos": self.world.end,
            "seed": self.seed,
        }
        batch = roll_out(policy, prompts, samples=samples, **options)
        return batch, self.world.correct(batch)


def drawn_tokens(batch: TokenBatch) -> int:
    """Tokens that were sampled for the rollouts: what several rows share counts once."""
    if "node" not in batch.columns:
        return int(batch.target.sum())
    draws = torch.stack([batch.column("node")[batch.target], batch.target.nonzero()[:, 1]], 1)
    return len(draws.unique(dim=0))


def bench_sizes(scale: Scale) -> tuple[int, dict[str, Any]]:
    """How many benches a comparison takes, and the fields of each."""
    smallest: dict[str, Any] = {"tokens": 100, "prompts": 2, "judged": 4, "fit_steps": 5}
    return at(scale, full=(5, {}), smoke=(2, smallest))


def against_grpo(
    methods: Mapping[str, Objective],
    seed: int,
    scale: Scale = "full",
    tokens: int = 60_000,
    sources: Mapping[str, RolloutSource] | None = None,
    world: WrittenAddition = WRITTEN,
    **options: Any,
) -> Table:
    """Objectives and GRPO on five benches, seeds from `100 seed`, each at the better of two rates.

    Args:
        methods: the objectives by name; "grpo" is added.
        tokens: the budget at full scale.
        sources: of the rollouts of an objective, by its name, where they are not plain samples.
        world: of the benches.
        options: of `train_on_policy`, for all.

    Returns:
        `NAME: MEASURE` for every measure of `UNITS`, at the rate with the higher mean pass@1, which
        stands as `NAME: learning rate`; and `before: MEASURE`.
    """
    seeds, sizes = bench_sizes(scale)
    sizes = {"tokens": tokens, "world": world, **sizes}
    methods, table = {"grpo": GRPO(), **methods}, Table()
    own = {name: {"source": source} for name, source in (sources or {}).items()}

    def outcomes(number: int) -> Outcomes:
        bench = PolicyBench(number, **sizes)
        table.add_all(bench.measure(bench.base), "", number, "before")
        return {
            (name, rate): bench.outcome(objective, rate, **options, **own.get(name, {}))
            for name, objective in methods.items()
            for rate in RATES
        }

    add_at_better_rates(table, over_seeds(outcomes, seed, seeds))
    return table


def add_of_bases(
    table: Table,
    measure: Callable[[PolicyBench], Mapping[str, float]],
    seed: int,
    scale: Scale = "full",
    **fields: Any,
) -> None:
    """Add to a table what is measured on each bench of `against_grpo`; fields: of the benches."""
    seeds, sizes = bench_sizes(scale)

    def measured(number: int) -> Mapping[str, float]:
        return measure(PolicyBench(number, **fields | sizes))

    for number, values in over_seeds(measured, seed, seeds):
        table.add_all(values, "", number)


def add_at_better_rates(table: Table, runs: Iterable[tuple[int, Outcomes]]) -> None:
    """Add to a table what each method came to at the rate with the higher mean pass@1, as
    `NAME: MEASURE`, and that rate, `NAME: learning rate`; runs: seed by seed."""
    runs = list(runs)
    for name in dict.fromkeys(name for name, _ in runs[0][1]):
        means = {rate: fmean(run[name, rate]["pass@1"] for _, run in runs) for rate in RATES}
        best = max(RATES, key=means.__getitem__)
        table.add(f"{name}: learning rate", best)
        for number, run in runs:
            for label, value in run[name, best].items():
                table.add(f"{name}: {label}", value, UNITS[label], number)
