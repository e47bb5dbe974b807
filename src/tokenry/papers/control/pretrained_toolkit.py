"""Two uses of a pretrained model that need no training of it: optimised states, conditional modes.

Left: SmolLM2 reads three passages of the standard library's source in segments of 25 tokens. With
hidden-state optimisation one Adam step on the cache follows each segment; every token is scored
before the states learn from it. Compared is the frozen model with the same cache.

Right: a small transformer learns texts of clauses, three percent of which are empty, in ten
dialects. What is its most probable text, and its most probable one of a given length? A clause is
2, 3 or 5 tokens long and a text ends only behind a clause, so whoever wants eleven tokens has to
plan. The attribute's q is a classifier of remaining lengths, trained on the model's own samples.
"""

import inspect
import itertools
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from tokenry.core.batch import TokenBatch
from tokenry.decode.constraints.base import Anything
from tokenry.decode.constraints.length import Length
from tokenry.decode.exact_mode import exact_mode
from tokenry.decode.rollouts import rollouts
from tokenry.decode.samplers.beam import BeamSearch
from tokenry.decode.samplers.request import Request
from tokenry.lab.toy_model import toy_model
from tokenry.lab.toy_training import NegativeLogLikelihood, train_on
from tokenry.learn.recipes.prefix_classifier import remaining_labels, train_prefix_classifier
from tokenry.model.decoding import DecodingState
from tokenry.model.memory.hidden_state_optimization import HiddenStateOptimizer
from tokenry.papers.base import Measurement, Outcome, Paper, mean_and_error

MODULES = ("argparse", "asyncio.base_events", "calendar", "configparser", "csv", "difflib")
MODULES += ("fractions", "ftplib", "heapq", "imaplib", "mailbox", "pathlib", "pickle", "shutil")
MODULES += ("smtplib", "statistics", "tarfile", "textwrap", "threading", "zipfile")
PASSAGES, TOKENS, SEGMENT, RATE = 3, 400, 25, 3e-3

END, OPENERS, CONTENT, DIALECTS = 0, {1: 2, 2: 3, 3: 5}, range(4, 12), range(12, 22)
VOCABULARY, LIMIT = 22, 24
EMPTY, LEAST_CLAUSES, STOP = 0.03, 3, 0.3
TRAINING, STEPS, SAMPLES = 8_000, 400, 200
LENGTHS, BEAMS, WIDE, DRAWN = (9, 11, 15), 5, 20, 100


def reproduce(seed: int) -> Outcome:
    reading = read_source(seed)
    modes = search_modes(seed)
    saved, error = reading.saved
    empty = modes.share_empty
    gain, gain_error = mean_and_error(modes.differences("attribute", "drawn"))
    better, better_error = mean_and_error(modes.differences("attribute", "beam"))
    valid = modes.share_valid
    measured = [
        Measurement("frozen cache", float(reading.frozen.mean()), "nats per token", seed),
        Measurement("optimised cache", float(reading.optimised.mean()), "nats per token", seed),
        Measurement("saved by optimisation", saved, "nats per token", seed),
        Measurement("standard error of it, over segments", error, "nats per token", seed),
        Measurement("prompts with an empty exact mode", modes.share_proven_empty, "share", seed),
        Measurement("prompts with an empty beam-search mode", empty, "share", seed),
        Measurement("conditional modes that are valid texts", valid, "share", seed),
        Measurement("log p, conditional beam search", modes.mean("attribute"), "nats", seed),
        Measurement("log p, best of 100 samples of the length", modes.mean("drawn"), "nats", seed),
        Measurement("log p, beam search under a length mask", modes.mean("beam"), "nats", seed),
        Measurement("gain over the samples", gain, "nats", seed),
        Measurement("standard error of it, over prompts", gain_error, "nats", seed),
        Measurement("gain over the mask", better, "nats", seed),
        Measurement("standard error of that, over prompts", better_error, "nats", seed),
    ]
    checks = {
        "optimised states save less than two standard errors": saved > 2 * error,
        "beam search does not fall for the empty text": empty >= 0.8,
        "conditional modes are not valid": valid >= 0.9,
        "conditional modes are no likelier than samples": gain > 2 * gain_error,
        "the attribute is no better than a mask": better > 2 * better_error,
    }
    failed = [text for text, good in checks.items() if not good]
    return Outcome(
        held=not failed,
        needs="HSO lowers SmolLM2's loss on standard-library source by more than two standard "
        f"errors; beam search over {WIDE} beams returns the empty text for at least 80 % of the "
        "prompts; conditional beam search returns valid texts of the asked length for at least "
        "90 %, likelier by more than two standard errors than the best of 100 samples of that "
        "length, and than beam search under a mask",
        measurements=measured,
        reason="; ".join(failed) or None,
        figure=lambda figure: draw(figure, reading, modes),
    )


# --- optimised states ---


