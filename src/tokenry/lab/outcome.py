"""The verdict on a claim: what was needed, how sure each part is, and what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from tokenry.lab.plots import Plot
from tokenry.lab.table import Evidence, Measurement, Table

Verdict = Literal["held", "not held", "undecided"]
SURE = 0.95
"""How sure the sign of a margin has to be, either way."""


@dataclass(frozen=True)
class Check:
    """One inequality of a claim.

    seeds: in how many of the margins (seeds or paired items) it was true, and of how many. margin,
    error: their mean and its standard error. sure: the probability that the true margin is above 0.
    """

    text: str
    verdict: Verdict
    seeds: tuple[int, int]
    margin: float
    error: float
    sure: float


@dataclass(frozen=True)
class Outcome:
    """What a reproduction measured, and what follows.

    reason: why it did not hold, or the limits under which it did.
    checks: the inequalities that the paper's claim requires. Decided by the code, never by hand.
    plots: pictures of the outcome.
    """

    measurements: list[Measurement]
    checks: tuple[Check, ...]
    reason: str | None = None
    plots: tuple[Plot, ...] = ()

    @property
    def verdict(self) -> Verdict:
        """not held if one check surely fails, held if all surely hold, else undecided."""
        states = {check.verdict for check in self.checks}
        if "not held" in states:
            return "not held"
        return "held" if states == {"held"} else "undecided"

    def record(self) -> dict[str, Any]:
        """As JSON: {verdict, held, needs, reason, checks, measurements, plots}."""
        record = asdict(self)
        needs = "; ".join(check.text for check in self.checks)
        held = self.verdict == "held"
        about = {"verdict": self.verdict, "held": held, "needs": needs}
        return about | {n: record[n] for n in ("reason", "checks", "measurements", "plots")}


def verdict(
    table: Table,
    checks: Mapping[str, Evidence | bool],
    *,
    reason: str | None = None,
    plots: Sequence[Plot] = (),
) -> Outcome:
    """The outcome of a table of measurements under the checks that the claim needs.

    Args:
        table: what was measured.
        checks: inequality in words -> its margins; a bool stands for something computed exactly.
        reason: what the numbers alone do not say: limits, and why it did not hold.
        plots: see `Outcome`.

    Returns:
        An Outcome that is "held" when every check is surely true (`SURE`).
    """
    decided = tuple(_check(text, evidence) for text, evidence in checks.items())
    return Outcome(list(table.measurements), decided, reason, tuple(plots))


def _check(text: str, evidence: Evidence | bool) -> Check:
    if isinstance(evidence, bool):
        evidence = Evidence((1.0 if evidence else -1.0,), exact=True)
    sure = evidence.sure
    state: Verdict = "held" if sure >= SURE else "not held" if sure <= 1 - SURE else "undecided"
    count = (evidence.above, len(evidence.margins))
    return Check(text, state, count, evidence.mean, evidence.error, sure)
