"""SparsePO in the toy preference world: do learned masks find the tokens that matter?

Six of 24 tokens carry reward. A mask is read off the state *before* its token, so that it can find
such tokens only as far as the language lets one foresee them: the world is more predictable than
the default one, and that bound is measured too. TDPO1 (all masks one) and SparsePO with independent
masks see the same batches at the same betas; at large scale, 12 times the steps and 10 the pairs.
"""

from __future__ import annotations

import torch

from tokenry.lab.frontiers import gap_at_equal
from tokenry.lab.outcome import Outcome, verdict
from tokenry.lab.plots import bars, curves
from tokenry.lab.preference_world import PreferenceBench, add_point
from tokenry.lab.scale import Scale, at
from tokenry.lab.table import Table, over_seeds
from tokenry.lab.toy_training import seeded_modules
from tokenry.learn.preference.sparsepo import SparsePO
from tokenry.learn.preference.tdpo import TDPO
from tokenry.measure.ranking import separation
from tokenry.model.score import score
from tokenry.papers.base import Paper
from tokenry.tasks.worlds.preference import PreferenceWorld

BETAS = (0.1, 0.8)  # the paper's for dialogue, and for sentiment and summaries
MASK_RATE = 3e-3  # the mask networks learn from nothing in the same few steps
SHARES = (0.25, 0.5, 0.75, 0.95)  # of the way to the highest reward that both methods have
SAVED = "neutral KL at equal reward: tdpo1 minus sparsepo"


def reproduce(seed: int, scale: Scale = "full") -> Outcome:
    """Five worlds, seeds from `100 seed`."""
    worlds, size = at(
        scale,
        full=(5, {"steps": 100, "measure_every": 20, "samples": 512}),
        smoke=(2, {"steps": 2, "measure_every": 1, "samples": 32, "fit_steps": 2, "drawn": 64}),
        large=(4, {"steps": 1200, "measure_every": 100, "samples": 512, "drawn": 40_000}),
    )
    table, lines, means = Table(), {}, {}

    @torch.no_grad()  # but for `train`: a mask's dropout acts where gradients flow
    def trained(number: int):
        world = PreferenceWorld(number, spread=3.0)
        bench = PreferenceBench(world, batch_size=32, learning_rate=3e-4, **size)
        batch = world.batch(bench.pairs, torch.arange(min(512, len(bench.pairs))))
        states = score(bench.reference, batch, needs=("hidden_states",)).need("hidden_states")
        paths, masks = {}, {"foresight": world.foresight(batch.ids[:, 1:])}
        for beta in BETAS:
            ours = SparsePO(beta, modules_learning_rate=MASK_RATE)
            modules = seeded_modules(ours, bench.reference, number)
            paths["tdpo1", beta] = bench.train(TDPO(beta, variant="tdpo1"))[1]
            paths["sparsepo", beta] = bench.train(ours, modules=modules)[1]
            masks[f"mask, beta {beta}"] = modules["reward"](states, batch.target)[:, 1:]
        return world.token_reward[batch.ids[:, 1:]] != 0, masks, paths

    for number, (matters, masks, paths) in over_seeds(trained, seed, worlds):
        for name, mask in masks.items():
            means[name] = separation(mask[matters], mask[~matters], ("rewarded", "neutral"))
            table.add_all(means[name], "", number, name)
            table.add(f"{name}: exact zeros", float((mask == 0).float().mean()), "", number)
        for what in ("rewarded minus neutral", "AUC"):
            best = max(means[f"mask, beta {beta}"][what] for beta in BETAS)
            table.add(f"mask, better beta: {what}", best, "", number)
        fronts = {"sparsepo": [], "tdpo1": []}
        for (name, beta), points in paths.items():
            label = f"{name}, beta {beta}"
            add_point(table, label, points[-1], number, ("true reward", "KL on neutral tokens"))
            lines[f"{label} [{number}]"] = [(p.neutral_kl, p.reward) for p in points]
            fronts[name].append([(p.reward, -p.neutral_kl) for p in points])
        saved = gap_at_equal(fronts["sparsepo"], fronts["tdpo1"], SHARES)
        table.add(SAVED, saved, "nats", number)
    return verdict(
        table,
        {
            "the reward mask, at the better of two betas, is larger on rewarded than on neutral "
            "tokens": table.above("mask, better beta: rewarded minus neutral", 0.0),
            "with an AUC above 0.7": table.above("mask, better beta: AUC", 0.7),
            "at equal true reward, each method at the better of two betas, less KL is spent on "
            "neutral tokens than by TDPO1": table.above(SAVED, 0.0),
        },
        reason="the masks see the state before a token, their gradient is small as long as the "
        "policy is near the reference, and without a penalty their scale rises on all tokens",
        plots=[curves(lines, "KL on neutral tokens, nats", "true reward"), bars(means, "mask")],
    )


PAPER = Paper(
    number=60,
    key="sparsepo",
    title="SparsePO: Controlling Preference Alignment of LLMs via Sparse Token Masks",
    arxiv="2410.05102",
    role="objective",
    family="preference",
    claim="Learned sparse token masks put the reward on the tokens that carry the preference and "
    "let the rest be, for more reward at the same divergence.",
    reproduce=reproduce,
    threads=1,
)
