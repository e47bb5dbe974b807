"""GRPO on prompts of three kinds, each of which asks for another virtue of the answer.

The reward is what the answer is worth, in [0, 1], and how much can be had depends on the prompt.
GRPO compares the eight answers of a prompt with each other; REINFORCE takes the reward as it comes;
in between, the group's mean is subtracted and nothing divided. All see the same number of answers,
each at the best of two learning rates.
"""

from __future__ import annotations

from tokenry.lab.answers import AnswerBench
from tokenry.lab.outcome import Outcome, verdict
from tokenry.lab.plots import bars
from tokenry.lab.scale import Scale, at
from tokenry.lab.table import Table, over_seeds
from tokenry.learn.policy.axes import GroupAdvantage
from tokenry.learn.policy.gradient import PolicyGradient
from tokenry.learn.policy.presets import GRPO
from tokenry.papers.base import Paper
from tokenry.tasks.worlds.answers import utility

PLAIN, CENTRED = GroupAdvantage(center=False, scale="none"), GroupAdvantage(scale="none")
METHODS = {
    "grpo": GRPO(),
    "group mean only": PolicyGradient(CENTRED, aggregation="sequence-mean"),
    "reinforce": PolicyGradient(PLAIN, aggregation="sequence-mean"),
}
RATES = (1e-3, 3e-3)


def reproduce(seed: int, scale: Scale = "full") -> Outcome:
    """Six worlds, seeds from `100 seed`."""
    worlds, fitted, judged, steps = at(scale, full=(6, 150, 1500, 40), smoke=(2, 2, 32, 1))
    table = Table()

    def rewards(number: int) -> dict[str, float]:
        bench = AnswerBench(number, fit_steps=fitted, judged=judged)
        settings = {"steps": steps, "batch_size": 64, "samples": 8}
        policies = {
            f"{name}, rate {rate}": bench.train(method, utility, learning_rate=rate, **settings)
            for name, method in METHODS.items()
            for rate in RATES
        }
        return {name: bench.utility(policy) for name, policy in policies.items()} | {
            "before training": bench.utility(bench.base)
        }

    for number, values in over_seeds(rewards, seed, worlds):
        table.add_all({f"{name}: reward": value for name, value in values.items()}, "of 1", number)
    means = {label: table.mean(label) for label in table.labels()}
    grpo, _, plain = (
        max((f"{name}, rate {rate}: reward" for rate in RATES), key=means.__getitem__)
        for name in METHODS
    )
    return verdict(
        table,
        {
            "after the same samples, each at the better of two learning rates, GRPO's reward is "
            "above that of REINFORCE without a baseline": table.gap(grpo, plain),
            "and above that before training": table.gap(grpo, "before training: reward"),
        },
        reason="it is the group's mean that helps: without the division, rewards are as high",
        plots=[bars({"reward": means}, "reward of fresh answers")],
    )


PAPER = Paper(
    number=None,
    key="grpo",
    title="DeepSeekMath: Pushing the Limits of Mathematical Reasoning in Open Language Models",
    arxiv="2402.03300",
    role="objective",
    family="policy",
    claim="Advantages normalised within the group of a prompt's own samples need no critic, and "
    "reach more reward than the same samples without a baseline.",
    reproduce=reproduce,
    threads=1,
)
