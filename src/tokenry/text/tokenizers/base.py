"""What changes and what makes tokenizers: a tokenization, and a trainer of vocabularies.

A tokenization wraps a tokenizer that there is: the result is called like it, and decodes like it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol

import torch

from tokenry.core.errors import InputError
from tokenry.core.registry import Role

Draws = torch.Generator | int | None
"""Where a random tokenization draws from: a generator, a seed, or its own stream."""


class Tokenization(Protocol):
    """The role: another way from a text to the ids of a vocabulary, x -> ids with decode(ids) = x.

    lossless: whether decoding gives every text back. random: whether it draws, and `generator=` in
    a call decides the ids.
    """

    lossless: ClassVar[bool]
    random: ClassVar[bool]

    def wrap(self, tokenizer: Any) -> Any:
        """`tokenizer` with this method. VocabularyError if it cannot be."""
        ...


tokenizer = Role("tokenizer", Tokenization, ("tokenry.text.tokenizers",))


class WrappedTokenizer(ABC):
    """Called like the tokenizer it wraps; everything else, such as decode, is asked of that.

    Derive from it for a method that writes ordinary ids anew: `expand` is all that is missing.
    """

    tokenizer: Any

    @abstractmethod
    def expand(self, ids: Sequence[int], generator: Draws = None) -> list[int]:
        """`ids` of the wrapped tokenizer in this method's spelling."""

    def __call__(
        self,
        text: str | list[str],
        *,
        generator: Draws = None,
        padding: bool | str = False,
        truncation: bool = False,
        max_length: int | None = None,
        return_tensors: str | None = None,
        **options: Any,
    ) -> Any:
        """A BatchEncoding of input_ids and attention_mask; truncates the expanded text."""
        from transformers import BatchEncoding

        if options.get("return_offsets_mapping"):
            raise InputError("tokens spelled anew have no offsets; ask the wrapped tokenizer")
        if isinstance(generator, int):
            generator = torch.Generator().manual_seed(generator)
        single = isinstance(text, str)
        encoded = self.tokenizer([text] if single else text, **options)["input_ids"]
        rows = [self.expand(ids, generator) for ids in encoded]
        if truncation and max_length is not None:
            from_left = self.tokenizer.truncation_side == "left"
            cut = slice(-max_length, None) if from_left else slice(max_length)
            rows = [row[cut] for row in rows]
        features = {"input_ids": rows, "attention_mask": [[1] * len(row) for row in rows]}
        if padding not in (False, "do_not_pad"):
            features = self.tokenizer.pad(features, padding=padding, max_length=max_length)
        if single and return_tensors is None:
            features = {name: values[0] for name, values in features.items()}
        return BatchEncoding(dict(features), tensor_type=return_tensors)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name in self.__class__.__annotations__ or name == "tokenizer":
            raise AttributeError(name)
        return getattr(self.tokenizer, name)

    def __len__(self) -> int:
        return len(self.tokenizer)


class TokenizerTrainer(Protocol):
    """The role: texts -> a vocabulary V, |V| <= size, and the way to cut texts into it.

    lossless: whether decoding gives every text back. The same texts give the same tokenizer.
    """

    lossless: ClassVar[bool]

    def train(self, texts: Iterable[str], size: int) -> Any:
        """A `PreTrainedTokenizerFast` of at most `size` entries. InputError if it cannot be."""
        ...


class TrainerExample(NamedTuple):
    """A trainer as its contract test takes it. least: the smallest vocabulary that it makes."""

    trainer: TokenizerTrainer
    least: int


tokenizer_trainer = Role("tokenizer trainer", TokenizerTrainer, ("tokenry.text.tokenizers",))
