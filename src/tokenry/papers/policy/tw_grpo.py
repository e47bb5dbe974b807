"""TW-GRPO beside GRPO on written sums: positions at which a group's answers part weigh more.

Both see the same prompts and as many tokens, each at the better of two learning rates. The weights
are measured on the base policy's own answers, at positions where all eight answers to a prompt have
the same token and where they differ. The paper's partial credit for sets of options is a reward
(`multiple_choice`) and not part of this.
"""

from __future__ import annotations

from tokenry.lab.outcome import Outcome, verdict
from tokenry.lab.plots import bars
from tokenry.lab.policy_bench import SAMPLES, PolicyBench, add_of_bases, against_grpo
from tokenry.lab.scale import Scale
from tokenry.learn.policy.group_divergence import divergence_weights
from tokenry.learn.policy.tw_grpo import TWGRPO
from tokenry.model.score import score
from tokenry.papers.base import Paper

PART, SHARE = "weight where answers part", "weight where answers agree"


def weights(bench: PolicyBench) -> dict[str, float]:
    """The mean weight of the tokens of the base's answers where the group agrees, and elsewhere."""
    batch, _ = bench.answers(bench.base, bench.judged, SAMPLES)
    scores = score(bench.base, batch, ("hidden",))
    asked = bench.asked_by(SAMPLES)
    hidden, head = scores.need("hidden"), scores.need("head")
    weight = divergence_weights(hidden, head, batch.target, asked, TWGRPO().alpha)
    ids = batch.ids.masked_fill(~batch.target, -1).view(SAMPLES, bench.judged, -1)
    same = (ids == ids[0]).all(0).repeat(SAMPLES, 1) & batch.target
    return {
        name: float(weight[tokens].mean()) if bool(tokens.any()) else 1.0
        for name, tokens in ((PART, batch.target & ~same), (SHARE, same))
    }


def reproduce(seed: int, scale: Scale = "full") -> Outcome:
    """Five benches, seeds from `100 seed`."""
    table = against_grpo({"tw-grpo": TWGRPO()}, seed, scale)
    add_of_bases(table, weights, seed, scale)
    names = ("before", "grpo", "tw-grpo")
    return verdict(
        table,
        {
            "positions at which a group's answers differ weigh more": table.gap(PART, SHARE),
            "60 % right answers come with fewer sampled tokens than under GRPO": table.gap(
                "grpo: tokens to 60 %", "tw-grpo: tokens to 60 %"
            ),
            "the reward changes less from step to step": table.gap(
                "grpo: roughness", "tw-grpo: roughness"
            ),
            "right answers are more frequent in the end": table.gap(
                "tw-grpo: pass@1", "grpo: pass@1"
            ),
        },
        plots=[bars({"pass@1": {n: table.mean(f"{n}: pass@1") for n in names}}, "right answers")],
    )


PAPER = Paper(
    number=132,
    key="tw-grpo",
    title="Reinforcing Video Reasoning with Focused Thinking",
    arxiv="2505.24718",
    role="objective",
    family="policy",
    claim="Weighing positions by how much the completions of a group disagree there trains faster "
    "and with less variance than GRPO.",
    reproduce=reproduce,
    threads=1,
)
