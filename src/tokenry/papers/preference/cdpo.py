"""cDPO on running sums: are there critical tokens, does the contrast find them, does it help?

A 2-layer transformer is trained to write out sums of digits modulo 10 until it gets a good half of
them right. On wrong solutions of its own, rollouts from every prefix find the token that doomed
the rest; banning that token shows what it cost. Two copies tuned on its right and on its wrong
solutions give the contrastive estimate, which is compared with the rollouts' verdict. Then DPO and
cDPO train from the model on the same pairs.
"""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import dataclass
from statistics import mean
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from tokenry.core.batch import TokenBatch
from tokenry.decode.rollouts import rollouts
from tokenry.lab.toy_model import toy_model
from tokenry.learn.compute import compute_loss
from tokenry.learn.fit import fit
from tokenry.learn.preference.cdpo import CDPO
from tokenry.learn.preference.dpo import DPO
from tokenry.learn.reference import FrozenModel
from tokenry.measure.probes.critical_tokens import (
    contrastive_estimation,
    critical_token,
    replaced_token_scores,
    rollout_scores,
)
from tokenry.model.score import score
from tokenry.papers.base import Measurement, Outcome, Paper
from tokenry.tasks.worlds.running_sums import END, VOCABULARY, RunningSums

SEEDS = 2
TASK = RunningSums(terms=4)
GOOD_ENOUGH = 0.5  # share of right answers at which the reference stops learning
PATHS, SAMPLES = 20, 32  # wrong solutions analysed, and completions of each of their prefixes
STEPS, BATCH, BETA = 80, 24, 0.1
RATES = (3e-5, 1e-4)
Solution = tuple[list[int], list[int]]  # prompt, completion


@dataclass(frozen=True)
class Found:
    """One seed's results.

    start: accuracy of the reference. with_token, without_token: accuracy behind the critical tokens
    and with them banned. auc: the chance that a critical token has a lower contrastive score than
    another token of a wrong solution. accuracy: of each method at each learning rate. example: a
    wrong solution, its rollout scores, and its critical token's place.
    """

    start: float
    with_token: float
    without_token: float
    critical_score: float
    other_score: float
    auc: float
    accuracy: dict[tuple[str, float], float]
    example: tuple[Solution, list[float], int]

    def best(self, name: str) -> float:
        return max(self.accuracy[name, rate] for rate in RATES)


def reproduce(seed: int) -> Outcome:
    """Two seeds, `10 * seed` and `10 * seed + 1`."""
    found = [run(10 * seed + offset) for offset in range(SEEDS)]

    def average(field: str) -> float:
        return mean(getattr(one, field) for one in found)

    best = {name: mean(one.best(name) for one in found) for name in ("dpo", "cdpo")}
    measurements = [
        Measurement(label, getattr(one, field), unit, 10 * seed + offset)
        for offset, one in enumerate(found)
        for label, field, unit in (
            ("reference: accuracy", "start", ""),
            ("behind the critical token: accuracy", "with_token", ""),
            ("with the critical token banned: accuracy", "without_token", ""),
            ("contrastive score of critical tokens", "critical_score", ""),
            ("contrastive score of other tokens", "other_score", ""),
            ("critical below other tokens by contrastive score", "auc", "AUC"),
        )
    ]
    measurements += [
        Measurement(f"{name}, rate {rate:g}: accuracy", value, "", 10 * seed + offset)
        for offset, one in enumerate(found)
        for (name, rate), value in one.accuracy.items()
    ]
    critical = average("without_token") > average("with_token") + 0.2 and average("auc") > 0.7
    held = critical and best["cdpo"] >= best["dpo"]
    return Outcome(
        held=held,
        needs="means over 2 seeds: banning the critical token raises accuracy by more than 0.2; "
        "its contrastive score is below other tokens' with an AUC above 0.7; and cDPO's accuracy "
        "is not below DPO's, each at the better of two learning rates",
        measurements=measurements,
        reason=f"accuracy {average('with_token'):.2f} behind the critical token, "
        f"{average('without_token'):.2f} with it banned; AUC {average('auc'):.2f}; the reference "
        f"answers {average('start'):.3f} right, after {STEPS} steps of DPO {best['dpo']:.3f}, of "
        f"cDPO {best['cdpo']:.3f}",
        figure=lambda figure: _draw(figure, found[0]),
    )


