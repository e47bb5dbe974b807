"""From r to Q*: what a DPO policy knows about single tokens, and how to search with it.

Credit: in held-out sentences of a sparse grammar, the token with the lowest implicit reward after
DPO should be the wrong one. Search: log pi of a DPO policy adds up rewards and values, so that beam
search is search for reward; as a control, the same for the closed-form optimum. Decline: from a
model fitted to the chosen completions, implicit rewards must fall: their mean is -beta KL.
"""

from __future__ import annotations

import torch

from tokenry.lab.outcome import Outcome, verdict
from tokenry.lab.plots import bars
from tokenry.lab.preference_world import PreferenceBench, searched
from tokenry.lab.scale import Scale, at
from tokenry.lab.table import Table, over_seeds
from tokenry.lab.toy_training import NegativeLogLikelihood
from tokenry.learn.preference.dpo import DPO
from tokenry.papers.base import Paper
from tokenry.tasks.worlds.preference import PreferenceWorld
from tokenry.tasks.worlds.sparse_grammar import SparseGrammar

CREDIT_BETA, WORLD_BETA, RATE = 1.0, 0.1, 3e-4
LOCATED = "share of replaced tokens with the lowest credit"


def reproduce(seed: int, scale: Scale = "full") -> Outcome:
    """Seven grammars and worlds, seeds from `100 seed`."""
    worlds, prompts, sft_steps, size = at(
        scale,
        full=(7, 100, 60, {"fit_steps": 200, "steps": 100, "drawn": 4000, "samples": 16}),
        smoke=(2, 4, 1, {"fit_steps": 2, "steps": 2, "drawn": 64, "samples": 16}),
    )
    size |= {"fit_batch": 64, "batch_size": 32, "measure_every": size["steps"]}
    table = Table()

    def located(number: int) -> float:
        bench = PreferenceBench(grammar := SparseGrammar(number), learning_rate=RATE, **size)
        count, draw = bench.drawn // 2, torch.Generator().manual_seed(number)
        pairs, position = grammar.corrupted_pairs(5 * count // 4, draw)
        policy, _ = bench.train(DPO(CREDIT_BETA), pairs=pairs[:count], clip=None)
        lowest = bench.log_ratio(policy, pairs[count:].rejected).argmin(1)
        return float((lowest == position[count:]).float().mean())

    def rewards(number: int) -> tuple[dict[str, float], dict[str, float]]:
        bench = PreferenceBench(world := PreferenceWorld(number), learning_rate=RATE, **size)
        sft = {"chosen_only": True, "batch_size": 64, "steps": sft_steps, "clip": None}
        tuned, _ = bench.train(NegativeLogLikelihood(), **sft)
        policies, falls = {}, {}
        for name, start in (("base", bench.reference), ("SFT", tuned)):
            policies[name], _ = bench.train(DPO(WORLD_BETA), start=start, clip=None)
            for side, rows in zip(("chosen", "rejected"), bench.pairs[:512], strict=True):
                ratio = bench.log_ratio(policies[name], rows, start).sum(-1).mean()
                falls[f"from {name}: implicit reward of {side}"] = WORLD_BETA * float(ratio)
        starts = world.language.sample(prompts, bench.generator)[:, :2]
        texts = searched(world, policies["base"], starts, (1, 2, 5, 10))
        texts["reference, sampling"] = searched(world, bench.reference, starts, ())["sampling"]
        for beta in (0.3, 0.5, 1.0):
            optimum = world.optimum(beta)
            for name, way in (("greedy", optimum.greedy), ("exact search", optimum.likeliest)):
                texts[f"optimum at beta {beta:g}, {name}"] = way(starts[:, -1], 2)
        worth = torch.cat([world.token_reward, torch.zeros(1)])  # the start's, drawn again, is 0
        return {name: float(worth[rows].sum(-1).mean()) for name, rows in texts.items()}, falls

    for number, share in over_seeds(located, seed, worlds):
        table.add(LOCATED, share, "", number)
    for number, (found, falls) in over_seeds(rewards, seed, worlds):
        table.add_all(found, "per completion", number, "true reward")
        table.add_all(falls, "nats", number)
    means = {name: table.mean(f"true reward: {name}") for name in found}
    beam, greedy, drawn = (f"true reward: {way}" for way in ("beam of 5", "greedy", "sampling"))
    return verdict(
        table,
        {
            "in at least 70 % of held-out sentences the wrong token has the lowest credit": (
                table.above(LOCATED, 0.7)
            ),
            "beam search (5) has more true reward than greedy": table.gap(beam, greedy),
            "and greedy at least as much as sampling": table.gap(greedy, drawn),
        }
        | {f"{label} ends below 0": table.below(label, 0.0) for label in falls if "SFT" in label},
        reason="what search maximises is reward plus beta times the reference's log-probability, "
        "and the trained policies are not at their optimum",
        plots=[bars({"true reward": means}, "true reward")],
    )


PAPER = Paper(
    number=30,
    key="r-to-q",
    title="From r to Q*: Your Language Model is Secretly a Q-Function",
    arxiv="2404.12358",
    role="analysis",
    family="preference",
    claim="A DPO policy is an optimal Q-function: its token log-ratios locate errors without token "
    "labels, beam search on it is search for reward, and implicit rewards fall from an SFT start.",
    reproduce=reproduce,
    threads=1,
)
