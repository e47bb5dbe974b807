"""In-context navigation on SmolLM2: does it find more right answers than one ranking gives?

Questions whose answers are a closed list (months, planets, ...). Keys are clustered for the words
among the first 8,192 tokens. The ranking: the 40 best first tokens of the bare prompt, completed
and judged, split at rank 10 by whether they share a cluster with the head. Navigation: four rounds
of eight first tokens each, with the answers so far listed, against the 32 best of the one ranking.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from statistics import mean
from typing import Any

import torch
from torch import Tensor

from tokenry.measure.probes.navigation import (
    InContextNavigator,
    RankClusters,
    cluster_keys,
    mean_prefix_precision,
    rank_cluster_report,
)
from tokenry.model.hub import load
from tokenry.papers.base import Measurement, Outcome, Paper
from tokenry.text.vocabulary import token_bytes

QUESTIONS = {
    "Name a month of the year.": "January February March April May June July August September "
    "October November December",
    "Name a day of the week.": "Monday Tuesday Wednesday Thursday Friday Saturday Sunday",
    "Name a planet of the solar system.": "Mercury Venus Earth Mars Jupiter Saturn Uranus Neptune",
    "Name a chemical element.": "hydrogen helium lithium beryllium boron carbon nitrogen oxygen "
    "fluorine neon sodium magnesium aluminium aluminum silicon phosphorus sulfur chlorine argon "
    "potassium calcium iron copper zinc silver gold tin lead mercury nickel cobalt titanium "
    "chromium manganese uranium platinum iodine bromine krypton xenon radon radium tungsten",
    "Name a colour of the rainbow.": "red orange yellow green blue indigo violet",
    "Name a country in Europe.": "France Germany Italy Spain Portugal Poland Austria Switzerland "
    "Belgium Netherlands Denmark Sweden Norway Finland Iceland Ireland Greece Hungary Romania "
    "Bulgaria Croatia Serbia Slovenia Slovakia Ukraine Estonia Latvia Lithuania Albania Malta "
    "Cyprus Luxembourg Monaco Russia Belarus Moldova Montenegro Andorra",
    "Name a keyword of the Python language.": "False None True and as assert async await break "
    "class continue def del elif else except finally for from global if import in is lambda "
    "nonlocal not or pass raise return try while with yield",
    "Name an animal that lives on a farm.": "cow pig horse sheep goat chicken duck goose turkey "
    "hen rooster donkey dog cat rabbit cattle bull ox lamb calf pony mule llama bee cows pigs "
    "horses goats chickens ducks",
}
DEPTH, HEAD, CLUSTERS, ROWS = 40, 10, 256, 8192
ROUNDS, PER_ROUND, LONGEST = 4, 8, 5


@dataclass(frozen=True)
class Found:
    """One question: the split ranking, and the right answers after each probe of both methods."""

    ranking: RankClusters
    plain: list[bool]
    navigated: list[bool]
    plain_distinct: list[int]
    navigated_distinct: list[int]


def reproduce(seed: int) -> Outcome:
    """All questions; the seed is that of the clusters, all else is greedy."""
    loaded = load("smollm2")
    clusters = key_clusters(*loaded, seed)
    found = [ask(*loaded, question, answers, clusters) for question, answers in QUESTIONS.items()]
    sides = {
        inside: torch.cat([row.ranking.side(inside) for row in found]) for inside in (True, False)
    }
    accuracy = {inside: float(values.double().mean()) for inside, values in sides.items()}
    ranks = {i: mean_rank([row.ranking for row in found], i) for i in (True, False)}
    probes = ROUNDS * PER_ROUND
    plain = mean(row.plain_distinct[-1] for row in found)
    navigated = mean(row.navigated_distinct[-1] for row in found)
    measured = [
        Measurement("accuracy of ranks 11 to 40 in the head's clusters", accuracy[True], "", seed),
        Measurement("accuracy of ranks 11 to 40 in other clusters", accuracy[False], "", seed),
        Measurement("mean rank in the head's clusters", ranks[True], "rank", seed),
        Measurement("mean rank in other clusters", ranks[False], "rank", seed),
        Measurement("ranks in the head's clusters", len(sides[True]), "tokens", seed),
        Measurement(f"right answers of {probes} probes, one ranking", plain, "distinct", seed),
        Measurement(f"right answers of {probes} probes, navigation", navigated, "distinct", seed),
        Measurement("mean prefix precision, one ranking", precision(found, "plain"), "", seed),
        Measurement("mean prefix precision, navigation", precision(found, "navigated"), "", seed),
    ]
    better = accuracy[False] >= accuracy[True]
    more = navigated > plain
    wins = sum(row.navigated_distinct[-1] > row.plain_distinct[-1] for row in found)
    losses = sum(row.navigated_distinct[-1] < row.plain_distinct[-1] for row in found)
    return Outcome(
        held=better and more,
        needs="over all questions, middle ranks outside the head's clusters are right at least as "
        "often as those inside, and four rounds of navigation find more distinct right answers "
        "than the 32 best first tokens of one ranking",
        measurements=measured,
        reason=f"clusters: {accuracy[False]:.3f} outside, {accuracy[True]:.3f} inside; navigation "
        f"finds more on {wins} and fewer on {losses} of {len(found)} questions",
        figure=lambda figure: draw(figure, found),
    )


def key_clusters(model: Any, tokenizer: Any, seed: int) -> Tensor:
    """[V]: clusters of the keys of words, -1 for the other tokens."""
    keys = model.get_output_embeddings().weight
    chosen = first_tokens(model, tokenizer)
    clusters = torch.full((len(keys),), -1)
    clusters[chosen] = cluster_keys(keys[chosen], CLUSTERS, iterations=20, seed=seed)
    return clusters


def first_tokens(model: Any, tokenizer: Any) -> Tensor:
    """Tokens with which an answer behind a quotation mark can begin: letters, without a space."""
    pieces = token_bytes(tokenizer)[: len(model.get_output_embeddings().weight)]
    wanted = [id for id, piece in enumerate(pieces) if piece.isalpha() and piece.isascii()]
    return torch.tensor(wanted[:ROWS])


def ask(model: Any, tokenizer: Any, question: str, answers: str, clusters: Tensor) -> Found:
    """One question: the ranking's report, and both lists of answers."""
    right = {answer.lower() for answer in answers.split()}
    explorer = InContextNavigator(
        model, tokenizer, question, per_round=PER_ROUND, max_new_tokens=LONGEST
    )
    start = explorer.state([])

    def judged(ids: list[int]) -> list[bool]:
        return [is_right(text, right) for text in explorer.complete(start, torch.tensor(ids))]

    ranking = rank_cluster_report(start.logits[0], clusters, judged, head=HEAD, depth=DEPTH)
    texts = {
        "plain": [answer.text for answer in wide(explorer)(1)],
        "navigated": [answer.text for answer in explorer(ROUNDS)],
    }
    correct = {name: [is_right(t, right) for t in rows] for name, rows in texts.items()}
    return Found(
        ranking, correct["plain"], correct["navigated"],
        distinct(texts["plain"], right), distinct(texts["navigated"], right),
    )  # fmt: skip


