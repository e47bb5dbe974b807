"""TARS: does perturbing evidence-irrelevant tokens keep DPO from learning a shortcut?

A prompt lists evidence (keys and their values), asks for one key's value and adds a filler word.
In the preference data the filler names the right value nineteen times in twenty; at test it says
nothing. The reference, fitted to noisy answers with random fillers, has learned to answer with one
of the evidence's values, not yet which.
An answer other than the evidence's value is a hallucination. A token is relevant to TARS if the
evidence has it too; the control masks the asked key or the filler at random.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from statistics import mean
from typing import Any

import torch
from torch import Tensor

from tokenry.core.batch import TokenBatch
from tokenry.lab.toy_model import toy_model
from tokenry.learn.compute import compute_loss
from tokenry.learn.data.precompute import PrecomputeContext, joined_batch, precompute
from tokenry.learn.fit import fit
from tokenry.learn.preference.dpo import DPO
from tokenry.learn.preference.tars import TARS
from tokenry.learn.reference import FrozenModel
from tokenry.model.score import score
from tokenry.papers.base import Measurement, Outcome, Paper

RUNS = 2
KEYS, VALUES = 3, 6
CORRELATION = 0.95
NOISE = 0.4  # of the reference's data: answers that are a random value
FIT_STEPS, FIT_BATCH, FIT_RATE = 200, 64, 3e-3  # at most so many steps
FIT_UNTIL = 0.53  # hallucinations of the reference: it knows which values are in the evidence
STEPS, BATCH, RATE, EVERY = 480, 32, 5e-4, 80
PAIRS, TESTS = 1000, 500
BETA = 0.1

Curve = list[tuple[int, float]]


def reproduce(seed: int) -> Outcome:
    measurements, table, drawn = [], {}, {}
    for run in range(RUNS):
        at = seed * 100 + run
        rows, curves = compare(at)
        drawn = drawn or curves
        for label, value in rows.items():
            table.setdefault(label, []).append(value)
            measurements.append(Measurement(label, value, "share", at))
    average = {label: mean(values) for label, values in table.items()}
    plain, ours = (
        average[f"{name}: hallucinations, filler says nothing"] for name in ("dpo", "tars")
    )
    within = average["dpo: hallucinations, filler as in training"]
    within = average["tars: hallucinations, filler as in training"] - within
    held = ours < plain and within <= 0.03
    control = average["dpo, random masks: hallucinations, filler says nothing"]
    return Outcome(
        held=held,
        needs=f"means over {RUNS} runs: TARS hallucinates less than DPO where the filler says "
        "nothing, and at most 3 points more where it is as in training",
        measurements=measurements,
        reason=f"random masking comes to {control:.1%}"
        if held
        else f"filler without information: DPO {plain:.1%}, TARS {ours:.1%}; as in training TARS "
        f"is {within:+.1%} off DPO",
        figure=lambda figure: _draw(figure, drawn),
    )


def compare(seed: int) -> tuple[dict[str, float], dict[str, Curve]]:
    """Hallucination rates of every method after training, and on the way."""
    task = Lookup.make()
    generator = torch.Generator().manual_seed(seed)
    reference = task.fit(seed, generator)
    rows = task.pairs(PAIRS, generator)
    tests = {
        "filler says nothing": task.questions(TESTS, 0.0, generator),
        "filler as in training": task.questions(TESTS, CORRELATION, generator),
    }
    control = torch.Generator().manual_seed(seed)

    def at_random(row: dict[str, Any], _: PrecomputeContext) -> list[float | None]:
        drawn = torch.rand(len(row["prompt_ids"]), generator=control).tolist()
        return [
            None if relevance is None else value
            for relevance, value in zip(shared_with_evidence(row, _), drawn, strict=True)
        ]

    goals: dict[str, Any] = {
        "tars": TARS(BETA, most=0.5, relevance=shared_with_evidence),
        "tars without the spectral term": TARS(
            BETA, most=0.5, frequency_weight=0.0, relevance=shared_with_evidence
        ),
        "dpo": DPO(BETA),
        "dpo, random masks": TARS(BETA, most=0.5, frequency_weight=0.0, relevance=at_random),
    }
    found = {f"reference: hallucinations, {n}": wrong(reference, t) for n, t in tests.items()}
    curves = {}
    for name, goal in goals.items():
        context = PrecomputeContext(
            task.tokenizer, reference, FrozenModel(reference), seed=seed, batch_size=64
        )
        annotated = precompute(goal, rows, context)
        policy, curves[name] = train(goal, reference, annotated, tests["filler says nothing"], seed)
        for label, test in tests.items():
            found[f"{name}: hallucinations, {label}"] = wrong(policy, test)
    return found, curves


def shared_with_evidence(row: dict[str, Any], _: PrecomputeContext) -> list[float | None]:
    """1 for a word of the question that the evidence has, 0 for another; the rest stays."""
    words, evidence = row["prompt"].split(), row["evidence"].split()
    question = range(len(evidence) + 1, len(words) - 1)
    return [
        float(word in evidence) if place in question else None for place, word in enumerate(words)
    ]


def train(
    goal: Any, reference: Any, rows: list[dict[str, Any]], test: tuple[Tensor, Tensor], seed: int
) -> tuple[Any, Curve]:
    """The policy, and its hallucinations on the way."""
    policy, frozen = copy.deepcopy(reference).requires_grad_(True), FrozenModel(reference)
    curve = [(0, wrong(policy, test))]

    def loss(step: int, generator: torch.Generator) -> Tensor:
        drawn = [rows[n] for n in torch.randint(len(rows), (BATCH,), generator=generator).tolist()]
        sides = [(row, side) for side in ("chosen", "rejected") for row in drawn]
        batch = joined_batch(
            [row["prompt_ids"] for row, _ in sides], [row[f"{side}_ids"] for row, side in sides]
        )
        energies = [row.get(f"{side}_reference_log_energy", 0.0) for row, side in sides]
        batch = TokenBatch(
            batch.ids,
            batch.attention,
            batch.target,
            torch.arange(BATCH).repeat(2),
            {"reference_log_energy": torch.tensor(energies)},
        )
        return compute_loss(goal, batch, policy, frozen).loss

    fit(
        loss,
        policy,
        steps=STEPS,
        learning_rate=RATE,
        clip=None,
        seed=seed,
        observe=lambda step, _: curve.append((step, wrong(policy, test))),
        every=EVERY,
    )
    return policy, curve


@torch.no_grad()
def wrong(model: Any, test: tuple[Tensor, Tensor]) -> float:
    """Share of greedy answers that are not the evidence's."""
    prompts, answers = test
    return float((model(prompts).logits[:, -1].argmax(-1) != answers).float().mean())


