"""PRO on prompts of three kinds, each of which asks for another virtue of the answer.

A prompt is its kind and three words; an answer may be short, may contain the prompt's words, may be
polite. Which of the three counts depends on the kind, and nobody says so: it shows only in which
answers were preferred. The orchestrator learns it from 500 preferred answers; then the policy is
trained with its weights, and with every fixed weighting of a grid, at the same settings.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from statistics import mean
from typing import Any

import torch
from torch import Tensor

from tokenry.core.batch import TokenBatch
from tokenry.lab.on_policy_world import fit_likelihood, roll_out, train_on_policy
from tokenry.lab.toy_model import toy_model
from tokenry.learn.policy.orchestrator import (
    PreferenceOrchestrator,
    fit_orchestrator,
    orchestrator_loss,
    prompt_states,
    reward_profile_targets,
)
from tokenry.learn.policy.pro import PRO
from tokenry.model.score import score
from tokenry.papers.base import Measurement, Outcome, Paper

SEEDS = 2
KINDS = ("brevity", "coverage", "politeness")
TRUE_WEIGHTS = 0.1 + 0.7 * torch.eye(3)  # what a prompt of each kind really asks for
WORDS, POLITE, END = range(3, 23), 23, 24  # ids 0 to 2 are the kinds
ASKED, LONGEST = 3, 8
PREFERRED, HELD_OUT, CANDIDATES = 500, 200, 8
FIXED = {
    "equal weights": (1 / 3, 1 / 3, 1 / 3),
    "brevity only": (0.8, 0.1, 0.1),
    "coverage only": (0.1, 0.8, 0.1),
    "politeness only": (0.1, 0.1, 0.8),
}
SETTINGS: dict[str, Any] = {
    "steps": 40,
    "batch_size": 96,
    "max_new_tokens": LONGEST,
    "eos": END,
    "learning_rate": 3e-3,
}


@dataclass(frozen=True)
class AnswerWorld:
    """Prompts, what a base policy answers, and what its answers are worth."""

    seed: int

    @cached_property
    def base(self) -> Any:
        """A policy that answers with some of the prompt's words, other words, and an end."""
        generator = torch.Generator().manual_seed(self.seed)
        untrained = toy_model(END + 1, 1 + ASKED + LONGEST, self.seed, width=48)
        return fit_likelihood(untrained, lambda: self.habits(64, generator), steps=150)

    def prompts(self, count: int, generator: torch.Generator) -> Tensor:
        """[count, 4]: a kind, then three different words."""
        kinds = torch.randint(3, (count, 1), generator=generator)
        order = torch.rand(count, len(WORDS), generator=generator).argsort(1)
        return torch.cat([kinds, WORDS.start + order[:, :ASKED]], 1)

    def habits(self, count: int, generator: torch.Generator) -> TokenBatch:
        """Prompts with answers that know the kind a little: some shorter, some closer to the
        prompt's words, some politer."""
        prompts = self.prompts(count, generator)
        brief, close, kind = (prompts[:, :1] == number for number in range(3))
        asked = torch.randint(1, 1 + ASKED, (count, LONGEST), generator=generator)
        answers = torch.randint(WORDS.start, WORDS.stop, asked.shape, generator=generator)
        draw = torch.rand(asked.shape, generator=generator)
        answers = torch.where(draw < 0.25 + 0.15 * close, prompts.gather(1, asked), answers)
        answers = torch.where((draw - 0.5).abs() < 0.05 + 0.03 * brief, END, answers)
        answers = torch.where(draw > 0.94 - 0.06 * kind, POLITE, answers)
        return batch_of(prompts, answers)

    def preferred(self, count: int, generator: torch.Generator) -> TokenBatch:
        """Prompts with the best of many answers, best by the kind's true weights."""
        batch = roll_out(
            self.base,
            self.prompts(count, generator),
            samples=CANDIDATES,
            max_new_tokens=LONGEST,
            eos=END,
            seed=int(torch.randint(2**31, (1,), generator=generator)),
        )
        best = utility(batch).view(CANDIDATES, count).argmax(0)
        return batch.select(best * count + torch.arange(count))


