"""D3S beside GRPO on written sums: few completions, few tokens, chosen by what they teach.

GRPO learns from every token. D3S and a control, which keeps as many completions of a group and as
many of their tokens at random, learn from a part that grows from a twentieth to a half. All see the
same prompts and as many sampled tokens, each at the better of two learning rates.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tokenry.core.aggregate import masked_mean
from tokenry.lab.outcome import Outcome, verdict
from tokenry.lab.plots import bars
from tokenry.lab.policy_bench import SAMPLES, PolicyBench, add_of_bases, against_grpo
from tokenry.lab.scale import Scale
from tokenry.learn.policy.d3s import D3S, Schedule
from tokenry.learn.policy.down_sampling import select_rollouts, select_tokens
from tokenry.learn.policy.groups import group_advantage
from tokenry.learn.policy.rollout_batch import RolloutBatch
from tokenry.model.score import score
from tokenry.papers.base import Paper


@dataclass(frozen=True)
class AtRandom:
    """As many completions of each group as D3S keeps, and as many tokens of each, at random."""

    schedule: Schedule

    def __call__(self, rollouts: RolloutBatch, advantage: Tensor) -> Tensor:
        count, share = self.schedule(rollouts.progress)
        mask, group = rollouts.mask, rollouts.group
        chance = torch.rand(mask.shape)
        kept = select_tokens(torch.ones_like(chance), chance, mask, share)
        ranks = (chance[:, None, 0] < chance[None, :, 0]) & (group[:, None] == group)
        return kept & (ranks.sum(-1) < count)[:, None]


RANDOM = replace(D3S().composed(), select=(AtRandom(Schedule()),))
SPREAD, ENTROPY = "spread of the advantages", "entropy of the tokens"


def chosen(bench: PolicyBench) -> dict[str, float]:
    """What D3S's first selection keeps of the base's answers, beside all of them."""
    batch, correct = bench.answers(bench.base, bench.judged, SAMPLES)
    advantage = group_advantage(correct.float(), (group := bench.asked_by(SAMPLES)))
    entropy = score(bench.base, batch, ("entropy",)).need("entropy")
    rows = select_rollouts(advantage, group, Schedule().count_start)
    weighed, mask = advantage[:, None].expand(batch.shape), batch.target
    tokens = select_tokens(weighed, entropy, mask, Schedule().share_start) & rows[:, None]
    return {
        f"d3s: {SPREAD}": float(advantage[rows].square().mean()) if bool(rows.any()) else 0.0,
        f"all: {SPREAD}": float(advantage.square().mean()),
        f"d3s: {ENTROPY}": float(masked_mean(entropy, tokens)),
        f"all: {ENTROPY}": float(masked_mean(entropy, mask)),
    }


def reproduce(seed: int, scale: Scale = "full") -> Outcome:
    """Five benches, seeds from `100 seed`."""
    methods = {"d3s": D3S(), "at random": RANDOM}
    table = against_grpo(methods, seed, scale)
    add_of_bases(table, chosen, seed, scale)
    rewards = {name: table.mean(f"{name}: pass@1") for name in ("before", "grpo", *methods)}
    return verdict(
        table,
        {
            "kept completions have advantages of more spread": table.gap(
                f"d3s: {SPREAD}", f"all: {SPREAD}"
            ),
            "and tokens of more entropy": table.gap(f"d3s: {ENTROPY}", f"all: {ENTROPY}"),
            "right answers are more frequent than with as many tokens at random": table.gap(
                "d3s: pass@1", "at random: pass@1"
            ),
            "and than with GRPO, which learns from all": table.gap("d3s: pass@1", "grpo: pass@1"),
        },
        plots=[bars({"pass@1": rewards}, "right answers")],
    )


PAPER = Paper(
    number=119,
    key="d3s",
    title="Learning More with Less: A Dynamic Dual-Level Down-Sampling Framework for Efficient "
    "Policy Optimization",
    arxiv="2509.22115",
    role="objective",
    family="policy",
    claim="Learning from completions whose advantages vary most, and their tokens of much entropy, "
    "reaches more reward than GRPO on all tokens.",
    reproduce=reproduce,
    threads=1,
)
