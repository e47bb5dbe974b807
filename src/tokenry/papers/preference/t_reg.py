"""T-REG: is the reference's own token reward a signal, and does it help when it is one?

The signal: SmolLM2-135M-Instruct scores true answers into which one wrong word was put, under a
request for a better and for a worse answer. The training: in the toy preference world, with the
true token rewards behind noise as the self-reward, and the same shuffled over all tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tokenry.lab.models import language_model
from tokenry.lab.outcome import Outcome, verdict
from tokenry.lab.plots import curves
from tokenry.lab.preference_world import PreferenceBench, add_point, frontier_gap
from tokenry.lab.scale import Scale, at
from tokenry.lab.table import Table, over_seeds, paired
from tokenry.lab.wrong_words import rewards_of_words
from tokenry.learn.preference.dpo import DPO
from tokenry.learn.preference.t_reg import TReg
from tokenry.measure.ranking import area_under_curve, separation
from tokenry.papers.base import Paper
from tokenry.tasks.suites.wrong_words import wrong_words
from tokenry.tasks.worlds.preference import PreferenceWorld

ALPHA, BETA = 0.5, 0.3
GAP = "t-reg minus dpo: reward at equal KL"
SHARPNESS = 4.0  # log-probability difference, in nats, that a token reward of 1 makes
SAMPLING_ERROR = 0.1  # of a difference of mean rewards in one world, from 512 samples each


def reproduce(seed: int, scale: Scale = "full") -> Outcome:
    """A signal without a seed; four worlds, seeds from `100 seed`."""
    worlds, answers, size = at(
        scale,
        full=(4, 12, {"fit_steps": 150, "steps": 120, "measure_every": 30, "samples": 512}),
        smoke=(2, 2, {"fit_steps": 2, "steps": 2, "measure_every": 1, "samples": 16, "drawn": 64}),
    )
    table, lines = Table(), {}
    words = rewards_of_words(TReg(), "self_reward", language_model(scale), wrong_words()[:answers])
    other, wrong = (torch.cat([word[kind] for word in words]) for kind in ("other", "wrong"))
    table.add_all(separation(other, wrong, ("other tokens", "wrong words")), name="SmolLM2")
    means = {kind: [float(word[kind].mean()) for word in words] for kind in words[0]}
    below = sum(map(float.__lt__, means["wrong"], means["right"])) / answers
    table.add("SmolLM2: wrong words below the right ones in their place", below)
    sides = means["other"], means["wrong"]
    areas = [area_under_curve(word["other"], word["wrong"]) for word in words]

    def trained(number: int):
        bench = PreferenceBench(PreferenceWorld(number), batch_size=32, learning_rate=3e-4, **size)
        rewards = noisy_rewards(bench)
        order = torch.randperm(rewards.numel(), generator=bench.generator)
        columns = {"t-reg": rewards, "t-reg, shuffled": rewards.flatten()[order].view_as(rewards)}
        objective: Any = TReg(BETA, ALPHA)
        runs = {n: bench.train(objective, columns={"self_reward": c}) for n, c in columns.items()}
        return {name: run[1] for name, run in {**runs, "dpo": bench.train(DPO(BETA))}.items()}

    for number, runs in over_seeds(trained, seed, worlds):
        for name, points in runs.items():
            add_point(table, name, points[-1], number)
            lines[f"{name} [{number}]"] = [(point.step, point.reward) for point in points]
        table.add(GAP, frontier_gap([runs["t-reg"]], [runs["dpo"]]), "per sequence", number)
    ours, control, theirs = (f"{name}: true reward" for name in runs)
    return verdict(
        table,
        {
            "SmolLM2's self-reward is lower on wrong words than beside": paired(*sides),
            "and tells them apart with an AUC above 0.5": paired(areas, [0.5] * answers),
            "T-REG's true reward after the same steps is above DPO's": table.gap(ours, theirs),
            "and with shuffled rewards it is not, by more than a sampling error": table.gap(
                theirs, control, by=-SAMPLING_ERROR
            ),
        },
        reason="its reward is bought with divergence: at equal KL it is no better",
        plots=[curves(lines, "step", "true reward")],
    )


def noisy_rewards(bench: PreferenceBench) -> Tensor:
    """What a judge of these tokens would say, [2, N, length]: signal and noise of equal size."""
    true = bench.world.token_reward[torch.stack([*bench.pairs])].float()
    noise = torch.randn(true.shape, generator=bench.generator) * true.std()
    return torch.sigmoid(SHARPNESS * (true + noise)) - 0.5


PAPER = Paper(
    number=32,
    key="t-reg",
    title="T-REG: Preference Optimization with Token-Level Reward Regularization",
    arxiv="2412.02685",
    role="objective",
    family="preference",
    claim="Token rewards that a model gives itself by contrasting a better and a worse request "
    "regularize DPO: 47.0 to 50.8 length-controlled wins on AlpacaEval 2 (Llama-3-8B).",
    reproduce=reproduce,
    threads=1,
)