def reproduce(seed: int) -> Outcome:
    """Two worlds, seeds `seed` and `seed + 1`."""
    utilities: dict[str, list[float]] = {}
    divergences, predicted = [], []
    for number in range(seed, seed + SEEDS):
        world = AnswerWorld(number)
        orchestrator, divergence, weights = learnt_weights(world)
        divergences.append(divergence)
        predicted.append(weights)
        goals = {"pro": PRO(orchestrator=orchestrator)}
        goals |= {
            name: PRO(orchestrator=orchestrator, user_weights=fixed, user_share=1.0)
            for name, fixed in FIXED.items()
        }
        utilities.setdefault("before training", []).append(mean_utility(world, world.base))
        for name, goal in goals.items():
            policy, _ = train_on_policy(
                goal, world.base, world.prompts, rewards, world.base, seed=number, **SETTINGS
            )
            utilities.setdefault(name, []).append(mean_utility(world, policy))
    averages = {name: mean(values) for name, values in utilities.items()}
    best = max(FIXED, key=lambda name: averages[name])
    equal_beaten = averages["pro"] > averages["equal weights"]
    held = equal_beaten and averages["pro"] > averages[best] and mean(divergences) < 0.05
    measurements = [
        Measurement(f"{name}: utility", value, "of 1", seed + offset)
        for name, values in utilities.items()
        for offset, value in enumerate(values)
    ]
    measurements += [
        Measurement("orchestrator: KL(targets || weights) on held-out prompts", value, "nats", at)
        for at, value in enumerate(divergences, seed)
    ]
    return Outcome(
        held=held,
        needs="means over 2 worlds: the utility under each prompt's true weights is higher with "
        "the orchestrator's weights than with equal weights and than with the best fixed weights "
        "of the grid; the orchestrator's KL on held-out prompts is below 0.05 nats",
        measurements=measurements,
        reason=None
        if held
        else f"utility {averages['pro']:.3f} with the orchestrator, {averages['equal weights']:.3f}"
        f" with equal weights, {averages[best]:.3f} with the best fixed ones ({best}); held-out KL "
        f"{mean(divergences):.3f}",
        figure=lambda figure: _draw(figure, averages, predicted[0]),
    )


def rewards(batch: TokenBatch) -> Tensor:
    """Brevity, coverage of the prompt's words, politeness, each in [0, 1], [B, 3]."""
    width = batch.shape[1] - (1 + ASKED)
    answers = torch.where(batch.target, batch.ids, -1)[:, -width:]
    length = ((answers >= 0) & (answers != END)).sum(-1)
    found = (batch.ids[:, 1 : 1 + ASKED, None] == answers[:, None]).any(-1)
    polite = (answers == POLITE).any(-1)
    return torch.stack([1 - length / LONGEST, found.float().mean(-1), polite.float()], -1)


def utility(batch: TokenBatch) -> Tensor:
    """What each answer is worth under the true weights of its prompt's kind, [B]."""
    return (TRUE_WEIGHTS[batch.ids[:, 0]] * rewards(batch)).sum(-1)


def mean_utility(world: AnswerWorld, policy: Any) -> float:
    prompts = world.prompts(1500, torch.Generator().manual_seed(10_000 + world.seed))
    batch = roll_out(policy, prompts, max_new_tokens=LONGEST, eos=END, seed=world.seed)
    return float(utility(batch).mean())


def learnt_weights(world: AnswerWorld) -> tuple[PreferenceOrchestrator, float, Tensor]:
    """The orchestrator, its KL on held-out prompts, and its mean weights for each kind, [3, 3].

    The KL is to the mean target of the prompt's kind: the target of a single answer also holds its
    chance, about 0.1 nats that no prompt foretells.
    """
    generator = torch.Generator().manual_seed(100 + world.seed)
    known, new = (world.preferred(count, generator) for count in (PREFERRED, HELD_OUT))

    def states(batch: TokenBatch) -> Tensor:
        return prompt_states(batch, score(world.base, batch, ("hidden",)))

    made = fit_orchestrator(states(known), rewards(known), steps=200, seed=world.seed)
    targets, _ = reward_profile_targets(rewards(new), stats=made.stats)
    logits, kinds = made.logits(states(new)), new.ids[:, 0]
    expected = torch.stack([targets[kinds == kind].mean(0) for kind in range(3)])
    predicted = torch.stack([logits.softmax(-1)[kinds == kind].mean(0) for kind in range(3)])
    return made, float(orchestrator_loss(logits, expected[kinds])), predicted


def batch_of(prompts: Tensor, answers: Tensor) -> TokenBatch:
    """Prompts with answers that end at their first END (or at the width)."""
    ended = (answers == END).cumsum(1) - (answers == END).long() > 0
    ids = torch.cat([prompts, answers.masked_fill(ended, 0)], 1)
    target = torch.cat([torch.zeros_like(prompts, dtype=torch.bool), ~ended], 1)
    attention = torch.cat([torch.ones_like(prompts, dtype=torch.bool), ~ended], 1)
    return TokenBatch(ids, attention, target)


def _draw(figure: Any, averages: dict[str, float], predicted: Tensor) -> None:
    left, right = figure.subplots(1, 2, width_ratios=(2, 3))
    image = left.imshow(predicted, vmin=0, vmax=1, cmap="Blues")
    left.set(
        xticks=range(3),
        yticks=range(3),
        xticklabels=KINDS,
        yticklabels=KINDS,
        xlabel="weight of",
        ylabel="prompts that ask for",
        title="the orchestrator's weights",
    )
    left.tick_params(axis="x", rotation=30)
    figure.colorbar(image, ax=left, shrink=0.6)
    right.barh(list(averages), list(averages.values()))
    right.invert_yaxis()
    right.set(xlabel="utility under the prompts' true weights")


PAPER = Paper(
    number=141,
    key="pro",
    title="Preference Orchestrator: Prompt-Aware Multi-Objective Alignment",
    arxiv="2511.10656",
    role="objective",
    family="preference",
    claim="Reward weights predicted for each prompt from preferred responses align a policy better "
    "than any fixed weighting of the rewards.",
    reproduce=reproduce,
    threads=1,
)
