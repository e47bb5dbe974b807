"""Multi-token prediction with gated LoRA at laptop scale: a small model that spells words.

Texts are words of four letters; a word's first letter tells it, and the next word is one of three.
A small transformer learns such texts and is then frozen. Masks, gated LoRA and sampler (k = 4) are
trained on texts that the model wrote, with and without latent consistency, and draft for texts
sampled at temperature 1. Without a sampler every mask guesses on its own, and does not know which
word has begun. The plain LoRA of the comparison is trained the same way, and on the
model's own next-token loss too, since it is on everywhere.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from tokenry.core.batch import TokenBatch
from tokenry.decode.speculation.mtp import MTP
from tokenry.decode.speculation.speculate import Speculation, generate_with_drafter
from tokenry.lab.toy_model import toy_model
from tokenry.lab.toy_training import NegativeLogLikelihood, sample_on, train_on
from tokenry.learn.recipes.draft_heads import Schedule
from tokenry.learn.recipes.mtp import mtp_states, mtp_training_batch, train_mtp
from tokenry.model.heads.mtp import MaskPredictor
from tokenry.model.layers.gated_lora import GatedLoRA
from tokenry.model.output import output_logits
from tokenry.papers.base import Measurement, Outcome, Paper, mean_and_error

LETTERS, WORDS, SPELLED = 26, 20, 4
WIDTH, LAYERS, LENGTH = 64, 3, 48
BASE_STEPS, BASE_BATCH, BASE_RATE = 200, 24, 3e-3
K, RANK = 4, 8
WRITTEN, BLOCKS = 96, 10
SCHEDULE = Schedule(steps=200, batch_size=8, length=LENGTH, learning_rate=5e-3, warm_up=20)
TEXTS, NEW = 8, 60


def reproduce(seed: int) -> Outcome:
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    words = Words(generator)
    model = train_on(
        lambda g: words.batch(BASE_BATCH, g),
        NegativeLogLikelihood(),
        toy_model(LETTERS, 4 * LENGTH, seed, width=WIDTH, layers=LAYERS),
        steps=BASE_STEPS,
        learning_rate=BASE_RATE,
        seed=seed,
        decay=0.5,
    )
    prompts = words.batch(WRITTEN, generator).ids[:, :SPELLED]
    written = torch.cat([prompts, sample_on(model, prompts, LENGTH - SPELLED, generator)], 1)
    own = written.tolist()
    consistent = train(model, own, seed)
    bare = train(model, own, seed, consistency=0.0)
    plain = train(model, own, seed, lora=AlwaysOn.of(model, RANK, seed=seed))

    tests = words.batch(TEXTS, generator)
    speeds: dict[str, Tensor] = {}
    for name, predictor in (("", consistent), (", no consistency", bare)):
        alone = copy.deepcopy(predictor)
        alone.sampler = None
        for told, used in (("sampler", predictor), ("no sampler", alone)):
            for mode in ("linear", "quadratic"):
                drafter = MTP(used, mode=mode)
                found = decode(model, tests.ids, drafter, seed, temperature=1.0)
                speeds[f"{mode}, {told}{name}"] = per_pass(found)
    greedy = decode(model, tests.ids, MTP(consistent), seed)
    same = all(
        one.ids == greedy_text(model, prompt) for one, prompt in zip(greedy, tests.ids, strict=True)
    )
    rows = TokenBatch.from_ids(words.batch(TEXTS, generator).ids.tolist())
    base = loss(model, rows, None)
    gated, ungated = (loss(model, rows, p) - base for p in (consistent, plain))

    best, rival = speeds["quadratic, sampler"], speeds["linear, no sampler"]
    gain, error = mean_and_error(best - rival)
    slowest, slowest_error = mean_and_error(rival)
    helped = float((best - speeds["quadratic, sampler, no consistency"]).mean())
    measurements = [
        Measurement(label, float(value.mean()), "tokens per pass", seed)
        for label, value in speeds.items()
    ]
    measurements += [
        Measurement("quadratic + sampler over linear without", gain, "tokens per pass", seed),
        Measurement("standard error of that", error, "tokens per pass", seed),
        Measurement("next-token loss of the model", base, "nats", seed),
        Measurement("change of it by gated LoRA", gated, "nats", seed),
        Measurement("change of it by plain LoRA", ungated, "nats", seed),
        Measurement("greedy texts equal to plain decoding", float(same), "", seed),
        Measurement("most tokens read in a linear pass", 1 + 2 * K, "tokens", seed),
        Measurement("most tokens read in a quadratic pass", (1 + K) ** 2, "tokens", seed),
    ]
    return Outcome(
        held=same
        and gain > 2 * error
        and slowest - 1 > 2 * slowest_error
        and gated == 0.0
        and ungated > 0.0,
        needs="tokens per pass: quadratic with sampler > linear without > 1, both by two standard "
        "errors; next-token loss: gated change = 0 < plain LoRA's; same greedy texts",
        measurements=measurements,
        reason=f"latent consistency gives {helped:+.2f} tokens per pass. Counted in passes: a "
        f"quadratic pass reads up to {(1 + K) ** 2} tokens, and the sampler runs the output layer "
        "once per draft.",
        figure=lambda figure: draw(figure, speeds),
    )


class Words:
    """Words of four letters with different first letters; three words may follow each."""

    def __init__(self, generator: torch.Generator):
        rest = torch.randint(LETTERS, (WORDS, SPELLED - 1), generator=generator)
        self.spelled = torch.cat([torch.arange(WORDS)[:, None], rest], dim=1)
        chances = torch.rand(WORDS, WORDS, generator=generator)
        self.follow = chances.topk(3).indices  # [WORDS, 3]
        self.chance = torch.tensor([0.6, 0.3, 0.1])

    def batch(self, count: int, generator: torch.Generator) -> TokenBatch:
        """Texts of LENGTH letters."""
        word = torch.randint(WORDS, (count,), generator=generator)
        text = [word]
        for _ in range(LENGTH // SPELLED - 1):
            choice = torch.multinomial(self.chance, count, replacement=True, generator=generator)
            word = self.follow[word, choice]
            text.append(word)
        ids = self.spelled[torch.stack(text, 1)].flatten(1)
        target = torch.ones_like(ids, dtype=torch.bool)
        target[:, 0] = False
        return TokenBatch(ids, torch.ones_like(target), target)


class AlwaysOn(GatedLoRA):
    """Plain LoRA: every token feels the change, whatever the gate."""

    def gate(self, model: Any, chosen: Tensor) -> AbstractContextManager[None]:
        return super().gate(model, torch.ones_like(chosen))


def train(
    model: Any,
    texts: Sequence[Sequence[int]],
    seed: int,
    *,
    consistency: float = 1.0,
    lora: GatedLoRA | None = None,
) -> MaskPredictor:
    predictor = MaskPredictor.of(model, K, RANK, seed=seed)
    if lora is not None:
        predictor.lora = lora
    return train_mtp(
        model,
        texts,
        predictor=predictor,
        blocks=BLOCKS,
        schedule=SCHEDULE,
        weights=(1.0, 1.0, consistency),
        own_weight=0.0 if lora is None else 1.0,  # plain LoRA must keep the model's predictions
    )


def decode(
    model: Any, texts: Tensor, drafter: MTP, seed: int, temperature: float = 0.0
) -> list[Speculation]:
    """Every text's first words, continued."""
    return [
        generate_with_drafter(
            model,
            text[: 2 * SPELLED],
            drafter,
            NEW,
            temperature=temperature,
            eos_token_id=[],
            generator=torch.Generator().manual_seed(seed * 1000 + number),
        )
        for number, text in enumerate(texts)
    ]


