"""SPO's chain and tree beside GRPO on written sums, after as many sampled tokens.

What judges and shared prefixes cost is counted. How good the advantages are is measured on the
base policy's answers: those of three judges a state, and GRPO's centred rewards, against those of
forty judges.
"""

from __future__ import annotations

import torch

from tokenry.lab.on_policy_world import roll_out
from tokenry.lab.outcome import Outcome, verdict
from tokenry.lab.plots import bars
from tokenry.lab.policy_bench import PolicyBench, add_of_bases, against_grpo
from tokenry.lab.scale import Scale, at
from tokenry.learn.policy.groups import over_group
from tokenry.learn.policy.rollout_batch import RolloutBatch
from tokenry.learn.policy.segment_credit import ChainAdvantage
from tokenry.learn.policy.sources.chain import Chain
from tokenry.learn.policy.sources.tree import Tree
from tokenry.learn.policy.spo import SPO
from tokenry.model.score import score
from tokenry.papers.base import Paper
from tokenry.tasks.worlds.written_addition import END

JUDGES, INTERVAL, TOKENS = 3, 2, 40_000
METHODS = {"chain": SPO(), "tree": SPO("tree")}
SOURCES = {"chain": Chain(JUDGES, interval=INTERVAL), "tree": Tree(2, 3)}
LABELS = {name: f"{name}: squared error of the advantage" for name in ("chain", "trajectory")}


@torch.no_grad()
def errors(bench: PolicyBench, judges: int) -> dict[str, float]:
    """Mean squared errors over the tokens that the base was unsure of."""
    prompts = bench.world.prompts(
        max(1, bench.judged // 8), torch.Generator().manual_seed(bench.seed)
    )
    source = Chain(JUDGES + judges, interval=INTERVAL)
    limit = {"max_new_tokens": bench.world.longest, "eos": END, "seed": bench.seed}
    batch = roll_out(bench.base, prompts, samples=8, source=source, **limit)
    batch = batch.with_columns(
        reward=bench.world.correct(batch).float(),
        old_logprob=score(bench.base, batch).need("logprob"),
    )
    state = batch.column("state")
    own = state < 0
    first = int(own.sum())  # judges of a state stand side by side behind the completions
    few = (torch.arange(len(state)) - first) % (JUDGES + judges) < JUDGES
    axis = ChainAdvantage(0.9, False)
    estimate, truth = (axis(RolloutBatch(batch.select(own | kept)))[:first] for kept in (few, ~few))
    kept = axis.kept(RolloutBatch(batch), truth)[:first]
    reward, group = batch.column("reward")[own], batch.group[own]  # type: ignore[index]
    centred = reward - over_group(reward, group) / 8
    found = {"chain": estimate, "trajectory": centred[:, None].expand(truth.shape)}
    return {LABELS[name]: float((a - truth)[kept].square().mean()) for name, a in found.items()}


def reproduce(seed: int, scale: Scale = "full") -> Outcome:
    """Five benches, seeds from `100 seed`."""
    table = against_grpo(METHODS, seed, scale, TOKENS, sources=SOURCES)
    judges = at(scale, full=40, smoke=2)
    add_of_bases(table, lambda bench: errors(bench, judges), seed, scale)
    rewards = {name: table.mean(f"{name}: pass@1") for name in ("before", "grpo", *METHODS)}
    return verdict(
        table,
        {
            "three judges a state are nearer to the true advantage than the centred reward": (
                table.gap(LABELS["trajectory"], LABELS["chain"])
            )
        }
        | {
            f"the {name} answers right not less often than GRPO": table.gap(
                f"{name}: pass@1", "grpo: pass@1"
            )
            for name in METHODS
        },
        plots=[
            bars({"pass@1": rewards}, "right answers"),
            bars({"error": {n: table.mean(label) for n, label in LABELS.items()}}, "mean square"),
        ],
    )


PAPER = Paper(
    number=126,
    key="spo",
    title="Segment Policy Optimization: Effective Segment-Level Credit Assignment in RL for Large "
    "Language Models",
    arxiv="2505.23564",
    role="objective",
    family="policy",
    claim="Giving each segment of an answer the difference of sampled values at its two ends "
    "assigns credit better than one advantage for all, and reaches more reward than GRPO.",
    reproduce=reproduce,
    threads=1,
)
