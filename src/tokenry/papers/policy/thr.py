"""Token Hidden Reward on written sums: few tokens carry it, and its sign exploits or explores.

GRPO and the tilts p = 0.5, 0 and -0.5 see the same prompts and as many tokens, each at the better
of two learning rates; sums can be right at once and with working. How the hidden reward is spread
over tokens is measured on the base policy's own answers, beside a control in which each token has
the state of another one.
"""

from __future__ import annotations

import torch

from tokenry.lab.outcome import Outcome, verdict
from tokenry.lab.plots import bars
from tokenry.lab.policy_bench import SAMPLES, PolicyBench, add_of_bases, against_grpo
from tokenry.lab.scale import Scale
from tokenry.lab.table import Evidence
from tokenry.learn.policy.groups import group_advantage
from tokenry.learn.policy.thr import THR
from tokenry.learn.policy.token_influence import token_influence
from tokenry.model.score import score
from tokenry.papers.base import Paper

METHODS = {"exploit": THR(p=0.5), "alone": THR(p=0.0), "explore": THR(p=-0.5)}
TOP, CONTROL = "share of the top tenth", "share of the top tenth, states of other tokens"


def concentration(bench: PolicyBench) -> dict[str, float]:
    """The share of sum |THR| that the largest tenth of the tokens of the base's answers carries."""
    batch, correct = bench.answers(bench.base, bench.judged, SAMPLES)
    group = bench.asked_by(SAMPLES)
    advantage = group_advantage(correct.double(), group)
    scores = score(bench.base, batch, ("hidden",))
    hidden, head, mask = scores.need("hidden"), scores.need("head"), batch.target
    order = torch.randperm(int(mask.sum()), generator=torch.Generator().manual_seed(bench.seed))
    shuffled = hidden.clone()
    shuffled[mask] = hidden[mask][order]
    shares = {}
    for name, states in ((TOP, hidden), (CONTROL, shuffled)):
        influence = token_influence(states, head, batch.ids, mask, advantage > 0, group)
        size = (advantage[:, None] * influence)[mask].abs().sort(descending=True).values
        largest = size[: max(1, len(size) // 10)].sum()
        shares[name] = float(largest / size.sum()) if size.sum() else 1.0
    return shares


def reproduce(seed: int, scale: Scale = "full") -> Outcome:
    """Five benches, seeds from `100 seed`."""
    table = against_grpo(METHODS, seed, scale)
    add_of_bases(table, concentration, seed, scale)
    names = ("before", "grpo", *METHODS)
    passed = {k: {n: table.mean(f"{n}: {k}") for n in names} for k in ("pass@1", "pass@8")}
    half = tuple(share - 0.5 for share in table.values(TOP).values())
    return verdict(
        table,
        {
            "a tenth of the tokens carries more than half of the hidden reward": Evidence(half),
            "and more than with the states of other tokens": table.gap(TOP, CONTROL),
            "learning from these tokens alone is not below GRPO by 0.02": table.gap(
                "alone: pass@1", "grpo: pass@1", by=-0.02
            ),
            "exploiting leaves less entropy than exploring": table.gap(
                "explore: entropy", "exploit: entropy"
            ),
            "and right answers more often": table.gap("exploit: pass@1", "explore: pass@1"),
            "exploring leaves more of eight answers right": table.gap(
                "explore: pass@8", "exploit: pass@8"
            ),
        },
        plots=[bars(passed, "share of prompts")],
    )


PAPER = Paper(
    number=127,
    key="thr",
    title="Token Hidden Reward: Steering Exploration-Exploitation in Group Relative Deep "
    "Reinforcement Learning",
    arxiv="2510.03669",
    role="objective",
    family="policy",
    claim="A small share of tokens carries most of what a step does to the good completions; "
    "favouring those that raise them exploits, favouring the others explores.",
    reproduce=reproduce,
    threads=1,
)
