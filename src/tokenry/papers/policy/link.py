"""LINK on rules that a program can check: places and their time, numbers and their multiples.

Values are offered by the table and checked by it; SmolLM2 ranks, and Gemma 3 270M, which has no
part in the search, says how likely the conclusions are. Beside it SmolLM2 is asked outright for
known and for little-known places with the same time. Then SmolLM2 judges conclusions and false
counterparts of both ends, in two templates.
"""

from __future__ import annotations

import torch

from tokenry.lab.long_tail import LongTail, with_false_ones
from tokenry.lab.models import language_model
from tokenry.lab.outcome import Outcome, verdict
from tokenry.lab.plots import bars
from tokenry.lab.scale import Scale, at
from tokenry.lab.table import Evidence, Table, items_above
from tokenry.measure.likelihood import LikelihoodScorer
from tokenry.papers.base import Paper
from tokenry.tasks.link import SEPARATED, Direction, separation, template_accuracy
from tokenry.tasks.worlds.exact_rules import RULES, exact_truth

SIDES: tuple[Direction, ...] = ("head", "tail")


def reproduce(seed: int, scale: Scale = "full") -> Outcome:
    """Three rules, one search each way."""
    sizes, asked, judged = at(scale, full=((16, 5, 60), 32, 8), smoke=((2, 2, 3), 2, 1))
    names = list(RULES) if scale != "smoke" else ["same time", "another time"]
    world = LongTail(language_model(scale), seed, *sizes)
    other = "smollm2" if scale == "smoke" else "gemma3-270m"
    independent, table = LikelihoodScorer(*language_model(scale, other)), Table()
    likely: dict[str, list[float]] = {}
    claims: dict[str, list[tuple[str, bool]]] = {side: [] for side in SIDES}
    truths: list[bool] = []
    for name in names:
        rule = RULES[name]
        for side in SIDES:
            found = world.searched(rule, side)
            truths += [exact_truth(p, values) == 1 for values in found for p in rule.premises]
            texts = [rule.conclusion.text(values) for values in found]
            likely[f"{name}: {side}"] = independent(texts)
            claims[side] += with_false_ones(rule, found)[: 2 * judged]
        delta = separation(likely[f"{name}: head"], likely[f"{name}: tail"])
        table.add(f"{name}: delta", delta, "nats a token")
        table.add(f"{name}: statements", len(found), "of the tail")
    outright = {side: world.asked(side, asked) for side in SIDES}
    for side, (texts, true) in outright.items():
        table.add(f"asked outright, {side}: true", sum(true) / asked, "share")
        table.add(f"asked outright, {side}: readable", len(texts) / asked, "share")
    delta = 0.0
    if all(texts for texts, _ in outright.values()):
        delta = separation(*(independent(outright[side][0]) for side in SIDES))
    table.add("asked outright: delta", delta, "nats a token")
    every = [pair for side in SIDES for pair in claims[side]]
    right = world.judged([text for text, _ in every], [true for _, true in every])
    ends = dict(zip(SIDES, right.split([len(claims[side]) for side in SIDES]), strict=True))
    for side, correct in ends.items():
        table.add(f"{side}: right", template_accuracy(correct, strict=False), "share of templates")
        table.add(f"{side}: right in all", template_accuracy(correct), "share of claims")
    head, tail = (correct.double().mean(1) for correct in ends.values())
    deltas = [table.mean(f"{name}: delta") for name in names]
    return verdict(
        table,
        {
            "all premises of what the search found are true": all(truths),
            f"head and tail are more than {SEPARATED} nats a token apart, in every rule": Evidence(
                tuple(delta - SEPARATED for delta in deltas), exact=True
            ),
            "asking outright separates them less, or is true less often": bool(
                delta < min(deltas) or table.mean("asked outright, tail: true") < 1
            ),
            "claims of the tail are judged right less often than those of the head": apart(
                head, tail
            ),
        },
        plots=[bars({"delta": {name: table.mean(f"{name}: delta") for name in names}
                     | {"asked outright": delta}}, "nats a token"),
               bars({"right": {side: table.mean(f"{side}: right") for side in SIDES}}, "share")],
    )  # fmt: skip


def apart(head: torch.Tensor, tail: torch.Tensor) -> Evidence:
    """Margins of "the mean of head is above that of tail", of items that are not paired."""
    count = min(len(head), len(tail))
    return items_above(head[:count] - tail[:count])


PAPER = Paper(
    number=37,
    key="link",
    title="In Search of the Long-Tail: Systematic Generation of Long-Tail Knowledge via Logical "
    "Rule Guided Search",
    arxiv="2311.07237",
    role="task",
    family="policy",
    claim="Filling a rule's variables one by one, checked and ranked, gives statements that are "
    "true and improbable, where asking outright does not; models judge them worse.",
    reproduce=reproduce,
)
