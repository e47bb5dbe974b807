"""Best-of-n and KL-constrained alignment: exactly the same in the limit, nearly so on a real model.

Exact: coin tosses and a three-symbol source with additive reward, aligned by the tilt of KL m delta
and by best-of-exp(m delta). Real: SmolLM2's next-token distribution p after one sentence, rewarded
by log q, its distribution after another one; best-of-n is exact here too, and is compared with the
tilt of the same KL, the best that any policy can do.
"""

from __future__ import annotations

from itertools import pairwise

import torch

from tokenry.core.tilting import best_of_n_and_tilt, memoryless_alignment
from tokenry.lab.models import language_model, next_token_logprob
from tokenry.lab.outcome import Outcome, verdict
from tokenry.lab.plots import curves
from tokenry.lab.scale import Scale, at
from tokenry.lab.table import Table, paired
from tokenry.papers.base import Paper
from tokenry.tasks.suites.sentence_starts import SENTENCE_STARTS

SOURCES = {"coin": ([0.7, 0.3], [0.0, 1.0]), "three symbols": ([0.5, 0.3, 0.2], [0.0, 1.0, 3.0])}
DELTAS = (0.05, 0.1, 0.2)  # nats of KL per symbol
ALLOWED = 0.05  # of the reward's range


def reproduce(seed: int, scale: Scale = "full") -> Outcome:
    """The exact part has no randomness; the seed pairs the sentences of the real one."""
    lengths, counts, starts = at(
        scale, full=((10, 30, 100, 300), (2, 4, 8, 16, 64), 20), smoke=((10, 30), (2, 4), 3)
    )
    table, gaps, falling, small = Table(), {}, True, True
    for name, (probability, reward) in SOURCES.items():
        logprob = torch.tensor(probability, dtype=torch.float64).log()
        for delta in DELTAS:
            runs = [memoryless_alignment(logprob, reward, length, delta) for length in lengths]
            for length, run in zip(lengths, runs, strict=True):
                values = {"reward gap": run.gap, "KL(best-of-n || tilt), nats": run.kl}
                table.add_all(values, "per symbol", None, f"{name}, delta {delta}, m = {length}")
            gaps[f"{name}, delta {delta}"] = [
                (m, r.gap) for m, r in zip(lengths, runs, strict=True)
            ]
            falling &= all(b.gap < a.gap and b.kl < a.kl for a, b in pairwise(runs))
            small &= runs[-1].gap < runs[0].gap / 5
    logprob = next_token_logprob(language_model(scale), SENTENCE_STARTS[:starts])
    order = torch.randperm(len(logprob), generator=torch.Generator().manual_seed(seed))
    logprob, reward = logprob[order], logprob[order.roll(1)]  # nobody is paired with itself
    base = float((logprob.exp() * reward).sum(-1).mean())
    table.add("SmolLM2: mean reward of the base", base, "nats", seed)
    below, shares, lines = True, [], {"best of n": [], "tilt at the same KL": []}
    for count in counts:
        values = best_of_n_and_tilt(logprob, reward, count)
        kl, best, tilted = (float(value.mean()) for value in values)
        shares.append((values[2] - values[1]) / (reward.amax(-1) - reward.amin(-1)))
        named = {
            "KL from the base": kl,
            "mean reward": best,
            "reward of the tilt at that KL": tilted,
        }
        table.add_all(named, "nats", seed, f"SmolLM2, best of {count}")
        gap = float(shares[-1].mean())
        table.add(f"SmolLM2, best of {count}: gap", gap, "of the reward range", seed)
        below &= best <= tilted + 1e-9
        lines["best of n"].append((kl, best))
        lines["tilt at the same KL"].append((kl, tilted))
    widest = max(shares, key=lambda gaps: float(gaps.mean())).tolist()
    return verdict(
        table,
        {
            "for both sources and every delta the reward gap per symbol and the KL per symbol "
            "between best-of-exp(m delta) and the tilt fall with m": falling,
            "the gap to less than a fifth from m = 10 to 300": small,
            "on SmolLM2 best-of-n's reward is not above the tilt's at the same KL": below,
            "and less than 5 % of the reward range (best token minus worst) below it, for the n of "
            "the largest gap": paired([ALLOWED] * len(widest), widest),
        },
        reason="best of 64 on one token is not yet the limit",
        plots=[
            curves(gaps, "length m", "reward gap per symbol", log="xy"),
            curves(lines, "KL from the base, nats", "mean reward, nats"),
        ],
    )


PAPER = Paper(
    number=70,
    key="alignment-asymptotics",
    title="Asymptotics of Language Model Alignment",
    arxiv="2404.01730",
    role="analysis",
    family="preference",
    claim="Best-of-n with n = exp(m delta) and KL-constrained alignment at KL m delta have the "
    "same reward per symbol in the limit and a vanishing KL per symbol.",
    reproduce=reproduce,
    threads=1,
)
