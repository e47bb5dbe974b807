"""A serving cluster as an event simulation: queues, continuous batching, caches that travel.

Each machine works in iterations. One takes new prompts from the head of its queue, up to
`prompt_limit` tokens (a longer prompt goes alone), and writes one token for every request that is
resident; it lasts

    T_p(prompt tokens)                                        where there are only prompts
    T_t(B, cached)                                            where there are only residents
    max(T_p(prompt tokens + B), T_t(B, cached))               where both share it ("mixed")

or, with batching="prompts first", residents wait while prompts are read. A policy sends every
request to a machine for its prompt and one for its tokens. If they differ, the cache travels:

    delay = latency + (1 - overlap) · bytes / bandwidth

since layers are sent while later ones are still computed. A request joins the batch when its p + g
tokens fit the machine's memory; until then it waits, in its order. Links are not shared, machines
do not fail, and what a scheduler itself takes is not counted.

Source: "Splitwise: Efficient generative LLM inference using phase splitting" (arXiv 2311.18677).
Ours: the length of a mixed iteration (exact for a roofline), and reserving memory for the whole
answer, so that nothing is ever evicted.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np

from tokenry.core.checks import in_range, one_of, within
from tokenry.core.errors import InputError
from tokenry.core.extras import require_extra
from tokenry.serving.instances import Instance, Pool
from tokenry.serving.policies import Policy, with_capacity
from tokenry.serving.trace import Trace

Batching = Literal["mixed", "prompts first"]


@dataclass(frozen=True)
class Link:
    """How caches travel: bytes per second (> 0, also inf), seconds (>= 0), and the share in [0, 1]
    that is hidden behind the prompt's computation."""

    bandwidth: float = 200e9
    latency: float = 0.0
    overlap: float = 0.9

    def __post_init__(self) -> None:
        within(self, "(0, inf]", "bandwidth")
        within(self, "[0, inf)", "latency")
        within(self, "[0, 1]", "overlap")

    def delay(self, size: float) -> float:
        return self.latency + (1 - self.overlap) * size / self.bandwidth


@dataclass(frozen=True)
class Cluster:
    """Pools of machines, the link between them, and the bytes of cache per token, >= 0."""

    pools: tuple[Pool, ...]
    kv_bytes: float = 0.0
    link: Link = field(default_factory=Link)

    def __post_init__(self) -> None:
        within(self, "[0, inf)", "kv_bytes")
        if not sum(pool.count for pool in self.pools):
            raise InputError(f"a cluster needs machines: {[pool.count for pool in self.pools]}")


@dataclass(frozen=True)
class Iteration:
    """One pass of a machine: what it read and for how many requests it wrote a token."""

    machine: int
    start: float
    end: float
    prompts: tuple[int, ...]
    batch: int
    cached: int


@dataclass(frozen=True, eq=False)
class Served:
    """What every request got, in seconds, [N] each, and what the machines did.

    ttft: to its first token; tbt_mean, tbt_max: between its tokens (NaN for answers of one token);
    e2e: to its last token. prompt_machine, token_machine: where. busy: seconds of work per
    machine. iterations: every pass, if they were recorded.
    """

    trace: Trace
    ttft: np.ndarray
    tbt_mean: np.ndarray
    tbt_max: np.ndarray
    e2e: np.ndarray
    prompt_machine: np.ndarray
    token_machine: np.ndarray
    busy: np.ndarray
    iterations: list[Iteration] = field(default_factory=list)

    @property
    def span(self) -> float:
        """Seconds from the first arrival to the last token."""
        return float((self.trace.arrival + self.e2e).max() - self.trace.arrival[0])

    @property
    def utilisation(self) -> np.ndarray:
        """Share of the time that each machine worked."""
        return self.busy / self.span

    def table(self) -> Any:
        """A pandas DataFrame with a row per request."""
        require_extra("a table", "pandas")
        import pandas as pd

        columns = ("ttft", "tbt_mean", "tbt_max", "e2e", "prompt_machine", "token_machine")
        requests = {name: getattr(self.trace, name) for name in ("arrival", "prompt", "output")}
        return pd.DataFrame(requests | {name: getattr(self, name) for name in columns})


