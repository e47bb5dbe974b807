"""SBCL beside supervised contrastive learning and cross-entropy, on digits of which some are rare.

All encoders see the same images as often; what they learnt is judged by the same linear classifier.
"""

from __future__ import annotations

import torch

from tokenry.lab.outcome import Outcome, verdict
from tokenry.lab.plots import curves
from tokenry.lab.rare_digits import TAIL, RareDigits
from tokenry.lab.scale import Scale, at
from tokenry.lab.table import Table, over_seeds
from tokenry.learn.pretraining.sbcl import SBCL
from tokenry.papers.base import Paper

FULL = {"most": 120, "epochs": 40, "probe": 300}
SMOKE = {"most": 24, "epochs": 3, "probe": 5}


def reproduce(seed: int, scale: Scale = "full") -> Outcome:
    """Five draws of the world, from `100 seed`; at smoke scale two."""
    count, size, method = at(
        scale, full=(5, FULL, SBCL()), smoke=(2, SMOKE, SBCL(warmup=1, every=1))
    )

    def run(number: int) -> dict[str, torch.Tensor]:
        world = RareDigits(number, size["most"], epochs=size["epochs"], probe=size["probe"])
        encoders = {
            "cross-entropy": world.supervised(),
            "SupCon": world.contrastive(method, split=False),
            "SBCL": world.contrastive(method),
        }
        return {name: world.accuracy(encoder) for name, encoder in encoders.items()}

    table, sums = Table(), {}
    for number, accuracies in over_seeds(run, seed, count):
        for name, by_rank in accuracies.items():
            table.add(f"{name}: all classes", by_rank.mean(), "accuracy", number)
            table.add(f"{name}: rarest classes", by_rank[-TAIL:].mean(), "accuracy", number)
            sums[name] = sums.get(name, 0) + by_rank / count
    return verdict(
        table,
        {
            "the three rarest classes are told apart better than by SupCon": table.gap(
                "SBCL: rarest classes", "SupCon: rarest classes"
            ),
            "all classes are told apart as well, but for 0.005": table.gap(
                "SBCL: all classes", "SupCon: all classes", by=-0.005
            ),
        },
        reason="an encoder of four layers and 40 epochs, and 120 images of a class at most: the "
        "paper has ResNets, hundreds of epochs and thousands of images of its largest classes",
        plots=[
            curves(
                {name: list(enumerate(one.tolist(), 1)) for name, one in sums.items()},
                "rank of the class, the most frequent first",
                "accuracy",
            )
        ],
    )


PAPER = Paper(
    number=55,
    key="sbcl",
    title="Subclass-balancing Contrastive Learning for Long-tailed Recognition",
    arxiv="2306.15925",
    role="objective",
    family="policy",
    claim="Contrasting clusters of the head classes that are as small as the tail's, and then "
    "classes, tells rare classes apart better than contrasting classes.",
    reproduce=reproduce,
    threads=1,
)
