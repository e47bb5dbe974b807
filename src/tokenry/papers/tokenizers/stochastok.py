"""StochasTok at laptop scale: does splitting tokens in pre-training teach a model their letters?

A byte-level BPE of 1,200 tokens and a Llama of 0.34 M parameters are trained on the docstrings of
the standard library, once with ordinary tokens and once with p = 0.3. Both are then fine-tuned,
with ordinary tokens, on LangGame questions about what words contain, start and end with, over
three quarters of 400 frequent words. They are tested on questions about the other quarter, which
they met in pre-training only.
"""

import ast
import re
import sysconfig
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, pad

from tokenry.lab.toy_model import toy_model
from tokenry.papers.base import Measurement, Outcome, Paper
from tokenry.tasks.suites.lang_game import LangGame, Question
from tokenry.text.tokenizers.bpe import BPE
from tokenry.text.tokenizers.stochastok import StochasTok

VOCABULARY = 1200
WORDS, HELD_OUT = 400, 100
BLOCK, BATCH = 48, 24
PRETRAINING, FINE_TUNING = 500, 300
EVERY = 100
TESTS = 200
P = 0.3


@dataclass(frozen=True)
class Run:
    """One seed and one p: loss on held-back text, and accuracy after each EVERY steps of tuning."""

    p: float
    seed: int
    loss: float
    accuracy: list[float]


def reproduce(seed: int) -> Outcome:
    runs = [run(p, seed) for p in (0.0, P)]
    measurements = []
    for one in runs:
        name = f"p = {one.p}"
        measurements += [
            Measurement(f"{name}, unseen words", one.accuracy[-1], "accuracy", one.seed),
            Measurement(f"{name}, held-back text", one.loss, "nats per token", one.seed),
        ]
    plain, split = runs
    gain = split.accuracy[-1] - plain.accuracy[-1]
    cost = split.loss / plain.loss - 1
    chance = max(plain.accuracy[-1], split.accuracy[-1]) < 0.35
    return Outcome(
        held=gain > 0.05 and cost < 0.03,
        needs="accuracy(p = 0.3) > accuracy(p = 0) + 0.05 and loss(p = 0.3) < 1.03 loss(p = 0)",
        measurements=measurements,
        reason=(
            f"the accuracy on unseen words changes by {gain:+.3f} (chance: 0.25), the loss on "
            f"ordinary tokens by {cost:+.1%}, after {PRETRAINING} steps of pre-training"
            + ("; neither model is clear of chance: the scale is too small to tell" * chance)
        ),
        figure=lambda figure: draw(figure, runs),
    )


def run(p: float, seed: int) -> Run:
    """Pre-train with splits of rate p, fine-tune without, test on unseen words."""
    tokenizer, words, ids = prepared()
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(words), generator=generator).tolist()
    unseen = [words[place] for place in order[:HELD_OUT]]
    known = [words[place] for place in order[HELD_OUT:]]
    kinds = ("contains", "starts", "ends")
    train = LangGame(known, kinds).generate(FINE_TUNING * BATCH, seed)
    test = LangGame(unseen, kinds).generate(TESTS, seed + 10**6)

    text, held_back = ids[: len(ids) * 19 // 20], torch.tensor(ids[len(ids) * 19 // 20 :])
    text = torch.tensor(StochasTok(p=p).wrap(tokenizer).expand(text, seed))
    model = tiny_model(len(tokenizer), seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.1)
    for step in range(PRETRAINING):
        start = torch.randint(0, len(text) - BLOCK, (BATCH, 1), generator=generator)
        rows = text[start + torch.arange(BLOCK)]
        update(model, optimizer, rows, rows, 3e-3 * schedule(step, PRETRAINING))
    loss = held_back_loss(model, held_back)

    accuracy = [answered(model, tokenizer, test)]
    for step in range(FINE_TUNING):
        asked = train[step * BATCH : (step + 1) * BATCH]
        rows, labels = tokens(tokenizer, [(one, one.answer) for one in asked])
        update(model, optimizer, rows, labels, 1e-3 * schedule(step, FINE_TUNING))
        if (step + 1) % EVERY == 0:
            accuracy.append(answered(model, tokenizer, test))
    return Run(p, seed, loss, accuracy)


def update(model: Any, optimizer: Any, rows: Tensor, labels: Tensor, rate: float) -> None:
    logits = model(rows).logits[:, :-1]
    loss = cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten())
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()


