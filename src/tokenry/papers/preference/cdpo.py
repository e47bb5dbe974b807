"""cDPO on running sums: are there critical tokens, does the contrast find them, does it help?

A transformer is trained to write out sums of digits modulo 10 until it gets half of them right. On
wrong solutions of its own, rollouts from every prefix find the token that doomed the rest; banning
it shows what it cost. Copies tuned on right and on wrong solutions give the contrastive estimate,
which is compared with the rollouts' verdict. Then DPO and cDPO train on the same pairs.
"""

from __future__ import annotations

from statistics import fmean

import torch

from tokenry.lab.outcome import Outcome, verdict
from tokenry.lab.plots import bars, curves
from tokenry.lab.running_sums import Critical, SumsBench
from tokenry.lab.scale import Scale, at
from tokenry.lab.table import Table, over_seeds
from tokenry.learn.preference.cdpo import CDPO
from tokenry.learn.preference.dpo import DPO
from tokenry.measure.ranking import separation
from tokenry.papers.base import Paper

OBJECTIVES, RATES = {"dpo": DPO(0.1), "cdpo": CDPO(0.1)}, (3e-5, 1e-4)
BANNED = "accuracy with the critical token banned"
KEPT = "accuracy behind the critical token"


def reproduce(seed: int, scale: Scale = "full") -> Outcome:
    """Four references, seeds from `100 seed`."""
    small = {"terms": 2, "least": 50, "problems": 40, "tune_steps": 2, "steps": 2, "samples": 4}
    references, paths, judged, size = at(scale, full=(4, 20, 800, {}), smoke=(2, 4, 16, small))
    table = Table()

    def analysed(number: int) -> tuple[dict[str, float], list[Critical]]:
        bench = SumsBench(number, **size)
        accuracy = {"reference": bench.accuracy(bench.reference, judged, number)}
        critical = bench.critical_tokens(paths)
        for name, objective in OBJECTIVES.items():
            for rate in RATES:
                policy = bench.train(objective, rate)
                accuracy[f"{name}, rate {rate:g}"] = bench.accuracy(policy, judged, number)
        return accuracy, critical

    for number, (accuracy, critical) in over_seeds(analysed, seed, references):
        table.add_all(accuracy, "", number, "accuracy")
        for name in OBJECTIVES:
            best = max(accuracy[f"{name}, rate {rate:g}"] for rate in RATES)
            table.add(f"accuracy: {name}, better rate", best, "", number)
        table.add(KEPT, fmean(path.kept for path in critical), "", number)
        table.add(BANNED, fmean(path.banned for path in critical), "", number)
        at_critical = torch.tensor([path.scores[path.place] for path in critical])
        others = [s for path in critical for t, s in enumerate(path.scores) if t != path.place]
        values = separation(torch.tensor(others), at_critical, ("other tokens", "critical tokens"))
        table.add_all(values, "", number, "contrastive score")
    ours, theirs = (f"accuracy: {name}, better rate" for name in ("cdpo", "dpo"))
    path = {"rollouts from the prefixes of a wrong solution": enumerate(critical[0].rollouts)}
    behind = {"with it": table.mean(KEPT), "banned": table.mean(BANNED)}
    return verdict(
        table,
        {
            "banning the critical token raises accuracy by more than 0.2": table.gap(
                BANNED, KEPT, by=0.2
            ),
            "its contrastive score is below other tokens' with an AUC above 0.7": table.above(
                "contrastive score: AUC", 0.7
            ),
            "cDPO's accuracy is not below DPO's, each at the better of two learning rates": (
                table.gap(ours, theirs)
            ),
        },
        plots=[curves(path, "token", "accuracy"), bars({"critical token": behind}, "accuracy")],
    )


PAPER = Paper(
    number=74,
    key="cdpo",
    title="Critical Tokens Matter: Token-Level Contrastive Estimation Enhances LLM's Reasoning "
    "Capability",
    arxiv="2411.19943",
    role="objective",
    family="preference",
    claim="Replacing the critical tokens of wrong solutions rescues them, and DPO that weights "
    "rejected tokens by a contrast of two tuned models beats DPO on GSM8K and MATH500.",
    reproduce=reproduce,
    threads=1,
)