@dataclass(frozen=True)
class Losses:
    """-log p of every scored token, [P, T], with the cache left alone and with it optimised."""

    frozen: Tensor
    optimised: Tensor

    @property
    def saved(self) -> tuple[float, float]:
        """Mean saving per token and its standard error over the segments."""
        saving = (self.frozen - self.optimised)[:, : (TOKENS - 1) // SEGMENT * SEGMENT]
        segments = saving.reshape(-1, SEGMENT).mean(1)
        return float((self.frozen - self.optimised).mean()), mean_and_error(segments.double())[1]


def read_source(seed: int) -> Losses:
    import tokenry

    model, tokenizer = tokenry.load("smollm2")
    ids = passages(tokenizer, seed)
    frozen, optimised = (
        HiddenStateOptimizer(model, lr=rate, segment=SEGMENT)(ids).nll[:, 1:]
        for rate in (0.0, RATE)
    )
    return Losses(frozen, optimised)


def passages(tokenizer: Any, seed: int) -> Tensor:
    """Source code of standard modules, cut at a random place: [PASSAGES, TOKENS]."""
    chance = random.Random(seed)
    rows = []
    for name in chance.sample(MODULES, len(MODULES)):
        ids = tokenizer(inspect.getsource(import_module(name)), verbose=False)["input_ids"]
        if len(ids) > TOKENS:
            start = chance.randrange(len(ids) - TOKENS)
            rows.append(ids[start : start + TOKENS])
        if len(rows) == PASSAGES:
            break
    return torch.tensor(rows)


# --- conditional modes ---


@dataclass(frozen=True)
class Language:
    """Ten dialects of a language of clauses: which openers are liked, and which content symbol
    may follow which, with what probability."""

    seed: int
    openers: dict[int, list[float]] = field(init=False)
    follows: dict[tuple[int, int], dict[int, float]] = field(init=False)

    def __post_init__(self) -> None:
        chance = random.Random(self.seed)
        openers, follows = {}, {}
        for dialect in DIALECTS:
            liked = [6.0, 3.0, 1.5]
            openers[dialect] = [weight * math.exp(chance.gauss(0, 0.3)) for weight in liked]
            for symbol in (*OPENERS, *CONTENT):
                after = chance.sample(list(CONTENT), 4)
                follows[dialect, symbol] = {s: math.exp(chance.gauss(0, 0.7)) for s in after}
        object.__setattr__(self, "openers", openers)
        object.__setattr__(self, "follows", follows)

    def text(self, dialect: int, chance: random.Random) -> list[int]:
        """A text without its end."""
        found: list[int] = []
        if chance.random() < EMPTY:
            return found
        clauses = 0
        while len(found) < LIMIT - 6 and (clauses < LEAST_CLAUSES or chance.random() > STOP):
            opener = chance.choices(list(OPENERS), self.openers[dialect])[0]
            clause = [opener]
            while len(clause) < OPENERS[opener]:
                after = self.follows[dialect, clause[-1]]
                clause += chance.choices(list(after), list(after.values()))
            found += clause
            clauses += 1
        return found

    def valid(self, dialect: int, text: Sequence[int]) -> bool:
        """Whether a text is made of whole clauses of the dialect."""
        at, clauses = 0, 0
        while at < len(text):
            size = OPENERS.get(text[at], 0)
            clause = text[at : at + size]
            if not size or len(clause) < size:
                return False
            pairs = itertools.pairwise(clause)
            if any(second not in self.follows[dialect, first] for first, second in pairs):
                return False
            at, clauses = at + size, clauses + 1
        return clauses >= LEAST_CLAUSES


@dataclass(frozen=True)
class Found:
    """The text that a search found for a dialect and a length, and its log p."""

    ids: list[int]
    logprob: float
    valid: bool


@dataclass
class Modes:
    """What the searches found. by: search -> (dialect, length) -> text."""

    empty: list[bool] = field(default_factory=list)
    proven_empty: list[bool] = field(default_factory=list)
    by: dict[str, dict[tuple[int, int], Found]] = field(default_factory=dict)

    @property
    def share_empty(self) -> float:
        return sum(self.empty) / len(self.empty)

    @property
    def share_proven_empty(self) -> float:
        return sum(self.proven_empty) / len(self.proven_empty)

    @property
    def share_valid(self) -> float:
        found = self.by["attribute"].values()
        return sum(text.valid for text in found) / len(found)

    def shared(self) -> list[tuple[int, int]]:
        """Where every search found a text."""
        return sorted(set.intersection(*(set(found) for found in self.by.values())))

    def mean(self, name: str) -> float:
        return sum(self.by[name][place].logprob for place in self.shared()) / len(self.shared())

    def differences(self, one: str, other: str) -> Tensor:
        """Of log p, the mean over the lengths for every dialect."""
        found, against = self.by[one], self.by[other]
        by_dialect: dict[int, list[float]] = {}
        for place in self.shared():
            difference = found[place].logprob - against[place].logprob
            by_dialect.setdefault(place[0], []).append(difference)
        means = [sum(some) / len(some) for some in by_dialect.values()]
        return torch.tensor(means, dtype=torch.float64)


def search_modes(seed: int) -> Modes:
    language = Language(seed)
    model = trained(language, seed)
    prompts = [[dialect] for dialect in DIALECTS]
    ends = [END]
    drawn = rollouts(model, prompts, SAMPLES, max_new_tokens=LIMIT, ends=ends, seed=seed)
    flat = [text for texts in drawn for text in texts]
    most = LIMIT - 1
    classifier = train_prefix_classifier(
        model,
        [prompt for prompt in prompts for _ in range(SAMPLES)],
        flat,
        remaining_labels(flat, ends, most),
        classes=most + 1,
        steps=500,
        seed=seed,
    )
    found = Modes(by={"attribute": {}, "beam": {}, "drawn": {}})
    generator = torch.Generator().manual_seed(seed + 1)
    for dialect in DIALECTS:
        state = DecodingState.start(model, torch.tensor([[dialect]]))

        def asked(constraint: Any, state: Any = state, dialect: int = dialect) -> Request:
            loaded = (model, None)
            return Request(state, constraint, (dialect,), max_new_tokens=LIMIT, loaded=loaded)

        anything = Anything(VOCABULARY, ends)
        found.empty.append(BeamSearch()(asked(anything), WIDE).ids[0] == [])
        mode = exact_mode(asked(anything), max_passes=200)
        found.proven_empty.append(mode is not None and mode.proven and not mode.ids)
        samples = rollouts(
            model, [[dialect]], 2400, max_new_tokens=LIMIT, ends=ends, seed=generator
        )[0]
        for length in LENGTHS:
            exactly = Length(length, length, range(VOCABULARY), ends)
            q = classifier.length_attribute(model, ends, length)
            guided = BeamSearch(q, beams=BEAMS)(asked(anything), 1)
            masked = BeamSearch(beams=BEAMS)(asked(exactly), 1)
            for name, result in (("attribute", guided), ("beam", masked)):
                value = float(result.log_weights[0])
                if value > -math.inf:
                    ids = result.ids[0]
                    good = len(ids) == length and language.valid(dialect, ids)
                    found.by[name][dialect, length] = Found(ids, value, good)
            rows = [text[:-1] for text in samples if text[-1] == END and len(text) == length + 1]
            rows = rows[:DRAWN]
            if rows:
                values = text_logprobs(model, dialect, rows)
                best = int(values.argmax())
                good = language.valid(dialect, rows[best])
                found.by["drawn"][dialect, length] = Found(rows[best], float(values[best]), good)
    return found


def trained(language: Language, seed: int) -> Any:
    """A small transformer that has read the language."""
    chance = random.Random(seed)
    dialects = [chance.choice(DIALECTS) for _ in range(TRAINING)]
    rows = [[dialect, *language.text(dialect, chance), END] for dialect in dialects]
    whole = TokenBatch.from_ids(rows, pad_id=END)

    def batches(generator: torch.Generator) -> TokenBatch:
        return whole.select(torch.randint(len(rows), (64,), generator=generator))

    model = toy_model(VOCABULARY, LIMIT + 2, seed, width=64)
    return train_on(
        batches,
        NegativeLogLikelihood(),
        model,
        steps=STEPS,
        learning_rate=5e-3,
        seed=seed,
        decay=0.5,
    )


@torch.no_grad()
def text_logprobs(model: Any, dialect: int, rows: list[list[int]]) -> Tensor:
    """log p of texts of one length, their end included."""
    ids = torch.tensor([[dialect, *row, END] for row in rows])
    logprobs = model(ids).logits[:, :-1].double().log_softmax(-1)
    return logprobs.gather(-1, ids[:, 1:, None])[..., 0].sum(-1)


def draw(figure: Any, reading: Losses, modes: Modes) -> None:
    """The saving along the text, and the log-probabilities of the conditional modes."""
    left, right = figure.subplots(1, 2)
    saving = (reading.frozen - reading.optimised).cumsum(1)
    for row in saving:
        left.plot(row.tolist())
    left.axhline(0.0, color="grey", linewidth=0.8)
    left.set(xlabel="position (tokens)", ylabel="loss saved so far (nats)")
    names = {
        "attribute": "conditional beam search",
        "beam": "beam search under a mask",
        "drawn": "best of 100 samples",
    }
    for offset, (name, label) in zip((-0.2, 0.0, 0.2), names.items(), strict=True):
        points = modes.by[name].items()
        x, y = [length + offset for (_, length), _ in points], [t.logprob for _, t in points]
        right.scatter(x, y, s=10, label=label)
    right.axhline(math.log(EMPTY), linestyle="--", color="grey")
    right.text(min(LENGTHS) - 0.3, math.log(EMPTY), "the empty text", va="bottom")
    right.set(xlabel="length asked for (tokens)", ylabel="log p of the text found")
    right.legend()


PAPER = Paper(
    number=170,
    key="pretrained-toolkit",
    title="Making the Most of your Model: Methods for Finetuning and Applying Pretrained "
    "Transformers",
    arxiv="2408.16241",
    role="sampler",
    family="control",
    claim="Gradient steps on cached states lower the loss of a frozen model, and modes given that "
    "the text is not degenerate are good texts where the plain mode is empty.",
    reproduce=reproduce,
    threads=1,
)