def greedy_text(model: Any, text: Tensor) -> list[int]:
    prompt = text[None, : 2 * SPELLED]
    rest = sample_on(model, prompt, NEW, torch.Generator(), greedy=True)
    return torch.cat([prompt, rest], 1)[0].tolist()


def per_pass(found: list[Speculation]) -> Tensor:
    return torch.tensor([one.tokens_per_pass for one in found])


@torch.no_grad()
def loss(model: Any, rows: TokenBatch, predictor: MaskPredictor | None) -> float:
    """Next-token loss at the texts' own tokens in a pass with masks behind every fourth token; the
    model's own without a predictor, with masks all the same: sums of one shape round alike."""
    layout = mtp_training_batch(rows, K, torch.arange(0, LENGTH, 4))
    if predictor is None:
        predictor = MaskPredictor.of(model, K, 1)
    states, _ = mtp_states(model, predictor, layout)
    logprob = output_logits(model, states[:, :-1]).log_softmax(-1)
    return -float(logprob.gather(-1, rows.ids[:, 1:, None]).double().mean())


def draw(figure: Any, speeds: dict[str, Tensor]) -> None:
    axes = figure.subplots()
    places = range(len(speeds))
    axes.barh(places, [float(value.mean()) for value in speeds.values()])
    axes.set_yticks(places, list(speeds))
    axes.invert_yaxis()
    axes.axvline(1, color="grey", linewidth=0.8)
    axes.set(xlabel=f"tokens per pass (at most {K + 1})")


PAPER = Paper(
    number=102,
    key="gated-lora-mtp",
    title="Your LLM Knows the Future: Uncovering Its Multi-Token Prediction Potential",
    arxiv="2507.11851",
    role="drafter",
    family="efficiency",
    claim="Appended masks with gated LoRA and a small sampler let a frozen model draft several "
    "tokens in the pass that verifies the last ones, without a change in its text.",
    reproduce=reproduce,
    threads=1,
)
