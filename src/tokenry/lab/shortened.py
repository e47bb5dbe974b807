"""What shortened texts still say, to small encoders that answer whole ones and to a language model.

A scorer rates the words, and an encoder of another seed answers from those that are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import OneCycleLR

from tokenry.lab.toys import fitted
from tokenry.model.attribution.frugalprompt import word_scores
from tokenry.model.decoding import DecodingState
from tokenry.tasks.worlds.reviews import VOCABULARY, Text, review
from tokenry.text.compression import Mode, join, keep_top_percent, words

PAD, CLS = 0, 1
ID_OF = {word: number for number, word in enumerate(["[PAD]", "[CLS]", *VOCABULARY])}
ANSWERS = 3  # the most that a task has
LABELS = {0: " negative", 1: " positive"}


def encoded(rows: Sequence[Sequence[str]]) -> Tensor:
    """[CLS] and the words, padded on the right, [B, T]."""
    width = max(map(len, rows))
    ids = [[CLS, *(ID_OF[word] for word in words), *[PAD] * (width - len(words))] for words in rows]
    return torch.tensor(ids)


def logits_of(model: Any, rows: Sequence[Sequence[str]]) -> Tensor:
    """Over answers, [B, ANSWERS]."""
    ids = encoded(rows)
    return model(input_ids=ids, attention_mask=(ids != PAD).long()).logits


@torch.no_grad()
def answered(model: Any, rows: Sequence[Sequence[str]], answers: Tensor) -> Tensor:
    """Whether the model answers each text rightly, float [N]."""
    return (logits_of(model, rows).argmax(-1) == answers).float()


def encoder_of(make: Callable[[torch.Generator], Text], seed: int, steps: int) -> Any:
    """A two-layer encoder that answers whole texts of a task; trained once and kept.

    make: draws a text and its answer; a function of `tasks.worlds`.
    """
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=len(ID_OF),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=32,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=0.2,
        pad_token_id=PAD,
    )
    config.num_labels = ANSWERS

    def build() -> Any:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return BertForSequenceClassification(config)

    def loss(model: Any, generator: torch.Generator) -> Tensor:
        texts = [make(generator) for _ in range(64)]
        answers = torch.tensor([answer for _, answer in texts])
        return cross_entropy(logits_of(model, [words for words, _ in texts]), answers)

    return fitted(
        build, loss, make, make.__name__, seed=seed, steps=steps, learning_rate=1e-3,
        schedule=lambda optimizer, n: OneCycleLR(optimizer, 1e-3, n, pct_start=0.1),
        weight_decay=0.01, clip=None,
    )  # fmt: skip


Way = tuple[Any, Mode]
"""An attribution method that scores the words, and which of them are kept."""


def answers_by_share(
    make: Callable[[torch.Generator], Text],
    ways: Mapping[str, Way],
    percents: Sequence[int],
    seed: int,
    *,
    steps: int,
    count: int,
) -> dict[tuple[str, int], Tensor]:
    """(way, percent of the words) -> whether each of `count` texts was answered rightly, float;
    ("all", 100) is the whole text."""
    scorer, judge = (encoder_of(make, seed * 2 + own, steps) for own in (0, 1))
    generator = torch.Generator().manual_seed(seed + 5000)
    texts = [make(generator) for _ in range(count)]
    answers = torch.tensor([answer for _, answer in texts])
    right = {("all", 100): answered(judge, [text for text, _ in texts], answers)}
    scores = {
        method: [method(scorer, encoded([text])[0], 0)[1:] for text, _ in texts]
        for method in {method for method, _ in ways.values()}
    }
    for percent in percents:
        for way, (method, mode) in ways.items():
            rows = [
                [text[i] for i in keep_top_percent(text, own, percent, mode, None, generator)]
                for (text, _), own in zip(texts, scores[method], strict=True)
            ]
            right[way, percent] = answered(judge, rows, answers)
    return right


def reviews_judged(
    model: Any, tokenizer: Any, settings: Sequence[tuple[str, int, Way]], count: int, seed: int
) -> dict[tuple[str, int], list[bool]]:
    """(way, percent of the words) -> whether a language model judges each of `count` reviews
    rightly that it shortened by its own scores. settings: way, percent, and what it does."""
    generator = torch.Generator().manual_seed(seed)
    prompt = ReviewPrompt(model, tokenizer, generator)
    right: dict[tuple[str, int], list[bool]] = {}
    for spelled, answer in [review(generator) for _ in range(count)]:
        text = " ".join(spelled)
        spans, scores = words(text), {}
        for way, percent, (method, mode) in settings:
            if method not in scores:
                scores[method] = word_scores(method, model, tokenizer, text, spans)
            kept = keep_top_percent(spans, scores[method], percent, mode, None, generator)
            judged = prompt.judged(join(text, spans, kept))
            right.setdefault((way, percent), []).append(judged == answer)
    return right


class ReviewPrompt:
    """A language model that has read four reviews, two of each kind, and judges further ones."""

    def __init__(self, model: Any, tokenizer: Any, generator: torch.Generator):
        shown: list[str] = []
        while len(shown) < 4:
            words, answer = review(generator)
            if answer == len(shown) % 2:
                shown.append(f"Review: {' '.join(words)}\nSentiment:{LABELS[answer]}\n\n")
        self.tokenizer = tokenizer
        start = tokenizer("".join(shown), return_tensors="pt")["input_ids"]
        self.state = DecodingState.start(model, start)
        self.labels = [tokenizer(label)["input_ids"][0] for label in LABELS.values()]

    def judged(self, text: str) -> int:
        """1 where praise is the likelier judgement of a review."""
        asked = self.tokenizer(f"Review: {text}\nSentiment:", return_tensors="pt")["input_ids"]
        return int(self.state.copy().append(asked)[0, -1, self.labels].argmax())
