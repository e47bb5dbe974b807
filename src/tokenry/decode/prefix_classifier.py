"""A classifier of prefixes: how probable is it that a text that begins so will have an attribute?

    log q(. | y_<t, y_t) = log softmax( W gelu( H norm(h) + E norm(e) + b ) + c )

h is the language model's last hidden state after y_<t, e the embedding of the token y_t that may
come next, so that many candidate tokens are judged without another pass of the model. Trained on
the model's own samples, labelled by what became of them, at every prefix
(`learn.recipes.prefix_classifier` does that), q tends to the probability that the label comes true
under the model.

Two uses, both as the attribute of `BeamSearch`:

    classifier.attribute(model, ends)              two classes: the text will have A
    classifier.length_attribute(model, ends, 20)   class r: r tokens are still to come; A is "has 20
                                                   tokens", q its probability of 20 - t

Source: Making the Most of your Model: Methods for Finetuning and Applying Pretrained Transformers
(arXiv 2408.16241), and MAP's not dead yet (arXiv 2311.08817). The form of the head is ours.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from tokenry.core.checks import in_range
from tokenry.core.errors import InputError


class PrefixClassifier(nn.Module):
    """Log-probabilities of `classes` for a text's state and a next token.

    hidden_size, embedding_size: of the language model's states and token embeddings. inner: width
    of the hidden layer.
    """

    def __init__(self, hidden_size: int, embedding_size: int, classes: int = 2, inner: int = 128):
        super().__init__()
        in_range("classes", classes, "[2, inf)", integer=True)
        in_range("inner", inner, "[1, inf)", integer=True)
        self.state = nn.Sequential(nn.LayerNorm(hidden_size), nn.Linear(hidden_size, inner))
        self.token = nn.Sequential(
            nn.LayerNorm(embedding_size), nn.Linear(embedding_size, inner, bias=False)
        )
        self.output = nn.Linear(inner, classes)

    @property
    def classes(self) -> int:
        return self.output.out_features

    @classmethod
    def of(cls, model: Any, classes: int = 2, inner: int = 128) -> PrefixClassifier:
        """A classifier for any causal model of transformers; InputError below two classes."""
        config = model.config.get_text_config()
        embedding_size = model.get_input_embeddings().weight.shape[1]
        return cls(config.hidden_size, embedding_size, classes, inner)

    def forward(self, hidden: Tensor, embedded: Tensor) -> Tensor:
        """hidden [..., D] and embedded [..., E], which may broadcast: [..., classes]."""
        weights = self.output.weight
        hidden, embedded = hidden.to(weights), embedded.to(weights)
        return self.output(gelu(self.state(hidden) + self.token(embedded))).log_softmax(-1)

    def attribute(
        self,
        model: Any,
        ends: Collection[int],
        holds: Callable[[tuple[int, ...]], bool] | None = None,
    ) -> ClassifiedAttribute:
        """q of "the text will be of class 1".

        ends: the ids that end a text. holds: the attribute itself, if whole texts can be asked:
        it replaces the classifier's opinion of texts that end.
        """
        embeddings = model.get_input_embeddings()
        return ClassifiedAttribute(self, embeddings, frozenset(ends), holds)

    def length_attribute(self, model: Any, ends: Collection[int], length: int) -> LengthAttribute:
        """q of "the text will have `length` tokens", from a classifier of remaining lengths."""
        return LengthAttribute(self, model.get_input_embeddings(), frozenset(ends), length)


@dataclass(frozen=True)
class ClassifiedAttribute:
    """q(A) is the classifier's probability of class 1."""

    classifier: PrefixClassifier
    embeddings: Any
    ends: frozenset[int]
    holds: Callable[[tuple[int, ...]], bool] | None = None
    needs_hidden: ClassVar[bool] = True

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
    """q(the text has `length` tokens), the end not counted.

    The classifier's last class is "so many or more"; as long as more than that many tokens are
    missing, it stands for the rest.
    """

    classifier: PrefixClassifier
    embeddings: Any
    ends: frozenset[int]
    length: int
    needs_hidden: ClassVar[bool] = True

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