def run(seed: int) -> Found:
    """Everything about one seed."""
    generator = torch.Generator().manual_seed(seed)
    reference = fit_reference(seed, generator)
    right, wrong = solutions(reference, 400, 8, generator)
    tuned = {
        "positive": tune(reference, [pair for paths in right.values() for pair in paths], seed),
        "negative": tune(reference, [pair for paths in wrong.values() for pair in paths], seed),
    }
    pairs = [(right[key][0], most_frequent(wrong[key])) for key in right if key in wrong]
    _, fresh = solutions(reference, 100, 1, generator)
    paths = [path for found in fresh.values() for path in found][:PATHS]
    scores = contrastive_scores(tuned, paths)
    counts, critical, others, example = [], [], [], None
    for (prompt, ids), values in zip(paths, scores, strict=True):

        def is_correct(completion: list[int], prompt: list[int] = prompt) -> bool:
            return TASK.is_correct(prompt, completion)

        how: dict[str, Any] = {
            "samples": SAMPLES,
            "max_new_tokens": TASK.length,
            "ends": [END],
            "seed": generator,
        }
        by_rollout = rollout_scores(reference, prompt, ids, is_correct, **how)
        place = critical_token(by_rollout)
        if place is None:
            continue
        example = example or ((prompt, ids), by_rollout.tolist(), place)
        counts.append(replaced_token_scores(reference, prompt, ids, place, is_correct, **how))
        critical.append(values[place])
        others += [value for t, value in enumerate(values) if t != place]
    assert example is not None
    below = torch.tensor(critical)[:, None] < torch.tensor(others)
    goals = {"dpo": DPO(BETA), "cdpo": CDPO(BETA)}
    return Found(
        start=accuracy(reference, 800, seed),
        with_token=mean(kept for _, kept in counts) / SAMPLES,
        without_token=mean(replaced for replaced, _ in counts) / SAMPLES,
        critical_score=mean(critical),
        other_score=mean(others),
        auc=float(below.float().mean()),
        accuracy={
            (name, rate): accuracy(train(goal, reference, tuned, pairs, rate, seed), 800, seed)
            for name, goal in goals.items()
            for rate in RATES
        },
        example=example,
    )


def fit_reference(seed: int, generator: torch.Generator) -> Any:
    """A 2-layer transformer that stopped learning at a good half of right answers.

    Addition modulo 10 is learned suddenly or not at all: one that has not learned it after 450
    steps begins anew from other weights.
    """
    for attempt in range(8):
        model = toy_model(VOCABULARY, 64, seed + 1000 * attempt)

        def loss(step: int, generator: torch.Generator, model: Any = model) -> Tensor:
            prompts = TASK.problems(64, generator)
            ids = torch.cat([prompts, TASK.solutions(prompts)], 1)
            logits = model(ids[:, :-1], use_cache=False).logits[:, TASK.terms :]
            return cross_entropy(logits.flatten(0, 1), ids[:, TASK.terms + 1 :].flatten())

        def good(step: int, _: float, model: Any = model) -> bool:
            return step >= 200 and accuracy(model, 200, step) >= GOOD_ENOUGH

        steps = {"steps": 450, "learning_rate": 5e-3}
        if len(fit(loss, model, **steps, seed=generator, observe=good, every=10)) < 450 or good(
            450, 0.0
        ):
            return model.eval().requires_grad_(False)
    raise RuntimeError(f"no transformer learned running sums from seed {seed}")


def accuracy(model: Any, count: int, seed: int) -> float:
    """Share of right answers among single samples of `count` problems."""
    prompts = TASK.problems(count, torch.Generator().manual_seed(1000 + seed)).tolist()
    found = rollouts(model, prompts, max_new_tokens=TASK.length, ends=[END], seed=seed)
    right = [TASK.is_correct(p, ids) for p, (ids,) in zip(prompts, found, strict=True)]
    return sum(right) / count


