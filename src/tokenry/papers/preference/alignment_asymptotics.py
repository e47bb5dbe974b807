"""Best-of-n and KL-constrained alignment: exactly the same in the limit, nearly so on a real model.

Exact: coin tosses and a three-symbol source with additive reward, aligned by the tilt of KL m delta
and by best-of-exp(m delta); how the difference per symbol falls with the length m.

Real: SmolLM2's next-token distribution p after one sentence, rewarded by log q, its distribution
after another one. Best-of-n is exact here too (the vocabulary can be listed), and is compared with
the tilt of the same KL, the best that any policy can do.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from tokenry.core.tilting import (
    Alignment,
    alpha_for_kl,
    best_of_n_distribution,
    kl_divergence,
    memoryless_alignment,
    tilt,
)
from tokenry.papers.base import Measurement, Outcome, Paper

SOURCES: dict[str, tuple[list[float], list[float]]] = {
    "coin": ([0.7, 0.3], [0.0, 1.0]),
    "three symbols": ([0.5, 0.3, 0.2], [0.0, 1.0, 3.0]),
}
DELTAS = (0.05, 0.1, 0.2)  # nats of KL per symbol
LENGTHS = (10, 30, 100, 300)
COUNTS = (2, 4, 8, 16, 64)
PROMPTS = (
    "In the morning she opened the window and saw",
    "The recipe begins with two cups of",
    "The function returns a list of",
    "My favourite season of the year is",
    "The capital of France is",
    "Once upon a time there was a",
    "The doctor looked at the results and said",
    "To install the package, run the",
    "The train to London leaves at",
    "He was so tired that he",
    "The largest planet of the solar system is",
    "I would like to thank my",
    "The company announced yesterday that",
    "Water boils at a temperature of",
    "The old man and the",
    "She put the book back on the",
    "For breakfast we usually have",
    "The students were asked to write about",
    "It was a dark and stormy",
    "The best way to learn a language is to",
)


def reproduce(seed: int) -> Outcome:
    """The exact part has no randomness; the seed pairs the prompts of the real one."""
    runs: dict[tuple[str, float], list[Alignment]] = {}
    for name, (probability, reward) in SOURCES.items():
        logprob = torch.tensor(probability, dtype=torch.float64).log()
        for delta in DELTAS:
            runs[name, delta] = [
                memoryless_alignment(logprob, reward, length, delta) for length in LENGTHS
            ]
    measurements = [
        Measurement(f"{name}, delta {delta}, m = {length}: {what}", getattr(at, field), unit)
        for (name, delta), found in runs.items()
        for length, at in zip(LENGTHS, found, strict=True)
        for what, field, unit in (
            ("reward gap", "gap", "per symbol"),
            ("KL(best-of-n || tilt)", "kl", "nats per symbol"),
        )
    ]
    falling = all(
        after.gap < before.gap and after.kl < before.kl
        for found in runs.values()
        for before, after in pairwise(found)
    )
    small = all(found[-1].gap < found[0].gap / 5 for found in runs.values())
    base, real = next_token_curves(seed)
    measurements.append(Measurement("SmolLM2: mean reward of the base", base, "nats", seed))
    for count, row in real.items():
        measurements += [
            Measurement(f"SmolLM2, best of {count}: {what}", value, unit, seed)
            for what, value, unit in zip(
                ("KL from the base", "mean reward", "reward of the tilt at that KL", "gap"),
                row,
                ("nats", "nats", "nats", "of the reward range"),
                strict=True,
            )
        ]
    below = all(best <= tilted + 1e-9 for _, best, tilted, _ in real.values())
    near = max(gap for *_, gap in real.values())
    _, most, ideal, _ = real[max(COUNTS)]
    share = (most - base) / (ideal - base)
    held = falling and small and below and near < 0.05
    return Outcome(
        held=held,
        needs="for both sources and every delta the reward gap per symbol and the KL per symbol "
        "between best-of-exp(m delta) and the tilt fall with m, the gap to less than a fifth from "
        "m = 10 to 300; on SmolLM2 best-of-n's reward is not above the tilt's at the same KL, and "
        "less than 5 % of the reward range (best token minus worst) below it, for n = 2 to 64",
        measurements=measurements,
        reason=f"on SmolLM2 best of 64 has {share:.0%} of the reward that the tilt gains at its "
        "KL: one token is not yet the limit"
        if held
        else f"gaps and KLs fall: {falling}, to a fifth: {small}; below the tilt: {below}; largest "
        f"gap {near:.1%} of the range",
        figure=lambda figure: _draw(figure, runs, real),
    )


@torch.no_grad()
def next_token_curves(seed: int) -> tuple[float, dict[int, tuple[float, float, float, float]]]:
    """The base's mean reward; n -> (mean KL, mean rewards of best-of-n and of the tilt, mean gap
    between them as a share of the range from the worst token's reward to the best one's)."""
    import tokenry

    model, tokenizer = tokenry.load("smollm2")
    logprob = torch.stack([_next_token(model, tokenizer, prompt) for prompt in PROMPTS])
    order = torch.randperm(len(PROMPTS), generator=torch.Generator().manual_seed(seed))
    logprob, reward = logprob[order], logprob[order.roll(1)]  # nobody is paired with itself
    base = (logprob.exp() * reward).sum(-1)
    span = reward.amax(-1) - reward.amin(-1)
    found = {}
    for count in COUNTS:
        best = best_of_n_distribution(logprob, reward, count)
        kl = kl_divergence(best, logprob)
        tilted = tilt(logprob, reward, alpha_for_kl(logprob, reward, kl))
        rewards = [(policy.exp() * reward).sum(-1) for policy in (best, tilted)]
        gap = ((rewards[1] - rewards[0]) / span).mean()
        values = (kl.mean(), rewards[0].mean(), rewards[1].mean(), gap)
        found[count] = tuple(float(value) for value in values)
    return float(base.mean()), found


def _next_token(model: Any, tokenizer: Any, prompt: str) -> Tensor:
    ids = torch.tensor([tokenizer(prompt)["input_ids"]])
    return model(ids, logits_to_keep=1).logits[0, -1].double().log_softmax(-1)


def _draw(
    figure: Any,
    runs: dict[tuple[str, float], list[Alignment]],
    real: dict[int, tuple[float, float, float, float]],
) -> None:
    left, right = figure.subplots(1, 2)
    for (name, delta), found in runs.items():
        style = "-" if name == "coin" else "--"
        left.loglog(LENGTHS, [at.gap for at in found], style, label=f"{name}, delta {delta}")
    left.loglog(LENGTHS, [math.sqrt(1 / m) / 10 for m in LENGTHS], "k:", label="1 / sqrt(m)")
    left.set(xlabel="length m", ylabel="reward gap per symbol")
    left.legend()
    kls = [row[0] for row in real.values()]
    right.plot(kls, [row[1] for row in real.values()], marker="o", label="best of n")
    right.plot(kls, [row[2] for row in real.values()], "k--", label="tilt at the same KL")
    right.set(xlabel="KL from the base, nats", ylabel="mean reward, nats")
    right.legend()


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
