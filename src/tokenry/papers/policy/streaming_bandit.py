"""Streaming bandits beside uniform exploration: regret of arms that come once, many and few.

Rewards are 0 or 1. One arm of K has the mean 0.82, the others are normal around 0.5 and at most
0.8; T = K^3 and T = 10 K^2 pulls. Every pull is charged to the arm that was pulled. And once for
prompts: 24 prefixes that ask SmolLM2 for capitals, as arms with the rates at which they are right.
"""

from __future__ import annotations

import math
from typing import get_args

import torch

from tokenry.lab.models import language_model
from tokenry.lab.outcome import Outcome, verdict
from tokenry.lab.plots import curves
from tokenry.lab.prompt_arms import prompt_rates
from tokenry.lab.scale import Scale, at
from tokenry.lab.table import Table, over_seeds
from tokenry.measure.streams.base import ArmStream, bernoulli, play
from tokenry.measure.streams.game_of_arms import GameOfArms
from tokenry.measure.streams.tournament import Form, Tournament
from tokenry.measure.streams.uniform import NaiveSearch, UniformExploration
from tokenry.papers.base import Paper
from tokenry.tasks.worlds.arms import arm_means

METHODS = {
    "uniform": UniformExploration(),
    "naive": NaiveSearch(),
    **{f"tournament, {form}": Tournament(form) for form in get_args(Form)},
    "game of arms": GameOfArms(),
}
HORIZONS = {"K³": lambda arms: arms**3, "10 K²": lambda arms: 10 * arms**2}
UNIT = "regret a pull, 1/1000"


def reproduce(seed: int, scale: Scale = "full") -> Outcome:
    """Twenty streams of each kind, seeds from `100 seed`."""
    seeds, sizes, asked = at(scale, full=(20, (200, 500, 1000), (24, 12)), smoke=(2, (9,), (2, 2)))
    table, rates = Table(), prompt_rates(language_model(scale), *asked)

    def regrets(means: list[float], budget: int, number: int) -> dict[str, float]:
        arms = [bernoulli(mean) for mean in means]
        return {
            name: 1000 * play(method, ArmStream(arms, budget, number)).regret(means) / budget
            for name, method in METHODS.items()
        }

    def measured(number: int) -> None:
        for horizon, pulls in HORIZONS.items():
            for size in sizes:
                means = arm_means(size, torch.Generator().manual_seed(number))
                found = regrets(means, pulls(size), number)
                table.add_all(found, UNIT, number, f"K = {size}, T = {horizon}")
        order = torch.randperm(len(rates), generator=torch.Generator().manual_seed(number))
        found = regrets([rates[n] for n in order.tolist()], len(rates) ** 3, number)
        table.add_all(found, UNIT, number, "prompts")

    list(over_seeds(measured, seed, seeds))
    table.add("prompts: the best is right", max(rates), "share")
    small, large = (HORIZONS[horizon](sizes[-1]) for horizon in ("10 K²", "K³"))
    for name in METHODS:  # of the regret itself, with K fixed
        low, high = (table.mean(f"K = {sizes[-1]}, T = {h}: {name}") for h in ("10 K²", "K³"))
        slope = 1 + math.log(high / low) / math.log(large / small)
        table.add(f"{name}: power of T in the regret at K = {sizes[-1]}", slope)
    checks = {}
    for size in sizes:
        at_size = f"K = {size}, T = K³"
        for form in ("log", "log log"):
            checks[f"the {form} tournament's regret is below uniform's at {at_size}"] = table.gap(
                f"{at_size}: uniform", f"{at_size}: tournament, {form}"
            )
        checks[f"and the naive search's above it at {at_size}"] = table.gap(
            f"{at_size}: naive", f"{at_size}: uniform"
        )
    lines = {
        f"{name}, T = {h}": [(k, table.mean(f"K = {k}, T = {h}: {name}") / 1000) for k in sizes]
        for h in HORIZONS
        for name in METHODS
    }
    return verdict(
        table,
        checks,
        reason="log* pulls every arm 2 / epsilon² times at its first level and is above uniform, "
        "the game of arms is level with it. Published code with less charges pulls to other arms",
        plots=[curves(lines, "K", "regret a pull", log="xy")],
    )


PAPER = Paper(
    number=65,
    key="streaming-bandit",
    title="Tight Regret Bounds for Single-pass Streaming Multi-armed Bandits",
    arxiv="2306.02208",
    role="stream selector",
    family="policy",
    claim="Arms that come once are explored with less regret by a tournament over few stored arms "
    "than by pulling each as often, and the bound K^(1/3) T^(2/3) is reached.",
    reproduce=reproduce,
    threads=1,
)