def solutions(
    model: Any, count: int, copies: int, generator: torch.Generator
) -> tuple[dict[int, list[Solution]], dict[int, list[Solution]]]:
    """Sampled right and wrong solutions of `count` problems, by the problem's number."""
    prompts = TASK.problems(count, generator).tolist()
    sampled = rollouts(
        model, prompts, copies, max_new_tokens=TASK.length, ends=[END], seed=generator
    )
    right: dict[int, list[Solution]] = {}
    wrong: dict[int, list[Solution]] = {}
    for number, (prompt, completions) in enumerate(zip(prompts, sampled, strict=True)):
        for ids in completions:
            kind = right if TASK.is_correct(prompt, ids) else wrong
            kind.setdefault(number, []).append((prompt, ids))
    return right, wrong


def most_frequent(paths: list[Solution]) -> Solution:
    """The first solution with the most frequent answer: confident errors are worth unlearning."""
    (answer, _), *_ = Counter(TASK.answer(ids) for _, ids in paths).most_common()
    return next(path for path in paths if TASK.answer(path[1]) == answer)


def as_batch(paths: list[Solution], group: list[int] | None = None) -> TokenBatch:
    return TokenBatch.from_ids(
        [[*prompt, *ids] for prompt, ids in paths],
        [[False] * len(prompt) + [True] * len(ids) for prompt, ids in paths],
        group=group,
    )


def tune(model: Any, paths: list[Solution], seed: int, steps: int = 60) -> Any:
    """A copy tuned on these solutions."""
    tuned = copy.deepcopy(model).requires_grad_(True)

    def loss(step: int, generator: torch.Generator) -> Tensor:
        rows = torch.randint(len(paths), (48,), generator=generator).tolist()
        batch = as_batch([paths[row] for row in rows])
        return -score(tuned, batch, grad=True).need("logprob").sum() / batch.target.sum()

    fit(loss, tuned, steps=steps, learning_rate=1e-3, clip=None, seed=seed)
    return tuned.eval().requires_grad_(False)


def contrastive_scores(tuned: dict[str, Any], paths: list[Solution]) -> list[list[float]]:
    """s_t of every token of every solution."""
    batch = as_batch(paths)
    views = [score(tuned[name], batch, needs=("hidden",)) for name in ("positive", "negative")]
    values: Tensor = contrastive_estimation(views[0], views[1])
    return [row[target].tolist() for row, target in zip(values, batch.target, strict=True)]


def train(
    goal: Any,
    reference: Any,
    tuned: dict[str, Any],
    pairs: list[tuple[Solution, Solution]],
    rate: float,
    seed: int,
) -> Any:
    """A copy of the reference trained on the pairs."""
    policy, held = copy.deepcopy(reference).requires_grad_(True), FrozenModel(reference)
    needed = {name: FrozenModel(model) for name, model in tuned.items()}

    def loss(step: int, generator: torch.Generator) -> Tensor:
        rows = torch.randint(len(pairs), (BATCH,), generator=generator).tolist()
        sides = [[pairs[row][side] for row in rows] for side in (0, 1)]
        batch = as_batch([*sides[0], *sides[1]], group=[*range(BATCH)] * 2)
        return compute_loss(goal, batch, policy, held, frozen=needed).loss

    fit(loss, policy, steps=STEPS, learning_rate=rate, seed=seed)
    return policy.eval()


def _draw(figure: Any, found: Found) -> None:
    path, bars = figure.subplots(1, 2, width_ratios=(2, 1))
    (prompt, ids), scores, place = found.example
    path.plot(range(len(scores)), scores, marker="o")
    path.plot([place], [scores[place]], "rX", markersize=12, label="critical token")
    path.set_xticks(range(len(ids)), list(TASK.text(ids)))
    path.set(xlabel=f"a wrong answer to {TASK.text(prompt)}", ylabel="accuracy of rollouts")
    path.legend()
    bars.bar(["with it", "banned"], [found.with_token, found.without_token])
    bars.set(ylabel="accuracy behind the critical token")


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
