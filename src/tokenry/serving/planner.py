"""How many of which machine: the cheapest cluster that meets latency targets at a rate.

The load of a cluster is its worst measured-to-allowed ratio over all targets (see `targets`): at
most 1 meets them. Clusters are simulated on one and the same trace, stretched to the rate.

Designs: one shared pool of each machine, and a prompt and a token pool of each pair of machines.

Source: "Splitwise: Efficient generative LLM inference using phase splitting" (arXiv 2311.18677),
its targets and its three ways to compare (equal cost, power, number). The search is ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

from tokenry.core.checks import in_range
from tokenry.core.errors import InputError
from tokenry.serving.instances import Pool
from tokenry.serving.phases import (
    Machine,
    PhaseModel,
    ServedModel,
    cache_capacity,
    phases_of,
)
from tokenry.serving.policies import MixedPools, Policy, SharedPool
from tokenry.serving.simulation import Cluster, Link, simulate
from tokenry.serving.targets import (
    SLO,
    Latencies,
    against,
    alone_on,
    latencies,
    max_rate_under_slo,
)
from tokenry.serving.trace import Trace

Measure = Literal["cost", "power", "count"]
MEASURES: tuple[Measure, ...] = ("cost", "power", "count")
MOST_MACHINES = 512


@dataclass(frozen=True)
class Design:
    """What a cluster is made of: one shared pool (prompt is None), or two."""

    prompt: Machine | None
    token: Machine

    @property
    def name(self) -> str:
        if self.prompt is None:
            return f"{self.token.name}, shared"
        return f"{self.prompt.name} + {self.token.name}"

    @property
    def machines(self) -> tuple[Machine, ...]:
        return (self.token,) if self.prompt is None else (self.prompt, self.token)

    def price(self, counts: tuple[int, ...], measure: Measure) -> float:
        """Dollars per hour, kW, or the number of machines."""
        unit = [1.0 if measure == "count" else getattr(m, measure) for m in self.machines]
        return float(sum(count * each for count, each in zip(counts, unit, strict=True)))


def designs(machines: Sequence[Machine]) -> list[Design]:
    shared = [Design(None, machine) for machine in machines]
    return shared + [Design(prompt, token) for prompt in machines for token in machines]


@dataclass(frozen=True)
class Plan:
    """A cluster and what it does: the counts of its pools in the order of the design's machines.

    rate: requests per second; load: worst latency to its target, 1 or less meets all.
    """

    design: Design
    counts: tuple[int, ...]
    rate: float
    load: float
    latencies: Latencies

    def price(self, measure: Measure) -> float:
        return self.design.price(self.counts, measure)


PhasesOf = Callable[[ServedModel, Machine], PhaseModel]


@dataclass(frozen=True)
class Planner:
    """Plans for one model, one kind of traffic, and one set of targets.

    trace: its requests are used at every rate. reference: the machine that slow-downs are measured
    against. phases: where the times of the phases come from.
    """

    model: ServedModel
    trace: Trace
    slo: SLO
    reference: Machine
    link: Link = field(default_factory=Link)
    phases: PhasesOf = phases_of

    def evaluate(self, design: Design, counts: tuple[int, ...], rate: float) -> Plan:
        """Serve the trace at a rate."""
        served = simulate(self.trace.at_rate(rate), self.cluster(design, counts), policy(design))
        times = latencies(served, self.phases(self.model, self.reference))
        return Plan(design, counts, rate, times.load(self.slo), times)

    def cluster(self, design: Design, counts: tuple[int, ...]) -> Cluster:
        roles = ("both",) if design.prompt is None else ("prompt", "token")
        pools = [
            Pool(self.phases(self.model, each), count, role, cache_capacity(self.model, each))
            for each, count, role in zip(design.machines, counts, roles, strict=True)
        ]
        return Cluster(tuple(pools), self.model.kv_bytes, self.link)

    def alone(self, design: Design) -> Plan:
        """One machine of each pool and no other request: the best that the design can do."""
        reference = self.phases(self.model, self.reference)
        prompt_phases = self.phases(self.model, design.prompt or design.token)
        token_phases = self.phases(self.model, design.token)
        travel = None if design.prompt is None else self.moved
        times = against(
            alone_on(prompt_phases, token_phases, self.trace, travel),
            alone_on(reference, reference, self.trace),
        )
        counts = (1,) * len(design.machines)
        return Plan(design, counts, 0.0, times.load(self.slo), times)

    def moved(self, tokens: int) -> float:
        """Seconds until a cache of so many tokens is on the other machine."""
        return self.link.delay(tokens * self.model.kv_bytes)

    def smallest(
        self, design: Design, rate: float, minimise: Measure = "cost", limit: float = math.inf
    ) -> Plan | None:
        """The cheapest counts that meet the targets at `rate`; None where none does within
        `limit` (in the measure that is minimised)."""
        if self.alone(design).load > 1:
            return None

        @cache
        def plan(*counts: int) -> Plan:
            return self.evaluate(design, counts, rate)

        fewest = self.lower_bounds(design, rate)
        if max(fewest) > MOST_MACHINES:
            self.cluster(design, fewest)  # says so where not even the weights fit a machine
            return None
        if design.prompt is None:
            count = fewest_that(lambda n: plan(n).load <= 1, fewest[0])
            chosen = None if count is None else plan(count)
        else:
            chosen = self.staircase(design, plan, fewest, minimise, limit)
        return chosen if chosen is not None and chosen.price(minimise) <= limit else None

    @staticmethod
    def staircase(
        design: Design,
        plan: Callable[..., Plan],
        fewest: tuple[int, ...],
        minimise: Measure,
        limit: float,
    ) -> Plan | None:
        """More prompt machines need no more token machines, so one walk along the edge of what
        meets the targets sees every candidate."""
        reading, best = fewest[0], None
        ample = min(2 * fewest[1] + 2, MOST_MACHINES)
        while reading <= MOST_MACHINES and plan(reading, ample).load > 1:
            if reading >= 2 * fewest[0] + 8:  # more of them do not help: it is the others
                if ample == MOST_MACHINES:
                    return None
                ample, reading = min(2 * ample, MOST_MACHINES), fewest[0]
                continue
            reading += 1
        writing = ample
        while True:
            if best is not None and design.price((reading, fewest[1]), minimise) >= best.price(
                minimise
            ):
                return best
            least = fewest_that(lambda n, m=reading: plan(m, n).load <= 1, fewest[1], most=writing)
            if least is None:
                return best
            writing = least
            candidate = plan(reading, writing)
            if best is None or candidate.price(minimise) < best.price(minimise):
                best = candidate
            if writing == fewest[1]:
                return best
            reading += 1

    def lower_bounds(self, design: Design, rate: float) -> tuple[int, ...]:
        """Fewer machines than this would be asked for more work than there are seconds."""
        step = 16384  # a long batch: no prompt token costs less
        work = []
        for index, each in enumerate(design.machines):
            phases = self.phases(self.model, each)
            reading = min(phases.prompt_time(n) / n for n in (512, 1024, 2048, 4096, step))
            batch = 512
            cached = int(batch * self.trace.prompt.mean())
            writing = phases.token_time(batch, cached) / batch
            seconds = 0.0
            if index == 0:
                seconds = float(self.trace.prompt.mean()) * reading
            if index == len(design.machines) - 1:
                seconds = max(seconds, float(self.trace.output.mean() - 1) * writing)
            work.append(max(1, math.floor(rate * seconds)))
        return tuple(work)

    def fastest(self, design: Design, budget: float, measure: Measure) -> Plan | None:
        """The split of a budget with the largest rate under the targets, by climbing from equal
        parts; None where nothing fits the budget or meets the targets."""
        candidates = list(partitions(design, budget, measure))
        if not candidates or self.alone(design).load > 1:
            return None

        def rate(index: int, above: float) -> float:
            return max_rate_under_slo(
                self.trace,
                self.cluster(design, candidates[index]),
                policy(design),
                self.slo,
                self.phases(self.model, self.reference),
                above=above * 1.02,  # within the tolerance of a rate is not better
            )

        index, step = len(candidates) // 2, max(1, len(candidates) // 4)
        best, tried = rate(index, 0.0), {index}
        while step:
            moved = False
            for other in (index - step, index + step):
                if 0 <= other < len(candidates) and other not in tried:
                    tried.add(other)
                    if (faster := rate(other, best)) > best:
                        best, index, moved = faster, other, True
            if not moved:
                step //= 2
        return self.evaluate(design, candidates[index], best) if best else None


def policy(design: Design) -> Policy:
    return SharedPool() if design.prompt is None else MixedPools()


def partitions(design: Design, budget: float, measure: Measure) -> Iterator[tuple[int, ...]]:
    """The counts that use up a budget, by the number of prompt machines."""
    if design.prompt is None:
        count = int(budget / design.price((1,), measure) + 1e-9)
        if count:
            yield (min(count, MOST_MACHINES),)
        return
    for reading in range(1, MOST_MACHINES):
        left = budget - design.price((reading, 0), measure)
        writing = int(left / design.price((0, 1), measure) + 1e-9)
        if writing < 1:
            return
        yield reading, min(writing, MOST_MACHINES)


def fewest_that(good: Callable[[int], bool], fewest: int, most: int = MOST_MACHINES) -> int | None:
    """The smallest n in fewest..most with good(n), which stays true once it is; None if none."""
    low, high = fewest - 1, min(fewest, most)
    while not good(high):
        if high >= most:
            return None
        low, high = high, min(2 * high, most)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if good(middle) else (middle, high)
    return high


def search_pools(
    planner: Planner,
    machines: Sequence[Machine],
    *,
    rate: float | None = None,
    minimise: Measure = "cost",
    budget: float | None = None,
    progress: Callable[[str, int, int], Any] = lambda name, done, total: None,
) -> list[Plan]:
    """The best plan of every design, best first.

    With a rate: the cheapest that serves it under the targets, within the budget if there is one.
    With a budget alone (in the measure `minimise`): the largest rate under the targets. Raises
    InputError where no design can, with the target that is in the way.
    """
    if rate is None and budget is None:
        raise InputError("a plan needs a rate to serve or a budget to use up")
    in_range("rate", rate, "(0, inf)", optional=True)
    in_range(f"{minimise} budget", budget, "(0, inf)", optional=True)
    if not machines:
        raise InputError("a plan needs at least one kind of machine")
    plans, choices = [], designs(machines)
    for number, design in enumerate(choices):
        progress(design.name, number, len(choices))
        if rate is not None:
            limit = math.inf if budget is None else budget
            plan = planner.smallest(design, rate, minimise, limit)
        else:
            assert budget is not None
            plan = planner.fastest(design, budget, minimise)
        if plan is not None:
            plans.append(plan)
    if not plans:
        raise InputError(why_nothing(planner, choices, rate, minimise, budget))
    if rate is not None:
        return sorted(plans, key=lambda plan: (plan.price(minimise), plan.load))
    return sorted(plans, key=lambda plan: -plan.rate)


def why_nothing(
    planner: Planner,
    choices: Sequence[Design],
    rate: float | None,
    minimise: Measure,
    budget: float | None,
) -> str:
    """Which target no machine meets even for a request alone, or what the budget lacks."""
    alone = [planner.alone(design) for design in choices]
    best = min(alone, key=lambda plan: plan.load)
    if best.load > 1:
        names = ", ".join(sorted({design.token.name for design in choices}))
        return (
            f"no cluster of {names} meets the latency targets: even without load, "
            f"{best.design.name} has a {best.latencies.worst(planner.slo)}; take faster machines, "
            "looser targets, or another machine to measure against"
        )
    if budget is not None:
        goal = "any load" if rate is None else f"{rate:g} requests per second"
        return f"no cluster within a {minimise} budget of {budget:g} serves {goal} on time"
    return (
        f"no cluster of up to {MOST_MACHINES} machines a pool serves {rate:g} requests per second"
    )