@dataclass(frozen=True)
class Lookup:
    """Prompts "k0 v3 k1 v5 k2 v0 ? k1 f4 =" with the answer "v5 ."; "?", "=" are special tokens."""

    tokenizer: Any

    @classmethod
    def make(cls) -> Lookup:
        from tokenizers import Tokenizer, models, pre_tokenizers
        from transformers import PreTrainedTokenizerFast

        words = ["[MASK]", "?", "=", ".", *(f"k{n}" for n in range(KEYS))]
        words += [f"{kind}{n}" for kind in "vf" for n in range(VALUES)]
        backend = Tokenizer(models.WordLevel({w: n for n, w in enumerate(words)}, unk_token="?"))
        backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, mask_token="[MASK]")
        tokenizer.add_special_tokens({"additional_special_tokens": ["?", "="]})
        return cls(tokenizer)

    def texts(
        self, count: int, correlation: float, generator: torch.Generator
    ) -> list[tuple[str, str, int]]:
        """(evidence, prompt, right value); the filler names the value that often, else a random
        one."""
        found = []
        for _ in range(count):
            values = torch.randint(VALUES, (KEYS,), generator=generator).tolist()
            asked, filler = (
                int(torch.randint(n, (1,), generator=generator)) for n in (KEYS, VALUES)
            )
            if float(torch.rand(1, generator=generator)) < correlation:
                filler = values[asked]
            evidence = " ".join(f"k{key} v{value}" for key, value in enumerate(values))
            found.append((evidence, f"{evidence} ? k{asked} f{filler} =", values[asked]))
        return found

    def pairs(self, count: int, generator: torch.Generator) -> list[dict[str, Any]]:
        rows = []
        for evidence, prompt, value in self.texts(count, CORRELATION, generator):
            other = (value + int(torch.randint(1, VALUES, (1,), generator=generator))) % VALUES
            row: dict[str, Any] = {"evidence": evidence, "prompt": prompt}
            row |= {"chosen": f"v{value} .", "rejected": f"v{other} ."}
            ids = {f"{name}_ids": self.tokenizer(text)["input_ids"] for name, text in row.items()}
            rows.append(row | ids)
        return rows

    def questions(
        self, count: int, correlation: float, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Prompts [N, T] and right answers [N]."""
        drawn = self.texts(count, correlation, generator)
        answers = self.tokenizer([f"v{value}" for *_, value in drawn])["input_ids"]
        return (
            torch.tensor(self.tokenizer([prompt for _, prompt, _ in drawn])["input_ids"]),
            torch.tensor(answers)[:, 0],
        )

    def fit(self, seed: int, generator: torch.Generator) -> Any:
        """A small transformer fitted to noisy answers; fillers are random."""
        model = toy_model(len(self.tokenizer), 2048, seed)
        prompts, answers = self.questions(FIT_STEPS * FIT_BATCH // 4, 0.0, generator)
        first = int(self.tokenizer.convert_tokens_to_ids("v0"))
        random = first + torch.randint(VALUES, answers.shape, generator=generator)
        noisy = torch.rand(len(answers), generator=generator) < NOISE
        end = torch.full_like(answers, self.tokenizer.convert_tokens_to_ids("."))
        given = torch.where(noisy, random, answers)
        ids = torch.cat([prompts, torch.stack([given, end], 1)], 1)
        target = torch.zeros_like(ids, dtype=torch.bool)
        target[:, -2:] = True
        whole = TokenBatch(ids, torch.ones_like(target), target)
        test = self.questions(TESTS, 0.0, generator)

        def loss(step: int, generator: torch.Generator) -> Tensor | None:
            if step % 5 == 0 and wrong(model, test) < FIT_UNTIL:
                return None
            batch = whole.select(torch.randint(len(ids), (FIT_BATCH,), generator=generator))
            logprob = score(model, batch, ("logprob",), grad=True).need("logprob")
            return -logprob.sum() / (2 * FIT_BATCH)

        fit(loss, model, steps=FIT_STEPS, learning_rate=FIT_RATE, clip=None, seed=generator)
        return model.eval().requires_grad_(False)


def _draw(figure: Any, curves: dict[str, Curve]) -> None:
    axes = figure.subplots()
    for name, curve in curves.items():
        axes.plot(*zip(*curve, strict=True), marker="o", label=name)
    axes.set(xlabel="step", ylabel="hallucinations where the filler says nothing")
    axes.legend()


PAPER = Paper(
    number=1,
    key="tars",
    title="TARS: MinMax Token-Adaptive Preference Strategy for MLLM Hallucination Reduction",
    arxiv="2507.21584",
    role="objective",
    family="preference",
    claim="Preference training on prompts whose evidence-irrelevant tokens are perturbed "
    "hallucinates less than DPO, which leans on spurious tokens.",
    reproduce=reproduce,
    threads=1,
)
