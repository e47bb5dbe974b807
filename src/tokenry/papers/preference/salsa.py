"""SALSA in the toy preference world: PPO held to a soup, and PPO held to the policy's own start.

A pretrained model of the language is fine-tuned twice, on two noisy samples of texts in a good
style, to theta_1 and theta_2. Both methods then train theta_1 for the same number of samples on the
count of rare good tokens, at the same three strengths of the KL penalty; only the reference
differs.
"""

from __future__ import annotations

from tokenry.lab.on_policy_world import train_on_policy
from tokenry.lab.outcome import Outcome, verdict
from tokenry.lab.plots import curves
from tokenry.lab.preference_world import fine_tune, fit_reference, fresh_samples, sampled_kl
from tokenry.lab.scale import Scale, at
from tokenry.lab.table import Table, over_seeds
from tokenry.learn.policy.ppo import PPO
from tokenry.learn.policy.salsa import SALSA
from tokenry.model.averaging import soup_models
from tokenry.papers.base import Paper
from tokenry.tasks.worlds.preference import PreferenceWorld

PENALTIES = (0.05, 0.2, 0.5)
REWARD, KL = "true reward", "KL(policy || theta_1)"


def reproduce(seed: int, scale: Scale = "full") -> Outcome:
    """Twelve worlds, seeds from `100 seed`."""
    worlds, fitted, tuned, samples, steps = at(
        scale, full=(12, 120, 60, 2000, 20), smoke=(2, 2, 2, 16, 1)
    )
    table, between, frontier = Table(), {}, {}

    def run(number: int) -> dict[str, tuple[float, float]]:
        """Reward and KL from theta_1 of every model."""
        world = PreferenceWorld(number, vocabulary=16, length=8, liked=2, disliked=0)
        pretrained = fit_reference(world, number, steps=fitted, batch_size=64)
        one, two = (fine_tune(pretrained, world, 2 * number + which, tuned) for which in (0, 1))
        models = {"theta_1": one, "soup": soup_models((one, two)), "theta_2": two}
        for name, method, held_to in (("ppo", PPO, "theta_1"), ("salsa", SALSA, "soup")):
            for penalty in PENALTIES:
                models[f"{name}, penalty {penalty}"], _ = train_on_policy(
                    method(kl=penalty), one, world.prompt, world.batch_reward, models[held_to],
                    max_new_tokens=world.length, seed=number, steps=steps,
                )  # fmt: skip
        points = {}
        for name, model in models.items():
            batch = fresh_samples(model, world, samples, 10_000 + number)
            points[name] = sampled_kl(model, one, batch), float(world.batch_reward(batch).mean())
        return points

    for number, points in over_seeds(run, seed, worlds):
        for name, (kl, reward) in points.items():
            table.add(f"{name}: {REWARD}", reward, "per text", number)
            table.add(f"{name}: {KL}", kl, "nats", number)
        rewards = [points[name][1] for name in ("theta_1", "soup", "theta_2")]
        table.add("theta_1 and theta_2: mean", (rewards[0] + rewards[2]) / 2, "per text", number)
        between[f"interpolation [{number}]"] = list(zip((0.0, 0.5, 1.0), rewards, strict=True))
        for name in ("ppo", "salsa"):
            path = [points[f"{name}, penalty {penalty}"] for penalty in PENALTIES]
            frontier[f"{name} [{number}]"] = path
    ppo, salsa = (
        max(names, key=lambda name: table.mean(f"{name}: {REWARD}"))
        for names in ([f"{name}, penalty {p}" for p in PENALTIES] for name in ("ppo", "salsa"))
    )
    return verdict(
        table,
        {
            "each at the best of three penalties, SALSA's true reward is above PPO's": table.gap(
                f"{salsa}: {REWARD}", f"{ppo}: {REWARD}"
            ),
            "and it went further from theta_1": table.gap(f"{salsa}: {KL}", f"{ppo}: {KL}"),
            "the soup's reward is not below the mean of its models' by 0.05": table.gap(
                f"soup: {REWARD}", "theta_1 and theta_2: mean", by=-0.05
            ),
        },
        reason="what is rewarded here is the true reward, so the weakest penalty is best for both, "
        "and where the pull is weak it matters little what it pulls to",
        plots=[
            curves(frontier, f"{KL}, nats", REWARD),
            curves(between, "from theta_1 (0) to theta_2 (1)", REWARD),
        ],
    )


PAPER = Paper(
    number=48,
    key="salsa",
    title="SALSA: Soup-based Alignment Learning for Stronger Adaptation in RLHF",
    arxiv="2411.01798",
    role="objective",
    family="preference",
    claim="PPO whose KL reference is the average of two fine-tuned models reaches a higher reward, "
    "further from its start, than PPO held to its start.",
    reproduce=reproduce,
    threads=1,
)
