"""Some servers in one pool, or divided into one that reads prompts and one that writes tokens.

Source: the comparison at an equal number of machines in "Splitwise: Efficient generative LLM
inference using phase splitting" (arXiv 2311.18677).
"""

from __future__ import annotations

from dataclasses import dataclass

from tokenry.core.checks import in_range, within
from tokenry.serving.instances import Pool
from tokenry.serving.phases import Machine, PhaseModel, ServedModel, cache_capacity, phases_of
from tokenry.serving.policies import Policy, SharedPool
from tokenry.serving.simulation import Batching, Cluster
from tokenry.serving.targets import SLO, max_rate_under_slo
from tokenry.serving.trace import Trace


@dataclass(frozen=True)
class Servers:
    """So many servers of one kind that serve a model.

    Args:
        model: what is served. machine: what serves it. count: servers, >= 2.
    """

    model: ServedModel
    machine: Machine
    count: int

    def __post_init__(self) -> None:
        within(self, "[2, inf)", "count", integer=True)

    @property
    def alone(self) -> PhaseModel:
        """The phases of one server."""
        return phases_of(self.model, self.machine)

    def cluster(self, prompt_servers: int | None = None) -> Cluster:
        """One pool; with `prompt_servers` so many servers for prompts and all others for tokens.

        Raises InputError for a division that leaves a pool empty.
        """
        capacity = cache_capacity(self.model, self.machine)
        if prompt_servers is None:
            pools = [Pool(self.alone, self.count, "both", capacity)]
        else:
            in_range("prompt_servers", prompt_servers, f"[1, {self.count - 1}]", integer=True)
            pools = [
                Pool(self.alone, prompt_servers, "prompt", capacity),
                Pool(self.alone, self.count - prompt_servers, "token", capacity),
            ]
        return Cluster(tuple(pools), self.model.kv_bytes)

    def shared_rate(self, trace: Trace, targets: SLO, batching: Batching) -> float:
        """The largest rate of the trace, requests per second, that one pool serves on time."""
        return max_rate_under_slo(
            trace, self.cluster(), SharedPool(), targets, self.alone, batching=batching
        )

    def best_division(self, trace: Trace, targets: SLO, policy: Policy) -> tuple[float, int]:
        """The largest rate over all divisions, and its number of prompt servers."""
        best, chosen = 0.0, 1
        for prompt_servers in range(1, self.count):
            cluster = self.cluster(prompt_servers)
            rate = max_rate_under_slo(trace, cluster, policy, targets, self.alone, above=best)
            if rate > best:
                best, chosen = rate, prompt_servers
        return best, chosen
