"""What a small model learns of the letters of its tokens: trained on docstrings, asked about words.

A byte-level BPE and a Llama are trained on the docstrings of the standard library, with tokens
split at random at a rate p or not at all. Both are then fine-tuned, with ordinary tokens, on
LangGame questions about what words contain, start and end with, and tested on questions about other
words, which they met in pre-training only.
"""

from __future__ import annotations

import re
from collections import Counter
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence

from tokenry.lab.toy_model import toy_model
from tokenry.lab.toys import trained
from tokenry.learn.fit import fit, linear
from tokenry.measure.answering import LanguageModel
from tokenry.tasks.documentation import docstrings
from tokenry.tasks.suites.lang_game import LangGame, Question
from tokenry.tasks.task import evaluate
from tokenry.text.tokenizers.stochastok import StochasTok

KINDS = ("contains", "starts", "ends")
IGNORED = -100  # torch's own


@lru_cache(maxsize=1)
def docstring_tokens(vocabulary: int) -> tuple[Any, list[int]]:
    """A byte-level BPE of the docstrings with so many tokens, and their ids in one row."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    texts = [text + "\n\n" for text in docstrings()]
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    return tokenizer, [token for row in tokenizer(texts)["input_ids"] for token in row]


def frequent_words(count: int) -> list[str]:
    """The most frequent words of 3 to 9 letters in the docstrings."""
    words = (word for text in docstrings() for word in re.findall(r"\b[a-z]{3,9}\b", text))
    counts = Counter(words)
    return sorted(counts, key=lambda word: (-counts[word], word))[:count]


@dataclass(frozen=True)
class SubwordBench:
    """seed: of the words' split, the model and its batches. vocabulary: of the tokenizer. words,
    unseen: frequent words, and how many of them are for testing. block, batch: of pre-training, in
    tokens and rows. pretraining, fine_tuning: steps. tests: questions. width: of the model."""

    seed: int
    vocabulary: int = 1200
    words: int = 400
    unseen: int = 100
    block: int = 48
    batch: int = 24
    pretraining: int = 500
    fine_tuning: int = 300
    tests: int = 200
    width: int = 96

    @cached_property
    def split_words(self) -> tuple[list[str], list[str]]:
        """The words to train on and those to test on."""
        words, generator = frequent_words(self.words), torch.Generator().manual_seed(self.seed)
        order = torch.randperm(len(words), generator=generator).tolist()
        return [words[n] for n in order[self.unseen :]], [words[n] for n in order[: self.unseen]]

    @property
    def texts(self) -> tuple[list[int], Tensor]:
        """The docstrings' ids without a twentieth, and that in blocks [n <= 200, block]."""
        _, ids = docstring_tokens(self.vocabulary)
        cut = len(ids) * 19 // 20
        rows = torch.tensor(ids[cut:])[: (len(ids) - cut) // self.block * self.block]
        return ids[:cut], rows.view(-1, self.block)[:200]

    def pretrained(self, p: float) -> Any:
        """A model that has read the docstrings with splits of rate p; kept."""
        tokenizer, _ = docstring_tokens(self.vocabulary)

        def train(model: Any) -> None:
            ids = torch.tensor(StochasTok(p=p).wrap(tokenizer).expand(self.texts[0], self.seed))

            def loss(step: int, generator: torch.Generator) -> Tensor:
                shape = (self.batch, 1)
                start = torch.randint(0, len(ids) - self.block, shape, generator=generator)
                rows = ids[start + torch.arange(self.block)]
                return next_token_loss(model, rows, rows)

            self._fit(loss, model, self.pretraining, 3e-3)

        def build() -> Any:
            options: Any = {"width": self.width, "inner": 256, "tied": True}
            return toy_model(len(tokenizer), 256, self.seed, **options)

        return trained(build, train, self, p)

    @torch.no_grad()
    def held_back(self, model: Any) -> Tensor:
        """The loss on each block of held-back text in ordinary tokens, nats a token, [n]."""
        rows = self.texts[1]
        return next_token_loss(model, rows, rows, "none").view(len(rows), -1).mean(1)

    def fine_tuned(self, model: Any, every: int = 100) -> dict[int, list[float]]:
        """Which questions about unseen words a model answers rightly, after so many steps of
        fine-tuning a copy of it on questions about the others."""
        tokenizer, _ = docstring_tokens(self.vocabulary)
        model, answers = deepcopy(model).requires_grad_(True), {}
        known, unseen = self.split_words
        questions = LangGame(known, KINDS).generate(self.fine_tuning * self.batch, self.seed)

        def loss(step: int, generator: torch.Generator) -> Tensor:
            some = questions[step * self.batch : (step + 1) * self.batch]
            return next_token_loss(model, *with_answers(tokenizer, some))

        def test(step: int, _: float = 0.0) -> None:
            game, seed = LangGame(unseen, KINDS), self.seed + 10**6
            report = evaluate(LanguageModel(model, tokenizer), game, self.tests, seed)
            answers[step] = [score["accuracy"] for score in report.scores]

        test(0)
        self._fit(loss, model, self.fine_tuning, 1e-3, observe=test, every=every)
        return answers

    def _fit(self, loss: Any, model: Any, steps: int, rate: float, **options: Any) -> None:
        """Warm-up over a twentieth of the steps, then a decay to a tenth of the rate."""
        schedule = linear(warmup=0.05, decay=1.0, end=0.1)
        options |= {"schedule": schedule, "weight_decay": 0.1, "seed": self.seed}
        fit(loss, model, steps=steps, learning_rate=rate, **options)


def next_token_loss(model: Any, ids: Tensor, labels: Tensor, reduction: str = "mean") -> Tensor:
    """-log p of the labels [B, T], without the first of each row and those that are `IGNORED`."""
    logits = model(ids).logits[:, :-1].flatten(0, 1)
    return cross_entropy(logits, labels[:, 1:].flatten(), reduction=reduction)


def with_answers(tokenizer: Any, questions: list[Question]) -> tuple[Tensor, Tensor]:
    """Ids [B, T] of questions and their right options, and labels that are ignored but there."""
    prompts = tokenizer([question.prompt for question in questions])["input_ids"]
    options = tokenizer([" " + one.options[one.answer] for one in questions])["input_ids"]
    rows = [torch.tensor(a + b) for a, b in zip(prompts, options, strict=True)]
    labels = [torch.tensor([IGNORED] * len(a) + b) for a, b in zip(prompts, options, strict=True)]
    return pad_sequence(rows, True), pad_sequence(labels, True, IGNORED)