def simulate(
    trace: Trace,
    cluster: Cluster,
    policy: Policy,
    *,
    prompt_limit: int = 2048,
    batching: Batching = "mixed",
    record: bool = False,
) -> Served:
    """Serve the whole trace; the same arguments give the same result.

    prompt_limit: tokens, >= 1. record: keep every iteration. Raises InputError for a request that
    does not fit the memory of the machines that it is sent to: prompt and answer of the one that
    writes, the prompt of one that only reads.
    """
    in_range("prompt_limit", prompt_limit, "[1, inf)", integer=True)
    one_of("batching", batching, get_args(Batching))
    return Simulation(trace, cluster, policy, prompt_limit, batching, record).run()


ARRIVAL, ITERATION, CACHE = range(3)


class Simulation:
    """The state of one run."""

    def __init__(
        self,
        trace: Trace,
        cluster: Cluster,
        policy: Policy,
        prompt_limit: int,
        batching: Batching,
        record: bool,
    ):
        self.trace, self.cluster, self.policy = trace, cluster, policy
        self.prompt_limit, self.batching, self.record = prompt_limit, batching, record
        pools = [pool for pool in cluster.pools for _ in range(pool.count)]
        self.machines = [Instance(number, pool) for number, pool in enumerate(pools)]
        self.prompt: list[int] = trace.prompt.tolist()
        self.output: list[int] = trace.output.tolist()
        count = len(trace)
        self.prompt_machine = [0] * count
        self.token_machine = [0] * count
        self.first = [math.nan] * count  # time of the first token
        self.last = [math.nan] * count
        self.joined = [0] * count  # the step of its machine with which a request begins
        self.worst_gap = [math.nan] * count
        self.events: list[tuple[float, int, int, int]] = []
        self.order = 0
        self.iterations: list[Iteration] = []

    def run(self) -> Served:
        for request, arrival in enumerate(self.trace.arrival.tolist()):
            self.at(arrival, ARRIVAL, request)
        handle = {ARRIVAL: self.arrive, ITERATION: self.finish_iteration, CACHE: self.receive}
        while self.events:
            now, _, kind, subject = heapq.heappop(self.events)
            handle[kind](now, subject)
        arrival = self.trace.arrival
        first, last = np.array(self.first), np.array(self.last)
        steps = np.where(self.trace.output > 1, self.trace.output - 1, np.nan)
        return Served(
            trace=self.trace,
            ttft=first - arrival,
            tbt_mean=(last - first) / steps,
            tbt_max=np.array(self.worst_gap),
            e2e=last - arrival,
            prompt_machine=np.array(self.prompt_machine),
            token_machine=np.array(self.token_machine),
            busy=np.array([machine.busy for machine in self.machines]),
            iterations=self.iterations,
        )

    def at(self, time: float, kind: int, subject: int) -> None:
        self.order += 1  # events of one time keep the order in which they were foreseen
        heapq.heappush(self.events, (time, self.order, kind, subject))

    def arrive(self, now: float, request: int) -> None:
        prompt, output = self.prompt[request], self.output[request]
        prompt_machine, token_machine = self.policy.route(self.machines, prompt, output)
        both = prompt_machine is token_machine
        # what a machine can never hold would wait for ever
        with_capacity([prompt_machine], prompt + (output if both else 0))
        with_capacity([token_machine], prompt + output if output > 1 or both else 0)
        self.prompt_machine[request] = prompt_machine.number
        self.token_machine[request] = token_machine.number
        prompt_machine.queue.append(request)
        prompt_machine.pending_prompt += prompt
        token_machine.pending_output += output
        token_machine.scheduled += prompt + output
        token_machine.assigned += 1
        self.start(now, prompt_machine)

    def receive(self, now: float, request: int) -> None:
        """A cache has arrived at its token machine."""
        machine = self.machines[self.token_machine[request]]
        machine.waiting.append(request)
        self.start(now, machine)

    def start(self, now: float, machine: Instance) -> None:
        """Begin an iteration, if the machine is free and there is work that fits."""
        if machine.running:
            return
        while machine.waiting:
            request = machine.waiting[0]
            size = self.prompt[request] + self.output[request]
            if machine.reserved + size > machine.capacity:
                break
            machine.waiting.popleft()
            machine.reserved += size
            self.join(machine, request)
        prompts, tokens = self.next_prompts(machine)
        writes = machine.batch > 0 and (not prompts or self.batching == "mixed")
        batch = machine.batch if writes else 0
        if not prompts and not batch:
            return
        duration = 0.0
        if prompts:
            duration = machine.phases.prompt_time(tokens + batch)
        if batch:
            duration = max(duration, machine.phases.token_time(batch, machine.cached))
        machine.reading, machine.writes, machine.running = prompts, writes, True
        machine.busy += duration
        if self.record:
            cached = machine.cached if writes else 0
            passed = (machine.number, now, now + duration, tuple(prompts), batch, cached)
            self.iterations.append(Iteration(*passed))
        self.at(now + duration, ITERATION, machine.number)

    def next_prompts(self, machine: Instance) -> tuple[list[int], int]:
        """The prompts of the next iteration, taken from the queue, and their tokens."""
        prompts, tokens = [], 0
        while machine.queue:
            request = machine.queue[0]
            size = self.prompt[request]
            stays = self.token_machine[request] == machine.number
            memory = size + (self.output[request] if stays else 0)
            if prompts and tokens + size > self.prompt_limit:
                break
            if machine.reserved + memory > machine.capacity:
                break
            machine.queue.popleft()
            machine.reserved += memory
            prompts.append(request)
            tokens += size
        return prompts, tokens

    def finish_iteration(self, now: float, number: int) -> None:
        machine = self.machines[number]
        machine.running = False
        if machine.writes:
            machine.gaps.append(now - machine.times[-1] if machine.times else 0.0)
            machine.times.append(now)
            machine.cached += machine.batch
            machine.pending_output -= machine.batch
            for request in machine.ends.pop(len(machine.times), ()):
                self.end_batch(machine, request, now)
        for request in machine.reading:
            self.first_token(machine, request, now)
        machine.reading = []
        machine.return_home()
        self.start(now, machine)

    def first_token(self, machine: Instance, request: int, now: float) -> None:
        prompt, output = self.prompt[request], self.output[request]
        token_machine = self.machines[self.token_machine[request]]
        self.first[request] = now
        machine.pending_prompt -= prompt
        token_machine.pending_output -= 1
        if token_machine is not machine:
            machine.reserved -= prompt
        if output == 1:
            if token_machine is machine:
                machine.reserved -= prompt + output
            self.last[request] = now
            self.release(token_machine, request)
        elif token_machine is machine:
            self.join(machine, request)
        else:
            delay = self.cluster.link.delay(prompt * self.cluster.kv_bytes)
            self.at(now + delay, CACHE, request)

    def join(self, machine: Instance, request: int) -> None:
        """Put a request, whose memory is reserved, into the batch."""
        step = len(machine.times)
        self.joined[request] = step
        machine.ends[step + self.output[request] - 1].append(request)
        machine.batch += 1
        machine.cached += self.prompt[request] + 1

    def end_batch(self, machine: Instance, request: int, now: float) -> None:
        begun = self.joined[request]
        gap = machine.times[begun] - self.first[request]
        self.worst_gap[request] = max(gap, max(machine.gaps[begun + 1 :], default=0.0))
        self.last[request] = now
        size = self.prompt[request] + self.output[request]
        machine.batch -= 1
        machine.cached -= size
        machine.reserved -= size
        self.release(machine, request)

    def release(self, machine: Instance, request: int) -> None:
        machine.scheduled -= self.prompt[request] + self.output[request]
        machine.assigned -= 1
        machine.return_home()
