"""FSPAD at laptop scale: draft heads for a small character model of Python's standard library.

Three heads learn from the same texts, half of which the model wrote at temperature 1 and half
greedily: EAGLE's, the same with feature sampling, and with partial alignment too. EAGLE's has a
wider feed-forward block, for as many weights. Judged is how many of four chained guesses come true
behind every place of further texts that the model wrote, sampled and greedy: that is what
verification accepts, since the model's next token is drawn first and then compared with the guess.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from tokenry.core.batch import TokenBatch
from tokenry.decode.speculation.fspad import FSPAD
from tokenry.decode.speculation.speculate import generate_with_drafter
from tokenry.lab.toy_model import toy_model
from tokenry.lab.toy_training import NegativeLogLikelihood, sample_on, train_on
from tokenry.learn.recipes.draft_heads import Schedule
from tokenry.learn.recipes.fspad import train_feature_head
from tokenry.model.heads.fspad import FeatureHead, features_of
from tokenry.papers.base import Measurement, Outcome, Paper, mean_and_error

MODULES = ("argparse", "collections", "csv", "datetime", "inspect", "logging", "pathlib", "shutil")
WIDTH, LAYERS, HEADS, LENGTH = 96, 3, 4, 96
BASE_STEPS, BASE_BATCH, BASE_RATE = 220, 16, 3e-3
PROMPT = 16
WRITTEN, TESTS = 192, 64
INNER, EXPANSION = 192, 2
EXTRA = 3 * EXPANSION * WIDTH * WIDTH  # weights of the feature sampler
BRANCH = WIDTH * WIDTH
SCHEDULE = Schedule(steps=250, batch_size=10, length=LENGTH, learning_rate=2e-3, warm_up=20)
DEPTH = 4

KINDS: dict[str, dict[str, Any]] = {
    "EAGLE": {
        "feature_sampling": False,
        "partial_alignment": False,
        "inner": INNER + (EXTRA + BRANCH) // (3 * WIDTH),
    },
    "feature sampling": {"partial_alignment": False, "inner": INNER + BRANCH // (3 * WIDTH)},
    "feature sampling + partial alignment": {"inner": INNER},
}


def reproduce(seed: int) -> Outcome:
    generator = torch.Generator().manual_seed(seed)
    source, characters = library()
    model = train_on(
        lambda g: pieces(source, BASE_BATCH, g),
        NegativeLogLikelihood(),
        toy_model(len(characters), 4 * LENGTH, seed, width=WIDTH, layers=LAYERS),
        steps=BASE_STEPS,
        learning_rate=BASE_RATE,
        seed=seed,
        decay=0.5,
    )
    own = [write(model, source, WRITTEN // 2, generator, greedy=greedy) for greedy in (True, False)]
    texts = torch.cat(own)
    tests = {
        "temperature 1": write(model, source, TESTS, generator),
        "greedy": write(model, source, TESTS, generator, greedy=True),
    }
    accepted: dict[str, dict[str, Tensor]] = {}
    measurements, same = [], True
    for name, options in KINDS.items():
        torch.manual_seed(seed)
        head = FeatureHead(WIDTH, HEADS, expansion=EXPANSION, **options)
        targets = [[False] * PROMPT + [True] * (LENGTH - PROMPT)] * WRITTEN
        train_feature_head(model, texts.tolist(), targets=targets, head=head, schedule=SCHEDULE)
        accepted[name] = {
            kind: chain_lengths(model, head, rows, DEPTH) for kind, rows in tests.items()
        }
        weights = sum(weight.numel() for weight in head.parameters())
        measurements.append(Measurement(f"{name}: weights", weights, "weights", seed))
        measurements += [
            Measurement(f"{name}, {kind}", float(rates.sum(1).mean()), "accepted of 4", seed)
            for kind, rates in accepted[name].items()
        ]
        drafter = FSPAD(head, nodes=DEPTH, depth=DEPTH, breadth=1)
        for row in tests["greedy"][:3]:
            found = generate_with_drafter(model, row[:PROMPT], drafter, LENGTH - PROMPT)
            same = same and found.ids == row.tolist()
    eagle, sampling, ours = accepted.values()
    gains = {kind: mean_and_error((ours[kind] - eagle[kind]).sum(1)) for kind in tests}
    for kind, (gain, error) in gains.items():
        measurements.append(Measurement(f"gain over EAGLE, {kind}", gain, "tokens", seed))
        measurements.append(Measurement(f"standard error, {kind}", error, "tokens", seed))
    measurements.append(Measurement("greedy texts equal to plain decoding", float(same), "", seed))
    (drawn, drawn_error), (greedy, greedy_error) = gains.values()
    alone = float((sampling["temperature 1"] - eagle["temperature 1"]).sum(1).mean())
    return Outcome(
        held=same and drawn > 2 * drawn_error and greedy > -2 * greedy_error,
        needs="accepted guesses, over texts: more than EAGLE's by two standard errors at "
        "temperature 1, not fewer by two in greedy texts; same greedy texts",
        measurements=measurements,
        reason=f"at temperature 1 FSPAD's head gains {drawn:+.3f} ± {drawn_error:.3f} of 4 guesses "
        f"({alone:+.3f} by feature sampling alone), in greedy texts {greedy:+.3f} ± "
        f"{greedy_error:.3f}; the formulas are reconstructed",
        figure=lambda figure: draw(figure, accepted),
    )


@torch.no_grad()
def chain_lengths(model: Any, head: FeatureHead, rows: Tensor, depth: int) -> Tensor:
    """How often the first, second, ... guess of a chain comes true, with all before it: [B, depth].

    A chain starts behind every token of rows [B, T], all in one go: the head reads true features
    up to there and its own after that. Behind the last `depth` tokens and in the prompt none does.
    """
    B, T = rows.shape
    embed, (weight, bias) = model.get_input_embeddings(), head.output_rows(model)
    features = features_of(model, rows, torch.ones_like(rows))[:, :-1]
    tokens, count = rows[:, 1:], T - 1  # pair i: the feature of token i, and token i + 1
    places = torch.arange(count)
    past = places <= places[:, None]
    itself = torch.eye(count, dtype=torch.bool)
    memory, alive = None, torch.ones(B, count - depth, dtype=torch.bool)
    rates = []
    for step in range(depth):
        seen = torch.cat([past, *[itself] * step], dim=1)[None, None]
        features, answer, memory = head(
            features, embed(tokens), memory, (places + step).expand(B, -1), seen
        )
        ids = linear(answer, weight, bias).argmax(-1)
        tokens = torch.tensor(head.to_ids(ids.flatten().tolist())).view_as(ids)
        truth = rows[:, 2 + step : 2 + step + count - depth]
        alive = alive & (tokens[:, : count - depth] == truth)
        rates.append(alive[:, PROMPT - 1 :].float().mean(1))
    return torch.stack(rates, 1)


def library() -> tuple[Tensor, str]:
    """The source text of some modules as ids, and the characters: the rarest are one."""
    import importlib

    text = "\n".join(inspect.getsource(importlib.import_module(name)) for name in MODULES)
    plain = "".join(c if c == "\n" or " " <= c <= "~" else "?" for c in text)
    characters = "".join(sorted(set(plain)))
    places = {character: place for place, character in enumerate(characters)}
    return torch.tensor([places[c] for c in plain]), characters


def pieces(source: Tensor, count: int, generator: torch.Generator) -> TokenBatch:
    starts = torch.randint(len(source) - LENGTH, (count, 1), generator=generator)
    ids = source[starts + torch.arange(LENGTH)]
    target = torch.ones_like(ids, dtype=torch.bool)
    target[:, 0] = False
    return TokenBatch(ids, torch.ones_like(target), target)


def write(
    model: Any, source: Tensor, count: int, generator: torch.Generator, greedy: bool = False
) -> Tensor:
    """Texts that the model wrote behind pieces of source: [count, LENGTH]."""
    prompts = pieces(source, count, generator).ids[:, :PROMPT]
    rest = sample_on(model, prompts, LENGTH - PROMPT, generator, greedy=greedy)
    return torch.cat([prompts, rest], 1)


def draw(figure: Any, accepted: dict[str, dict[str, Tensor]]) -> None:
    panels = figure.subplots(1, 2, sharey=True)
    for axes, kind in zip(panels, ("temperature 1", "greedy"), strict=True):
        for name, found in accepted.items():
            axes.plot(range(1, DEPTH + 1), found[kind].mean(0).tolist(), marker="o", label=name)
        axes.set(xlabel="guess", ylabel="share that came true", title=kind)
        axes.set_xticks(range(1, DEPTH + 1))
    panels[0].legend()


PAPER = Paper(
    number=91,
    key="fspad",
    title="Boosting Lossless Speculative Decoding via Feature Sampling and Partial Alignment "
    "Distillation",
    arxiv="2408.15562",
    role="drafter",
    family="efficiency",
    claim="A draft head whose input token selects from the target's feature, and whose logits "
    "leave the feature by a branch of their own, gets more guesses accepted than EAGLE's.",
    reproduce=reproduce,
    threads=1,
)
