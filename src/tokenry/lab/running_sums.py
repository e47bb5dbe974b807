"""A model that gets half of its running sums right, its solutions, and what dooms wrong ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch

from tokenry.core.batch import TokenBatch
from tokenry.core.errors import ModelError
from tokenry.decode.rollouts import rollouts
from tokenry.lab.toy_model import toy_model
from tokenry.lab.toy_training import (
    NegativeLogLikelihood,
    completed,
    from_rows,
    train_copy,
    train_on,
)
from tokenry.lab.toys import trained
from tokenry.learn.data.precompute import joined_batch
from tokenry.measure.probes.critical_tokens import (
    contrastive_estimation,
    critical_token,
    replaced_token_scores,
    rollout_scores,
)
from tokenry.model.score import score
from tokenry.tasks.worlds.running_sums import END, VOCABULARY, RunningSums

Solution = tuple[list[int], list[int]]  # prompt, completion
Solutions = dict[int, list[Solution]]  # by the problem's number


class Critical(NamedTuple):
    """A wrong solution. rollouts: the share of right completions of each of its prefixes, the token
    included; place: of its critical token; kept, banned: accuracy behind that token, and with it
    banned. scores: the contrastive estimate of every token."""

    solution: Solution
    rollouts: list[float]
    place: int
    kept: float
    banned: float
    scores: list[float]


@dataclass(frozen=True)
class SumsBench:
    """A reference, its right and wrong solutions, a copy tuned on either, and pairs of them.

    terms: of a sum. good_enough: share of right answers at which the reference stops learning, but
    not before `least` steps. problems, copies: solutions sampled. tune_steps: of the two copies.
    steps, batch_size: of a preference training. samples: completions of every analysed prefix.
    """

    seed: int
    terms: int = 4
    good_enough: float = 0.5
    least: int = 200
    problems: int = 400
    copies: int = 8
    tune_steps: int = 60
    steps: int = 80
    batch_size: int = 24
    samples: int = 32

    @cached_property
    def task(self) -> RunningSums:
        return RunningSums(self.terms)

    @cached_property
    def reference(self) -> Any:
        """Addition modulo 10 is learned suddenly or not at all: a model that has not learned it
        after 450 steps begins anew from other weights."""
        accuracies: list[float] = []

        def batches(draw: torch.Generator) -> TokenBatch:
            prompts = self.task.problems(64, draw)
            return completed(prompts, self.task.solutions(prompts))

        def train(model: Any) -> None:
            def good(step: int) -> bool:
                accuracies.append(self.accuracy(model, 200, step) if step >= self.least else -1.0)
                return accuracies[-1] >= self.good_enough

            options = {"steps": 450, "learning_rate": 5e-3, "observe": good, "every": 10}
            generator = torch.Generator().manual_seed(self.seed)
            for attempt in range(8):
                start = toy_model(VOCABULARY, 64, self.seed + 1000 * attempt)
                model.load_state_dict(start.state_dict())
                train_on(batches, NegativeLogLikelihood(), model, seed=generator, **options)
                if accuracies[-1] >= self.good_enough:
                    return
            raise ModelError(f"no transformer learned running sums from seed {self.seed}")

        recipe = (self.terms, self.seed, self.good_enough, self.least)
        return trained(lambda: toy_model(VOCABULARY, 64, self.seed), train, *recipe)

    @property
    def _ending(self) -> dict[str, Any]:
        return {"max_new_tokens": self.task.length, "ends": [END]}

    def accuracy(self, model: Any, count: int, seed: int) -> float:
        """Share of right answers among single samples of `count` problems."""
        draw = torch.Generator().manual_seed(1000 + seed)
        prompts = self.task.problems(count, draw).tolist()
        drawn = rollouts(model, prompts, seed=seed, **self._ending)
        right = [self.task.is_correct(p, ids) for p, (ids,) in zip(prompts, drawn, strict=True)]
        return sum(right) / count

    def sampled(self, count: int, copies: int, draw: torch.Generator) -> list[Solutions]:
        """Wrong and right solutions of `count` problems."""
        prompts = self.task.problems(count, draw).tolist()
        drawn = rollouts(self.reference, prompts, copies, seed=draw, **self._ending)
        kinds: list[Solutions] = [{}, {}]
        for number, (prompt, completions) in enumerate(zip(prompts, drawn, strict=True)):
            for ids in completions:
                kind = kinds[self.task.is_correct(prompt, ids)]
                kind.setdefault(number, []).append((prompt, ids))
        return kinds

    @cached_property
    def _drawn(self) -> tuple[list[Solutions], list[Solutions], torch.Generator]:
        """Solutions to learn from, solutions to analyse, and the generator behind them."""
        draw = torch.Generator().manual_seed(self.seed)
        learnt = self.sampled(self.problems, self.copies, draw)
        return learnt, self.sampled(100, 1, draw), draw

    @cached_property
    def tuned(self) -> dict[str, Any]:
        """Copies tuned on the right ("positive") and on the wrong ("negative") solutions."""

        def tune(kind: Solutions) -> Any:
            paths = [path for found in kind.values() for path in found]

            def batches(draw: torch.Generator) -> TokenBatch:
                rows = torch.randint(len(paths), (48,), generator=draw).tolist()
                return as_batch([paths[row] for row in rows])

            return train_copy(
                batches, NegativeLogLikelihood(), self.reference, steps=self.tune_steps,
                learning_rate=1e-3, clip=None, seed=self.seed,
            )[0]  # fmt: skip

        wrong, right = self._drawn[0]
        return {"positive": tune(right), "negative": tune(wrong)}

    @cached_property
    def pairs(self) -> list[dict[str, list[int]]]:
        """The first right solution of a problem, and the first with its most frequent wrong answer:
        confident errors are worth unlearning."""
        wrong, right = self._drawn[0]
        chosen = [(right[n][0], self._most_frequent(wrong[n])) for n in right if n in wrong]
        return [{"prompt_ids": p, "chosen_ids": y, "rejected_ids": z} for (p, y), (_, z) in chosen]

    def _most_frequent(self, paths: list[Solution]) -> Solution:
        (answer, _), *_ = Counter(self.task.answer(ids) for _, ids in paths).most_common()
        return next(path for path in paths if self.task.answer(path[1]) == answer)

    def train(self, objective: Any, learning_rate: float) -> Any:
        """A copy of the reference trained on the pairs."""

        batches = from_rows(objective, self.pairs, self.batch_size)
        return train_copy(
            batches, objective, self.reference, frozen=self.tuned, steps=self.steps,
            learning_rate=learning_rate, seed=self.seed,
        )[0]  # fmt: skip

    def critical_tokens(self, count: int) -> list[Critical]:
        """Of the wrong ones among fresh solutions, at most `count`, those with a critical token."""
        _, (wrong, _), draw = self._drawn
        paths = [path for found in wrong.values() for path in found][:count]
        batch = as_batch(paths)
        views = [score(self.tuned[n], batch, needs=("hidden",)) for n in ("positive", "negative")]
        estimate = contrastive_estimation(views[0], views[1])
        scores = [row[target].tolist() for row, target in zip(estimate, batch.target, strict=True)]
        how: dict[str, Any] = {"samples": self.samples, "seed": draw, **self._ending}
        found = []
        for (prompt, ids), values in zip(paths, scores, strict=True):

            def is_correct(completion: list[int], prompt: list[int] = prompt) -> bool:
                return self.task.is_correct(prompt, completion)

            shares = rollout_scores(self.reference, prompt, ids, is_correct, **how)
            place = critical_token(shares)
            if place is not None:
                banned, kept = (
                    count / self.samples
                    for count in replaced_token_scores(
                        self.reference, prompt, ids, place, is_correct, **how
                    )
                )
                found.append(Critical((prompt, ids), shares.tolist(), place, kept, banned, values))
        return found


def as_batch(paths: Sequence[Solution]) -> TokenBatch:
    return joined_batch([prompt for prompt, _ in paths], [ids for _, ids in paths])
