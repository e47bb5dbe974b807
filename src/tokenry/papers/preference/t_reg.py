"""T-REG: is the reference's own token reward a signal, and does it help when it is one?

The signal: SmolLM2-135M-Instruct scores true answers into which one wrong word was put, under a
request for a better and for a worse answer. The training: in the toy preference world, with the
true token rewards behind noise of their own size as the self-reward; the control has the same
self-rewards shuffled over all tokens.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from statistics import mean
from typing import Any

import torch
from torch import Tensor

from tokenry.lab.preference_world import (
    WorldPoint,
    fit_reference,
    frontier_gap,
    sample_sequences,
    train_in_world,
)
from tokenry.learn.data.precompute import PrecomputeContext
from tokenry.learn.preference.dpo import DPO
from tokenry.learn.preference.t_reg import TReg
from tokenry.model.hub import load
from tokenry.papers.base import Measurement, Outcome, Paper
from tokenry.tasks.worlds.preference import Pairs, PreferenceWorld
from tokenry.text.spans import token_labels

WORLDS = 2
ALPHA, BETA = 0.5, 0.3
SHARPNESS = 4.0  # log-probability difference, in nats, that a token reward of 1 makes
SAMPLING_ERROR = 0.1  # of a difference of mean rewards in one world, from 512 samples each
SETTINGS: dict[str, Any] = {
    "steps": 120,
    "batch_size": 32,
    "learning_rate": 3e-4,
    "measure_every": 30,
    "samples": 512,
}
ANSWERS = (  # [what is right|what is put in its place]
    ("Which planet do we live on?", "We live on the planet [Earth|Butter], third from the Sun."),
    ("What do cows eat?", "Cows mostly eat [grass|bricks], and they chew it more than once."),
    ("How many legs does a spider have?", "A spider has [eight|ninety] legs; an insect has six."),
    ("What is the capital of Italy?", "The capital of Italy is [Rome|Tokyo], a very old city."),
    ("What colour is fresh snow?", "Fresh snow is [white|purple], since it scatters all light."),
    ("Who painted the Mona Lisa?", "The Mona Lisa was painted by [Leonardo|Batman] in Italy."),
    ("When does ice melt?", "Ice melts at [zero|fifty] degrees Celsius and becomes water."),
    ("What is a good breakfast?", "Oats with fruit are a [healthy|poisonous] breakfast."),
    ("How do I put out a small fire?", "Cover the flames, or pour [sand|petrol] over them."),
    ("What do fish breathe with?", "Fish breathe with [gills|wheels], which take up oxygen."),
    ("How many hours are in a day?", "A day has [24|700] hours, which is 1440 minutes."),
    ("What should I do in a storm?", "Stay [inside|outside] and keep away from tall trees."),
)


@dataclass(frozen=True)
class Signal:
    """Self-rewards of SmolLM2: of the wrong words' tokens, of all other tokens of these answers,
    and of the right words in their place (the mean of each word)."""

    wrong: list[float]
    other: list[float]
    wrong_words: list[float]
    right_words: list[float]

    @property
    def auc(self) -> float:
        """The chance that a wrong token has a lower self-reward than another token."""
        wrong, other = torch.tensor(self.wrong)[:, None], torch.tensor(self.other)
        return float(((wrong < other).float() + 0.5 * (wrong == other).float()).mean())

    @property
    def words_below(self) -> float:
        pairs = zip(self.wrong_words, self.right_words, strict=True)
        return mean(float(wrong < right) for wrong, right in pairs)


def reproduce(seed: int) -> Outcome:
    """The signal, which has no seed, and two worlds, seeds `10 * seed` and `10 * seed + 1`."""
    signal = measure_signal()
    worlds = [trajectories(10 * seed + offset) for offset in range(WORLDS)]

    def gain(name: str) -> float:
        return mean(ways[name][-1].reward - ways["dpo"][-1].reward for ways in worlds)

    error = SAMPLING_ERROR / WORLDS**0.5
    helps, shuffled = gain("t-reg"), gain("t-reg, shuffled")
    trained = helps > 2 * error and shuffled < 2 * error
    gaps = [frontier_gap([ways["t-reg"]], [ways["dpo"]]) for ways in worlds]
    signalled = mean(signal.wrong) < mean(signal.other) and signal.auc > 0.5
    measurements = [
        Measurement(f"SmolLM2: {label}", value, unit)
        for label, value, unit in (
            ("mean self-reward of tokens of a wrong word", mean(signal.wrong), ""),
            ("mean self-reward of the other tokens", mean(signal.other), ""),
            ("wrong tokens below other tokens", signal.auc, "AUC"),
            ("wrong words below the right words in their place", signal.words_below, "share"),
        )
    ]
    measurements += [
        Measurement(f"{name}: {what}", getattr(points[-1], field), unit, 10 * seed + offset)
        for offset, ways in enumerate(worlds)
        for name, points in ways.items()
        for what, field, unit in (
            ("true reward", "reward", "per sequence"),
            ("KL(policy || reference)", "kl", "nats"),
        )
    ]
    measurements += [
        Measurement("t-reg minus dpo: reward at equal KL", gap, "per sequence", 10 * seed + offset)
        for offset, gap in enumerate(gaps)
    ]
    return Outcome(
        held=signalled and trained,
        needs="SmolLM2's self-reward is lower on wrong words' tokens than on the others (mean and "
        "AUC > 0.5); and in the toy world, means over 2, T-REG's true reward after the same steps "
        "is above DPO's by two standard errors, and that of T-REG with shuffled rewards is not",
        measurements=measurements,
        reason=f"signal AUC {signal.auc:.2f} on {len(signal.wrong)} wrong tokens of a 135M model; "
        f"true reward over DPO's after the same steps {helps:+.2f}, with shuffled rewards "
        f"{shuffled:+.2f} (standard error {error:.2f}); over DPO's at equal KL {mean(gaps):+.2f}",
        figure=lambda figure: _draw(figure, signal, worlds[0]),
    )


def measure_signal() -> Signal:
    """Self-rewards of the answers above, right and wrong."""
    model, tokenizer = load("smollm2")
    rows, words = [], []
    for question, template in ANSWERS:
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, tokenize=False
        )
        row: dict[str, Any] = {"prompt_ids": _ids(tokenizer, prompt)}
        found = re.search(r"\[(.*)\|(.*)\]", template)
        assert found is not None
        for side, word in (("chosen", found[1]), ("rejected", found[2])):
            row[side] = template[: found.start()] + word + template[found.end() :]
            row[f"{side}_ids"] = _ids(tokenizer, row[side])
            words.append((found.start(), found.start() + len(word), True))
        rows.append(row)
    context = PrecomputeContext(tokenizer, model)
    rows = TReg().precompute(rows, context)
    inside: dict[str, list[list[float]]] = {"chosen": [], "rejected": []}
    outside: dict[str, list[float]] = {"chosen": [], "rejected": []}
    sides = [(row, side) for row in rows for side in ("chosen", "rejected")]
    for (row, side), word in zip(sides, words, strict=True):
        labels = token_labels(context.offsets(row, side), [word], default=False)
        rewards = row[f"{side}_self_reward"]
        inside[side].append([r for r, label in zip(rewards, labels, strict=True) if label])
        outside[side] += [r for r, label in zip(rewards, labels, strict=True) if not label]
    return Signal(
        wrong=[reward for word in inside["rejected"] for reward in word],
        other=outside["rejected"],
        wrong_words=[mean(word) for word in inside["rejected"]],
        right_words=[mean(word) for word in inside["chosen"]],
    )


def _ids(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def trajectories(seed: int) -> dict[str, list[WorldPoint]]:
    """DPO, T-REG, and T-REG with shuffled self-rewards, in one world."""
    world = PreferenceWorld(seed=seed)
    generator = torch.Generator().manual_seed(seed)
    reference = fit_reference(world, seed, steps=150)
    pairs = world.pairs(2000, generator, sample_sequences(reference, world, 4000, generator))
    rewards = self_rewards(world, pairs, generator)
    order = torch.randperm(rewards.numel(), generator=generator)
    shuffled = rewards.flatten()[order].view_as(rewards)
    goal: Any = TReg(BETA, ALPHA)
    return {
        name: train_in_world(
            objective, world, reference, pairs, seed=seed, columns=columns, **SETTINGS
        )[1]
        for name, objective, columns in (
            ("dpo", DPO(BETA), {}),
            ("t-reg", goal, {"self_reward": rewards}),
            ("t-reg, shuffled", goal, {"self_reward": shuffled}),
        )
    }


def self_rewards(world: PreferenceWorld, pairs: Pairs, generator: torch.Generator) -> Tensor:
    """What a judge of these tokens would say, [2, N, length]: signal and noise of equal size."""
    true = world.token_reward[torch.stack([pairs.chosen, pairs.rejected])].float()
    noise = torch.randn(true.shape, generator=generator) * true.std()
    return torch.sigmoid(SHARPNESS * (true + noise)) - 0.5


def _draw(figure: Any, signal: Signal, ways: dict[str, list[WorldPoint]]) -> None:
    words, reward = figure.subplots(1, 2)
    low, high = min(signal.wrong_words + signal.right_words), max(signal.right_words)
    words.scatter(signal.right_words, signal.wrong_words)
    words.plot([low, high], [low, high], "k--")
    words.set(xlabel="self-reward of the right word", ylabel="of the wrong one in its place")
    for name, points in ways.items():
        reward.plot([p.step for p in points], [p.reward for p in points], marker="o", label=name)
    reward.set(xlabel="step", ylabel="true reward")
    reward.legend()


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
