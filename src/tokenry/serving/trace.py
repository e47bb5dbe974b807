"""Requests to a served model: when they come, and how long their prompts and answers are.

Lengths follow two production services, a coding assistant and a conversation, by the quantiles of
their published week-day trace; arrivals are a Poisson process. In that trace the lengths of a
prompt and of its answer are unrelated (rank correlation -0.02 and 0.07), so they are drawn
independently. A trace of one's own is a CSV file.

Source: "Splitwise: Efficient generative LLM inference using phase splitting" (arXiv 2311.18677);
quantiles taken by us from the Azure LLM inference trace of 2023 (8819 and 19366 requests).
"""

from __future__ import annotations

import csv
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

import numpy as np

from tokenry.core.checks import in_range
from tokenry.core.errors import InputError, UnknownNameError

MOST_REQUESTS = 1_000_000

# fmt: off
LEVELS = (
    0, 0.01, 0.025, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55,
    0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.925, 0.95, 0.975, 0.99, 0.995, 0.999, 1,
)
# fmt: on


@dataclass(frozen=True)
class Lengths:
    """Tokens of prompts and answers: their quantiles at LEVELS, joined by straight lines."""

    prompt: tuple[int, ...]
    output: tuple[int, ...]

    def draw(self, count: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Independent (prompt, output) lengths, [count] each, at least one token."""
        uniform = generator.random((2, count))
        prompt, output = (
            np.rint(np.interp(u, LEVELS, quantiles)).astype(np.int64)
            for u, quantiles in zip(uniform, (self.prompt, self.output), strict=True)
        )
        return np.maximum(prompt, 1), np.maximum(output, 1)


# fmt: off
LENGTHS = {
    "coding": Lengths(
        prompt=(
            3, 17, 44, 75, 147, 232, 386, 578, 770, 939, 1075, 1261, 1469, 1690,
            1909, 2164, 2433, 2744, 3192, 3920, 5188, 6097, 7303, 7435, 7436, 7436, 7437, 7437,
        ),
        output=(
            6, 6, 6, 6, 7, 7, 8, 9, 9, 10, 11, 12, 13, 14,
            16, 18, 20, 24, 29, 39, 55, 69, 90, 145, 251, 359, 825, 1899,
        ),
    ),
    "conversation": Lengths(
        prompt=(
            2, 29, 120, 181, 207, 372, 387, 396, 403, 414, 703, 984, 1020, 1045,
            1071, 1097, 1130, 1189, 1315, 1876, 2734, 4075, 4083, 4092, 4142, 4831, 6179, 14050,
        ),
        output=(
            7, 16, 28, 41, 54, 67, 77, 85, 91, 96, 103, 113, 129, 151,
            177, 217, 384, 395, 400, 411, 424, 430, 451, 522, 601, 643, 954, 1000,
        ),
    ),
}
# fmt: on


@dataclass(frozen=True, eq=False)
class Trace:
    """Requests in the order of their arrival: seconds, prompt tokens, tokens to write; [N] each."""

    arrival: np.ndarray
    prompt: np.ndarray
    output: np.ndarray

    def __post_init__(self) -> None:
        if not len(self.arrival) == len(self.prompt) == len(self.output):
            raise InputError("a trace needs as many arrivals as prompts and outputs")
        if not len(self.arrival):
            raise InputError("a trace without requests cannot be served")
        if not np.isfinite(self.arrival).all() or (np.diff(self.arrival) < 0).any():
            raise InputError("arrivals must be seconds in rising order")
        if min(self.prompt.min(), self.output.min()) < 1:
            raise InputError("every request needs at least one prompt token and one output token")

    def __len__(self) -> int:
        return len(self.arrival)

    @property
    def rate(self) -> float:
        """Requests per second, over the time from the first to the last."""
        span = float(self.arrival[-1] - self.arrival[0])
        if len(self) < 2 or span <= 0:
            raise InputError("a trace needs two requests at different times to have a rate")
        return (len(self) - 1) / span

    def at_rate(self, rate: float) -> Trace:
        """The same requests in the same order, their arrivals stretched or pressed."""
        in_range("rate", rate, "(0, inf)")
        start = self.arrival[0]
        return replace(self, arrival=(self.arrival - start) * (self.rate / rate))


def poisson_trace(
    rate: float, lengths: Lengths | str = "conversation", requests: int = 2000, seed: int = 0
) -> Trace:
    """Poisson arrivals of `requests` requests at `rate` a second, their lengths drawn from
    `lengths` ("coding", "conversation", or quantiles of one's own)."""
    in_range("rate", rate, "(0, inf)")
    in_range("requests", requests, f"[1, {MOST_REQUESTS}]", integer=True)
    if isinstance(lengths, str):
        if lengths not in LENGTHS:
            raise UnknownNameError("trace", lengths, LENGTHS)
        lengths = LENGTHS[lengths]
    generator = np.random.default_rng(seed)
    arrival = generator.exponential(1 / rate, requests).cumsum()
    return Trace(arrival, *lengths.draw(requests, generator))


COLUMNS = {
    "arrival": ("arrival", "TIMESTAMP"),
    "prompt": ("prompt", "ContextTokens"),
    "output": ("output", "GeneratedTokens"),
}


def read_trace(path: str | Path) -> Trace:
    """A CSV file with the columns arrival (seconds or a date), prompt and output (tokens).

    The columns of the published Azure traces are known by their names. Raises InputError with the
    line that cannot be read.
    """
    path = Path(path)
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = csv.DictReader(file)
            names = {
                field: next((name for name in known if name in (rows.fieldnames or ())), None)
                for field, known in COLUMNS.items()
            }
            if missing := [field for field, name in names.items() if name is None]:
                raise InputError(
                    f"{path} has no column {' and no column '.join(missing)}: the first line must "
                    "be arrival,prompt,output"
                )
            requests = [read_request(row, names, f"{path}:{rows.line_num}") for row in rows]
    except FileNotFoundError:
        raise InputError(f"no such file: {path}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} is not a CSV file: {error}") from None
    if not requests:
        raise InputError(f"{path} has no rows: a trace needs at least two requests")
    requests.sort(key=lambda request: request[0])
    arrival, prompt, output = (np.array(column) for column in zip(*requests, strict=True))
    return Trace(arrival, prompt, output)


def read_request(
    row: dict[str, str], names: dict[str, str | None], place: str
) -> tuple[float, int, int]:
    arrival, prompt, output = (row[name or ""] for name in names.values())
    try:
        return seconds_of(arrival), int(prompt), int(output)
    except (TypeError, ValueError):
        raise InputError(
            f"{place}: {arrival!r}, {prompt!r}, {output!r} is not a time and two token counts"
        ) from None


def seconds_of(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return datetime.fromisoformat(text.strip()[:26]).timestamp()
