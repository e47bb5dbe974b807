"""In-context navigation on SmolLM2: does it find more right answers than one ranking gives?

Twenty questions whose answers are a closed list (months, planets, ...). Keys are clustered for the
words among the first 8,192 tokens, three times. The ranking: the 40 best first tokens of the bare
prompt, completed and judged, split at rank 10 by whether they share a cluster with the head.
Navigation: four rounds of eight first tokens each, with the answers so far listed, against the 32
best of the one ranking. All but the clusters is greedy.
"""

from __future__ import annotations

import math
from statistics import fmean

import torch

from tokenry.lab.exploration import Exploration
from tokenry.lab.models import language_model
from tokenry.lab.outcome import Outcome, verdict
from tokenry.lab.plots import curves
from tokenry.lab.scale import Scale, at
from tokenry.lab.table import Table, items_above, over_seeds, paired
from tokenry.measure.probes.navigation import mean_prefix_precision
from tokenry.papers.base import Paper
from tokenry.tasks.suites.closed_lists import CLOSED_LISTS, distinct_so_far

SIDES = {True: "in the head's clusters", False: "in other clusters"}
SMALL = Exploration(400, clusters=8, depth=8, head=3, rounds=2, per_round=2, longest=2)


def reproduce(seed: int, scale: Scale = "full") -> Outcome:
    """All questions, three clusterings with seeds from `100 seed`."""
    count, asked, settings = at(
        scale, full=(3, len(CLOSED_LISTS), Exploration()), smoke=(2, 3, SMALL)
    )
    loaded, table = language_model(scale), Table()
    clusters = dict(over_seeds(lambda n: settings.clustered(*loaded, n), seed, count))
    reports, plain, navigated = zip(
        *(
            settings.explored(*loaded, question, list(clusters.values()))
            for question in list(CLOSED_LISTS)[:asked]
        ),
        strict=True,
    )
    for number, of_clustering in zip(clusters, zip(*reports, strict=True), strict=True):
        for inside, side in SIDES.items():
            about = f"of ranks {settings.head + 1} to {settings.depth} {side}"
            correct = torch.cat([report.side(inside) for report in of_clustering]).double()
            ranks = torch.cat([report.ranks(inside) for report in of_clustering]).double()
            table.add(f"accuracy {about}", correct.mean(), "", number)
            table.add(f"mean {about}", ranks.mean(), "rank", number)
            table.add(f"number {about}", len(ranks), "tokens", number)
    distinct = {}
    for name, lists in (("one ranking", plain), ("navigation", navigated)):
        distinct[name] = torch.tensor([distinct_so_far(answers) for answers in lists]).double()
        right = [[answer is not None for answer in answers] for answers in lists]
        precision = fmean(mean_prefix_precision(flags, len(flags)) for flags in right)
        table.add(f"right answers, {name}", distinct[name][:, -1].mean(), "distinct", seed)
        table.add(f"mean prefix precision, {name}", precision, "", seed)
    gaps = [[r.accuracy(False) - r.accuracy(True) for r in of_question] for of_question in reports]
    known = [[gap for gap in some if not math.isnan(gap)] for some in gaps]
    means = {name: enumerate(counts.mean(0).tolist(), 1) for name, counts in distinct.items()}
    return verdict(
        table,
        {
            "middle ranks outside the head's clusters are right at least as often as those inside, "
            "over the questions": items_above(fmean(some) for some in known if some),
            "four rounds of navigation find more distinct right answers than as many first tokens "
            "of one ranking, over the questions": paired(
                distinct["navigation"][:, -1], distinct["one ranking"][:, -1]
            ),
        },
        plots=[curves(means, "first tokens tried", "distinct right answers, mean")],
    )


PAPER = Paper(
    number=105,
    key="icn",
    title="Correlation and Navigation in the Vocabulary Key Representation Space of Language "
    "Models",
    arxiv="2410.02284",
    role="analysis",
    family="control",
    claim="Middle ranks that share a cluster of keys with the top tokens are less often right; "
    "listing the answers found so far leads to new right answers.",
    reproduce=reproduce,
)