def schedule(step: int, steps: int) -> float:
    """Linear warm-up over a twentieth of the steps, then linear decay to a tenth."""
    warm = steps / 20
    return min((step + 1) / warm, 1 - 0.9 * step / steps)


def tokens(tokenizer: Any, answers: list[tuple[Question, int]]) -> tuple[Tensor, Tensor]:
    """Ids [B, T] of prompt and option, right-padded, and labels that are -100 but on the option."""
    prompts = tokenizer([question.prompt for question, _ in answers])["input_ids"]
    options = tokenizer([" " + question.options[index] for question, index in answers])["input_ids"]
    width = max(len(a) + len(b) for a, b in zip(prompts, options, strict=True))
    rows, labels = [], []
    for prompt, option in zip(prompts, options, strict=True):
        room = width - len(prompt) - len(option)
        rows.append(pad(torch.tensor(prompt + option), (0, room)))
        labels.append(pad(torch.tensor([-100] * len(prompt) + option), (0, room), value=-100))
    return torch.stack(rows), torch.stack(labels)


@torch.no_grad()
def answered(model: Any, tokenizer: Any, questions: list[Question]) -> float:
    """Share of questions whose right option is the likeliest continuation."""
    right = 0
    for start in range(0, len(questions), 50):
        some = questions[start : start + 50]
        answers = [(one, index) for one in some for index in range(len(one.options))]
        rows, labels = tokens(tokenizer, answers)
        logits = model(rows).logits[:, :-1]
        # summed over the option's tokens; ignored positions give 0
        loss = cross_entropy(logits.transpose(1, 2), labels[:, 1:], reduction="none").sum(1)
        best = loss.view(len(some), -1).argmin(1)
        right += int((best == torch.tensor([one.answer for one in some])).sum())
    return right / len(questions)


@torch.no_grad()
def held_back_loss(model: Any, ids: Tensor) -> float:
    """Mean loss on blocks of ordinary tokens."""
    rows = ids[: len(ids) // BLOCK * BLOCK].view(-1, BLOCK)[:200]
    logits = model(rows).logits[:, :-1]
    return float(cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten()))


def tiny_model(vocabulary: int, seed: int) -> Any:
    """The model that both tokenizations train."""
    return toy_model(vocabulary, 256, seed, width=96, inner=256, tied=True)


@cache
def prepared() -> tuple[Any, list[str], list[int]]:
    """Tokenizer, the WORDS most frequent words of 3-9 letters, the corpus in ordinary ids."""
    texts = docstrings()
    tokenizer = BPE(special=(), frequency=1).train(texts, VOCABULARY)
    counts = Counter(word for text in texts for word in re.findall(r"\b[a-z]{3,9}\b", text))
    ranked = sorted(counts, key=lambda word: (-counts[word], word))
    ids = [token for row in tokenizer(texts)["input_ids"] for token in row]
    return tokenizer, ranked[:WORDS], ids


def docstrings() -> list[str]:
    """Every docstring of the standard library's single-file modules, in a fixed order."""
    root = Path(sysconfig.get_paths()["stdlib"])
    found = []
    for path in sorted(root.glob("*.py")):
        try:
            tree = ast.parse(path.read_text("utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                text = ast.get_docstring(node)
                if text:
                    found.append(text + "\n\n")
    return found


def draw(figure: Any, runs: list[Run]) -> None:
    axes = figure.subplots()
    for one in runs:
        steps = [EVERY * index for index in range(len(one.accuracy))]
        colour = "tab:gray" if one.p == 0 else "tab:blue"
        axes.plot(steps, one.accuracy, color=colour, label=f"p = {one.p}, seed {one.seed}")
    axes.axhline(0.25, linestyle=":", color="black", label="chance")
    axes.set(xlabel="fine-tuning step", ylabel="accuracy on unseen words")
    axes.legend()


PAPER = Paper(
    number=181,
    key="stochastok",
    title="StochasTok: Improving Fine-Grained Subword Understanding in LLMs",
    arxiv="2506.01687",
    role="tokenizer",
    family="tokenizers",
    claim="Splitting tokens at random in pre-training teaches a model the letters of its tokens, "
    "at no cost to ordinary language modelling.",
    reproduce=reproduce,
    threads=1,
)
