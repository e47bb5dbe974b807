"""Reasoners without a language model: hidden states of a solution, noisy grades, five blocks.

A problem has `left` steps to its solution; it may be tangled, and other methods may be at hand. A
solution so far may be wrong. What a block does:

    reason      a step, or none with `stuck` where tangled; goes wrong with `slip`, twice that where
                tangled
    decompose   untangles, and takes no step
    debate      two steps where there are other methods, else as reason
    refine      a wrong solution is right again with `mend`
    terminate   success if no step is left and nothing is wrong

The seven grades (set-up, clarity, calculation, complexity, alternatives, closeness, completeness)
follow from this, each replaced by a random one with `noise`. The reward of a step is what it adds
to the progress, 1 - left / (steps at the start) - 1/2 where wrong, and 1 more for a success.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from tokenry.core.checks import within
from tokenry.tasks.reasoning_blocks import BLOCKS, Observation, executed

LOW, MIDDLE, HIGH = 1, 2, 3


@dataclass
class SyntheticReasoning:
    """Reasonings side by side, an `Environment` of `tasks.reasoning_blocks`.

    Args:
        slip: probabilities, in [0, 1/2] for the first, else in [0, 1].
        stuck: see `slip`, in [0, 1/2].
        mend: see `slip`, in [0, 1/2].
        noise: see `slip`, in [0, 1/2].
        tangled: shares of problems that are so.
        alternatives: see `tangled`.
        steps: the most that a problem has, in [1, inf); at least one, evenly.
        max_actions: of a reasoning, in [1, inf).
    """

    slip: float = 0.25
    stuck: float = 0.7
    mend: float = 0.8
    noise: float = 0.15
    tangled: float = 0.5
    alternatives: float = 0.25
    steps: int = 3
    max_actions: int = 6
    state: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False)
    seen: Observation = field(init=False, repr=False)

    def __post_init__(self) -> None:
        within(self, "[0, 0.5]", "slip")
        within(self, "[0, 1]", "stuck", "mend", "noise", "tangled", "alternatives")
        within(self, "[1, inf)", "steps", "max_actions", integer=True)

    def reset(self, count: int, generator: torch.Generator) -> Observation:
        """`count` new problems."""

        def chance(share: float) -> Tensor:
            return torch.rand(count, generator=generator) < share

        left = torch.randint(1, self.steps + 1, (count,), generator=generator)
        none = torch.zeros(count, dtype=torch.bool)
        self.state = {
            "left": left, "start": left.clone(), "tangled": chance(self.tangled),
            "others": chance(self.alternatives), "wrong": none, "moved": ~none, "ended": none,
            "step": torch.zeros(count, dtype=torch.long),
        }  # fmt: skip
        return self._observed(generator)

    def step(
        self, actions: Tensor, generator: torch.Generator
    ) -> tuple[Observation, Tensor, Tensor]:
        """(what is seen after actions [B], rewards [B], ended [B]); actions as executed."""
        now = self.state
        live, before, was = ~now["ended"], self.progress(), dict(now)
        draw = torch.rand(3, len(live), generator=generator)
        actions = executed(actions, self.seen, self.max_actions)
        reason, decompose, debate, refine, terminate = (
            actions == block for block in range(len(BLOCKS))
        )
        wide = debate & now["others"]
        plain = reason | (debate & ~wide)
        stuck = now["tangled"] & (draw[0] < self.stuck)
        taken = (plain & ~stuck).long() + 2 * wide.long()
        slips = draw[1] < self.slip * (1 + now["tangled"].float())
        moves = live & ~terminate
        now["left"] = torch.where(moves, (now["left"] - taken).clamp_min(0), now["left"])
        now["wrong"] = torch.where(
            moves,
            (was["wrong"] & ~(refine & (draw[2] < self.mend))) | (plain & slips),
            was["wrong"],
        )
        now["tangled"] = was["tangled"] & ~(moves & decompose)
        now["moved"] = torch.where(moves, taken > 0, now["moved"])
        now["step"] = now["step"] + live.long()
        now["ended"] = was["ended"] | terminate
        success = live & terminate & (now["left"] == 0) & ~now["wrong"]
        reward = torch.where(live, self.progress() - before + success.float(), 0.0)
        return self._observed(generator), reward, now["ended"]

    def _observed(self, generator: torch.Generator) -> Observation:
        """The grades, some of them random; nothing but an ended reasoning has an answer."""
        true = self.grades()
        random = torch.randint(LOW, HIGH + 1, true.shape, generator=generator)
        noisy = torch.rand(true.shape, generator=generator) < self.noise
        grades = torch.where(noisy, random, true)
        self.seen = Observation(grades, self.state["step"], self.state["ended"])
        return self.seen

    def progress(self) -> Tensor:
        """[B], between -1/2 and 1."""
        return 1 - self.state["left"] / self.state["start"] - 0.5 * self.state["wrong"].float()

    def solved(self) -> Tensor:
        """[B] bool: ended with no step left and nothing wrong."""
        now = self.state
        return now["ended"] & (now["left"] == 0) & ~now["wrong"]

    def grades(self) -> Tensor:
        """[B, 7], without noise."""
        now = self.state
        low_if, high_if = (
            lambda flag: torch.where(flag, LOW, HIGH),
            lambda flag: torch.where(flag, HIGH, LOW),
        )
        near = torch.where(now["left"] == 0, HIGH, torch.where(now["left"] == 1, MIDDLE, LOW))
        return torch.stack(
            [
                low_if(now["wrong"]), low_if(now["tangled"]), low_if(now["wrong"]),
                high_if(now["tangled"]), high_if(now["others"]), near, high_if(now["moved"]),
            ],
            -1,
        )  # fmt: skip
