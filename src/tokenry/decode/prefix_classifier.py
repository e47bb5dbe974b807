"""Attributes that a classifier of prefixes judges, for `BeamSearch`.

    ClassifiedAttribute.of(classifier, model, ends)    two classes: the text will have A
    LengthAttribute.of(classifier, model, ends, 20)    class r: r tokens are still to come; A is
                                                       "has 20 tokens", q its probability of 20 - t

The classifier is `model.heads.prefix_classifier`.

Source: Making the Most of your Model: Methods for Finetuning and Applying Pretrained Transformers
(arXiv 2408.16241), and MAP's not dead yet (arXiv 2311.08817).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from tokenry.core.errors import InputError
from tokenry.model.heads.prefix_classifier import PrefixClassifier


@dataclass(frozen=True)
class ClassifiedAttribute:
    """q of "the text will be of class 1", the classifier's probability.

    Args:
        embeddings: the language model's, of tokens.
        ends: the ids that end a text.
        holds: the attribute itself, if whole texts can be asked: it replaces the classifier's
            opinion of texts that end.
    """

    classifier: PrefixClassifier
    embeddings: Any
    ends: frozenset[int]
    holds: Callable[[tuple[int, ...]], bool] | None = None
    needs_hidden: ClassVar[bool] = True

    @classmethod
    def of(
        cls,
        classifier: PrefixClassifier,
        model: Any,
        ends: Collection[int],
        holds: Callable[[tuple[int, ...]], bool] | None = None,
    ) -> ClassifiedAttribute:
        """Of a classifier and the language model that it was trained on."""
        return cls(classifier, model.get_input_embeddings(), frozenset(ends), holds)

    @torch.no_grad()
    def __call__(
        self, texts: Sequence[Sequence[int]], tokens: Tensor, hidden: Tensor | None
    ) -> Tensor:
        log_q = judged(self.classifier, self.embeddings, tokens, hidden)[..., 1]
        if self.holds is None:
            return log_q
        certain = torch.tensor([0.0 if self.holds(tuple(text)) else -torch.inf for text in texts])
        return torch.where(is_end(tokens, self.ends), certain.to(log_q)[:, None], log_q)


@dataclass(frozen=True)
class LengthAttribute:
    """q of "the text will have `length` tokens", the end not counted, from remaining lengths.

    The classifier's last class is "so many or more"; as long as more than that many tokens are
    missing, it stands for the rest.
    """

    classifier: PrefixClassifier
    embeddings: Any
    ends: frozenset[int]
    length: int
    needs_hidden: ClassVar[bool] = True

    @classmethod
    def of(
        cls, classifier: PrefixClassifier, model: Any, ends: Collection[int], length: int
    ) -> LengthAttribute:
        """Of a classifier and the language model that it was trained on."""
        return cls(classifier, model.get_input_embeddings(), frozenset(ends), length)

    @torch.no_grad()
    def __call__(
        self, texts: Sequence[Sequence[int]], tokens: Tensor, hidden: Tensor | None
    ) -> Tensor:
        missing = self.length - len(texts[0])  # without the candidate token
        certain = torch.full(tokens.shape, 0.0 if missing == 0 else -torch.inf)
        certain = certain.to(tokens.device)
        if missing <= 0:
            return certain.masked_fill(~is_end(tokens, self.ends), -torch.inf)
        remaining = min(missing - 1, self.classifier.classes - 1)
        log_q = judged(self.classifier, self.embeddings, tokens, hidden)[..., remaining]
        return torch.where(is_end(tokens, self.ends), certain.to(log_q), log_q)


def judged(
    classifier: PrefixClassifier, embeddings: Any, tokens: Tensor, hidden: Tensor | None
) -> Tensor:
    """[n, k, classes] for candidate tokens [n, k] behind texts with hidden states [n, D]."""
    if hidden is None:
        raise InputError("a classifier of prefixes reads the model's hidden states; none came")
    return classifier(hidden[:, None], embeddings(tokens.to(hidden.device)))


def is_end(tokens: Tensor, ends: frozenset[int]) -> Tensor:
    """bool, like tokens."""
    return torch.isin(tokens, torch.tensor(sorted(ends), device=tokens.device))
