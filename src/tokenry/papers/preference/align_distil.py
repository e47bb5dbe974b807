"""AlignDistil in the toy preference world: does a teacher at every token save samples?

DPO and reverse DPO are trained on the pairs first. From the reference, three on-policy methods then
chase the reward that DPO has learnt: REINFORCE with the sequence's DPO reward and a KL penalty;
distillation from the fixed teacher, which has the very same optimum at every state; and AlignDistil
with its reverse model and adaptive weights. Each has the better of two learning rates.
"""

from __future__ import annotations

from tokenry.lab.learnt_reward import LearntReward, LearntRewardBench, LearntRewardRun
from tokenry.lab.outcome import Outcome, verdict
from tokenry.lab.plots import curves
from tokenry.lab.scale import Scale, at
from tokenry.lab.table import Table, over_seeds
from tokenry.learn.policy.gradient import PolicyGradient
from tokenry.learn.preference.align_distil import AlignDistil
from tokenry.papers.base import Paper

BETA, WEIGHT = 0.1, 2.0  # BETA / WEIGHT is the weight of the KL penalty
METHODS = {
    "reinforce": PolicyGradient(LearntReward(BETA, BETA / WEIGHT), aggregation="sequence-sum"),
    "fixed teacher": AlignDistil(BETA, weight=WEIGHT, against="reference"),
    "aligndistil": AlignDistil(BETA),
}
RATES = (3e-4, 1e-3)
SAMPLES, REWARD = "samples until 80% of DPO's progress", "true reward"


def reproduce(seed: int, scale: Scale = "full") -> Outcome:
    """Four worlds, seeds from `100 seed`."""
    small = {"fit_steps": 2, "drawn": 64, "steps": 2, "samples": 16}
    worlds, counted, pairs, settings = at(
        scale,
        full=(4, 256, {}, {"steps": 40, "batch_size": 64, "every": 5}),
        smoke=(2, 16, small, {"steps": 1, "batch_size": 8}),
    )
    table, lines = Table(), {}

    def trained(number: int) -> tuple[dict[str, float], dict[str, list[LearntRewardRun]]]:
        bench = LearntRewardBench(number, counted=counted, pairs=pairs)
        return bench.true_rewards, {
            name: [bench.train(method, learning_rate=rate, **settings) for rate in RATES]
            for name, method in METHODS.items()
        }

    for number, (rewards, runs) in over_seeds(trained, seed, worlds):
        for name, reward in rewards.items():
            table.add(f"{name}: {REWARD}", reward, "per sequence", number)
        for name, by_rate in runs.items():
            for rate, run in zip(RATES, by_rate, strict=True):
                label = f"{name}, rate {rate}: final"
                table.add(f"{label} {REWARD}", run.path[-1][1], "per sequence", number)
                table.add(f"{label} KL to the reference", run.kl, "nats", number)
            fastest = min(by_rate, key=lambda run: run.needed)
            table.add(f"{name}: {SAMPLES}", fastest.needed, "samples", number)
            table.add(f"{name}: final {REWARD}", fastest.path[-1][1], "per sequence", number)
            lines[f"{name} [{number}]"] = fastest.path
    return verdict(
        table,
        {
            "with the faster of two learning rates each, the fixed teacher needs fewer samples "
            "than REINFORCE until 80% of DPO's progress in true reward": table.gap(
                f"reinforce: {SAMPLES}", f"fixed teacher: {SAMPLES}"
            ),
            "so does AlignDistil": table.gap(f"reinforce: {SAMPLES}", f"aligndistil: {SAMPLES}"),
            "AlignDistil's final true reward is above DPO's": table.gap(
                f"aligndistil: final {REWARD}", f"dpo: {REWARD}"
            ),
        },
        reason="a method that never gets there counts with all samples that it drew",
        plots=[curves(lines, "samples", REWARD)],
    )


PAPER = Paper(
    number=118,
    key="align-distil",
    title="AlignDistil: Token-Level Language Model Alignment as Adaptive Policy Distillation",
    arxiv="2503.02832",
    role="objective",
    family="preference",
    claim="RLHF with DPO's reward is distillation from a teacher that extrapolates DPO's logits; "
    "done at every token with adaptive strength, it converges with far fewer samples and ends "
    "above DPO.",
    reproduce=reproduce,
    threads=1,
)
