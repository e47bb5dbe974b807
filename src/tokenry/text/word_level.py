"""Word-level tokenizers: every word of a short list is one token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def word_tokenizer(
    words: Sequence[str], *, unknown: str, punctuation: bool = False, **special: Any
) -> Any:
    """A fast tokenizer whose ids number the words in their order.

    Args:
        words: its vocabulary, special tokens included.
        unknown: the word that stands for all others.
        punctuation: whether punctuation marks are words of their own; else white space alone parts
            words.
        special: as transformers names them: mask_token, eos_token, additional_special_tokens, ...
    """
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: number for number, word in enumerate(words)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token=unknown))
    split = pre_tokenizers.Whitespace if punctuation else pre_tokenizers.WhitespaceSplit
    backend.pre_tokenizer = split()
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)
