"""A paper's record in the catalogue."""

from collections.abc import Callable
from dataclasses import dataclass

from tokenry.lab.outcome import Outcome


@dataclass(frozen=True)
class Paper:
    """A published method in the catalogue.

    number: its place in the catalogue; None for a baseline that is there to be compared with.
    key: its name on the command line and in `results/KEY.json`.
    role: what it is in the library (objective, sampler, drafter, ...); family: what it is about.
    claim: the paper's headline in one line.
    reproduce: shows the claim at laptop scale, from a seed and a `Scale`.
    threads: how many torch threads it runs with; 1 for toy models, on whose small tensors a second
        thread waits more than it works. None: torch's own choice.
    """

    number: int | None
    key: str
    title: str
    arxiv: str
    role: str
    family: str
    claim: str
    reproduce: Callable[..., Outcome]
    threads: int | None = None
