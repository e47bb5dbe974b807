"""On-policy training towards the reward that DPO has learnt from pairs of the preference world.

r(y) = beta log pi_dpo(y) / pi_ref(y)
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

from torch import Tensor

from tokenry.core.aggregate import per_sequence
from tokenry.lab.on_policy_world import samples_until, train_on_policy
from tokenry.lab.preference_world import PreferenceBench, fresh_samples, sampled_kl
from tokenry.learn.policy.axes import RolloutBatch
from tokenry.learn.preference.dpo import DPO
from tokenry.tasks.worlds.preference import Pairs, PreferenceWorld


@dataclass(frozen=True)
class LearntReward:
    """REINFORCE's advantage: r(y) - penalty log pi_old(y) / pi_ref(y), whitened over the batch.

    beta: of r. penalty: weight of the KL to the reference.
    """

    beta: float
    penalty: float

    rollout_needs: ClassVar[tuple[str, ...]] = ("dpo.logprob", "reference.logprob")

    def __call__(self, rollouts: RolloutBatch) -> Tensor:
        sampled = (rollouts.old_logprob, *map(rollouts.logprob_of, ("dpo", "reference")))
        own, dpo, base = (per_sequence(logprob, rollouts.mask) for logprob in sampled)
        reward = self.beta * (dpo - base) - self.penalty * (own - base)
        return (reward - reward.mean()) / (reward.std() + 1e-8)


class LearntRewardRun(NamedTuple):
    """needed: samples until the level. path: (samples, true reward). kl: to the reference, nats."""

    needed: float
    path: list[tuple[float, float]]
    kl: float


@dataclass(frozen=True)
class LearntRewardBench:
    """A world's reference, and the models that DPO and reverse DPO have made of it.

    seed: of the world. share: of DPO's progress in true reward, the level whose samples are
    counted. counted: fresh samples of a measurement. pairs: settings of the `PreferenceBench`.
    """

    seed: int
    share: float = 0.8
    counted: int = 512
    pairs: dict[str, Any] = field(default_factory=dict, hash=False)

    @cached_property
    def bench(self) -> PreferenceBench:
        settings = {"batch_size": 32, "learning_rate": 3e-4, "steps": 100, "samples": 512}
        return PreferenceBench(PreferenceWorld(self.seed), **(settings | self.pairs))

    @cached_property
    def _trained(self) -> tuple[dict[str, Any], float, float]:
        """The frozen models, and the true rewards of reference and DPO."""
        pairs, options = self.bench.pairs, {"measure_every": self.bench.steps}
        dpo, points = self.bench.train(DPO(0.3), **options)
        swapped = Pairs(pairs.rejected, pairs.chosen)
        reverse, _ = self.bench.train(DPO(0.3), pairs=swapped, **options)
        return {"dpo": dpo, "reverse": reverse}, points[0].reward, points[-1].reward

    @property
    def true_rewards(self) -> dict[str, float]:
        return dict(zip(("reference", "dpo"), self._trained[1:], strict=True))

    def train(self, objective: Any, **settings: Any) -> LearntRewardRun:
        """From the reference, on its own samples; settings of `train_on_policy`."""
        world, reference = self.bench.world, self.bench.reference
        frozen, start, top = self._trained
        path = []

        def measure(step: int, policy: Any) -> None:
            reward = world.batch_reward(fresh_samples(policy, world, self.counted)).mean()
            path.append((step * settings["batch_size"], float(reward)))

        policy, _ = train_on_policy(
            objective, reference, world.prompt, None, reference, frozen=frozen,
            max_new_tokens=world.length, seed=self.seed, measure=measure, **settings,
        )  # fmt: skip
        kl = sampled_kl(policy, reference, fresh_samples(policy, world, self.counted))
        return LearntRewardRun(samples_until(path, start + self.share * (top - start)), path, kl)
