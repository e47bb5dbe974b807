"""How long texts become in tokens: the two numbers that every comparison of tokenizers starts with.

    bytes per token   sum of |utf-8(x)| / sum of |tokens(x)|     compression
    fertility         sum of |tokens(x)| / sum of |words(x)|     tokens a word

over the texts x of a corpus, which are tokenized whole; words are what white space separates.

Source: fertility as in How Good is Your Tokenizer? On the Monolingual Performance of Multilingual
Language Models (arXiv 2012.15613), which counts the words of a treebank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from tokenry.core.errors import InputError
from tokenry.text.metrics.base import token_ids, tokenizer_metric


@tokenizer_metric("bytes-per-token")
@dataclass(frozen=True)
class BytesPerToken:
    """UTF-8 bytes of the corpus for each of its tokens."""

    unit: ClassVar[str] = "bytes"
    better: ClassVar[Literal["higher", "lower", ""]] = "higher"

    def __call__(self, tokenizer: Any, texts: Sequence[str]) -> float:
        tokens = sum(map(len, token_ids(tokenizer, texts)))
        return sum(len(text.encode()) for text in texts) / tokens


@tokenizer_metric("fertility")
@dataclass(frozen=True)
class Fertility:
    """Tokens for each word; white space that is a token of its own counts too."""

    unit: ClassVar[str] = "tokens"
    better: ClassVar[Literal["higher", "lower", ""]] = "lower"

    def __call__(self, tokenizer: Any, texts: Sequence[str]) -> float:
        words = sum(len(text.split()) for text in texts)
        if not words:
            raise InputError("there is no word in these texts")
        return sum(map(len, token_ids(tokenizer, texts))) / words
