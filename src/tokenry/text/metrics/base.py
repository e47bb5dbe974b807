"""What a tokenizer metric is: one number about how a tokenizer cuts a corpus."""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal, Protocol

from tokenry.core.errors import InputError
from tokenry.core.registry import Role


class TokenizerMetric(Protocol):
    """The role: m(tokenizer, texts), of the corpus as a whole.

    unit: of the number. better: which end of it is wanted, "" where neither is.
    """

    unit: ClassVar[str]
    better: ClassVar[Literal["higher", "lower", ""]]

    def __call__(self, tokenizer: Any, texts: Sequence[str]) -> float:
        """The number. InputError for a corpus that has nothing to count."""
        ...


tokenizer_metric = Role("tokenizer metric", TokenizerMetric, ("tokenry.text.metrics",))


def token_ids(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Each text's tokens, without those that the tokenizer puts around a text."""
    if not any(texts):
        raise InputError("there is no text to measure a tokenizer on")
    return list(tokenizer(list(texts), add_special_tokens=False)["input_ids"])