def wide(explorer: InContextNavigator) -> InContextNavigator:
    """The plain ranking with as many probes: all of them in one round."""
    return replace(explorer, per_round=ROUNDS * PER_ROUND)


def is_right(text: str, right: set[str]) -> bool:
    return text.strip(" .,").lower() in right


def distinct(texts: list[str], right: set[str]) -> list[int]:
    """Different right answers among the first n, for n = 1, 2, ..."""
    seen: set[str] = set()
    counts = []
    for text in texts:
        if is_right(text, right):
            seen.add(text.strip(" .,").lower())
        counts.append(len(seen))
    return counts


def precision(found: list[Found], which: str) -> float:
    """Mean prefix precision of all probes, over questions."""
    return mean(mean_prefix_precision(getattr(row, which), ROUNDS * PER_ROUND) for row in found)


def mean_rank(reports: list[RankClusters], inside: bool) -> float:
    ranks = torch.cat([report.ranks(inside) for report in reports])
    return float(ranks.double().mean())


def draw(figure: Any, found: list[Found]) -> None:
    """Accuracy by rank and cluster; answers found by probes."""
    left, right = figure.subplots(1, 2)
    for inside, name in ((True, "the head's clusters"), (False, "other clusters")):
        ranks = torch.cat([row.ranking.ranks(inside) for row in found])
        correct = torch.cat([row.ranking.side(inside) for row in found]).double()
        tens = range(HEAD + 1, DEPTH, 10)
        shares = [float(correct[(ranks >= low) & (ranks < low + 10)].mean()) for low in tens]
        left.plot([low + 5 for low in tens], shares, marker="o", label=name)
    left.set(xlabel="rank of the first token", ylabel="share of right answers")
    left.legend()
    probes = range(1, ROUNDS * PER_ROUND + 1)
    for name, rows in (
        ("one ranking", [row.plain_distinct for row in found]),
        ("navigation", [row.navigated_distinct for row in found]),
    ):
        right.plot(probes, torch.tensor(rows).double().mean(0).tolist(), label=name)
    right.set(xlabel="first tokens tried", ylabel="distinct right answers, mean")
    right.legend()


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
    threads=1,
)
