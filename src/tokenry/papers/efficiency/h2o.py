"""H2O at laptop scale: how much of its cache SmolLM2 needs to read module documentation.

Passages of 512 tokens; the first 384 are the prompt, the last 128 are scored, teacher-forced, under
caches of a tenth to two fifths of the prompt. Every policy gets the same number of keys, shares one
prefill, and evicts as it would one token at a time. H2O, and random keys in place of its heavy
hitters, spend half of it on recent tokens, as the paper does.
"""

from typing import Any

import torch
from torch import Tensor

from tokenry.model.cache.h2o import H2O
from tokenry.model.cache.simulation import Ranking, SimulatedCache
from tokenry.papers.base import Measurement, Outcome, Paper
from tokenry.tasks.documentation import passages

PROMPT, SCORED = 384, 128
PASSAGES = 4
SHARES = (0.1, 0.2, 0.4)
SINKS = 4

Losses = dict[tuple[str, float], float]
"""(policy, share of the cache) -> nats per token."""


def reproduce(seed: int) -> Outcome:
    import tokenry

    model, tokenizer = tokenry.load("smollm2")
    ids = passages(tokenizer, PROMPT + SCORED, PASSAGES, seed)  # [P, PROMPT + SCORED]
    implementation = model.config._attn_implementation
    try:
        full, loss, scores = measure(model, ids, seed)
    finally:
        model.set_attn_implementation(implementation)
    measurements = [Measurement("full cache", full, "nats per token", seed)]
    measurements += [
        Measurement(f"{name}, {share:.0%} of the cache", value, "nats per token", seed)
        for (name, share), value in loss.items()
    ]
    top = scores.sort(-1, descending=True).values
    heavy = float((top[..., : PROMPT // 10].sum(-1) / top.sum(-1)).mean())
    measurements.append(Measurement("attention on the top tenth of the keys", heavy, "share", seed))
    h2o, window, random = (loss[name, 0.2] for name in ("h2o", "window", "random"))
    sinks = loss["sinks + window", 0.2]
    return Outcome(
        held=h2o < window and h2o < random,
        needs="loss(h2o) < loss(window) and loss(h2o) < loss(random) at 20 % of the cache",
        measurements=measurements,
        reason=(
            f"At 20 % of the cache H2O costs {h2o - full:.2f} nats over the full one, the window "
            f"{window - full:.2f}, random keys {random - full:.2f}. The paper does not compare "
            f"with {SINKS} attention sinks and a window, which cost {sinks - full:.2f} here."
        ),
        figure=lambda figure: draw(figure, full, loss, top.mean((0, 1, 2))),
    )


@torch.no_grad()
def measure(model: Any, ids: Tensor, seed: int) -> tuple[float, Losses, Tensor]:
    """Loss with the full cache, with each policy, and the prompt's scores [L, P, H, PROMPT]."""
    shared = SimulatedCache(model)
    first = model(ids[:, :PROMPT], past_key_values=shared, logits_to_keep=1).logits

    def loss(policy: H2O, ranking: Ranking = "attention") -> float:
        rest = model(ids[:, PROMPT:-1], past_key_values=shared.under(policy, ranking, seed)).logits
        logprob = torch.cat([first, rest], dim=1).float().log_softmax(-1)
        return -float(logprob.gather(-1, ids[:, PROMPT:, None]).mean())

    found: Losses = {}
    for share in SHARES:
        budget = int(share * PROMPT)
        half = budget // 2
        found["h2o", share] = loss(H2O(heavy=half, recent=budget - half))
        found["window", share] = loss(H2O(heavy=0, recent=budget))
        found["sinks + window", share] = loss(H2O(heavy=SINKS, recent=budget - SINKS), "earliest")
        found["random", share] = loss(H2O(heavy=half, recent=budget - half), "random")
    full = loss(H2O(heavy=0, recent=PROMPT + SCORED))
    return full, found, torch.stack(shared.scores())


def draw(figure: Any, full: float, loss: Losses, spectrum: Tensor) -> None:
    left, right = figure.subplots(1, 2)
    for name in dict.fromkeys(name for name, _ in loss):
        left.plot(SHARES, [loss[name, share] - full for share in SHARES], marker="o", label=name)
    left.set(xlabel="share of the prompt's cache", ylabel="loss over the full cache (nats)")
    left.legend()
    right.loglog(range(1, len(spectrum) + 1), spectrum.tolist())
    right.set(xlabel="rank of the key", ylabel="attention received", title="heavy hitters")


PAPER = Paper(
    number=81,
    key="h2o",
    title="H2O: Heavy-Hitter Oracle for Efficient Generative Inference of Large Language Models",
    arxiv="2306.14048",
    role="cache policy",
    family="efficiency",
    claim="A fifth of the cache, half heavy hitters and half recent tokens, loses far less than a "
    "window of the same size.",
    reproduce=reproduce,
)
