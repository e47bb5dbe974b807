"""What drafters are measured against: no draft at all, and prompt lookup.

Prompt lookup copies a chain from behind the latest earlier occurrence of the text's last tokens, of
the longest n-gram of `ngram` tokens or fewer that occurs.

Source: prompt lookup decoding (A. Saxena, 2023), which transformers has as
`prompt_lookup_num_tokens`; there the first occurrence is copied.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from tokenry.core.checks import within
from tokenry.decode.speculation.speculate import drafter
from tokenry.decode.speculation.tree import TokenTree
from tokenry.decode.speculation.verify import Accepted
from tokenry.text.ngram_index import NGramPositions


@dataclass(frozen=True)
class NoDraft:
    """Plain decoding, through the same loop."""

    reads_prompt = False

    def begin(self, model: Any, prompt: Sequence[int]) -> NoDraft:
        return self

    def draft(self, last_token: int, budget: int) -> TokenTree:
        return TokenTree((last_token,), (-1,))

    def update(self, tree: TokenTree, logits: Tensor, accepted: Accepted) -> None:
        pass


@drafter("prompt-lookup")
@dataclass(frozen=True)
class PromptLookup:
    """A chain of `tokens` copied from the text.

    Args:
        ngram: the longest end that is looked up.
    """

    tokens: int = 10
    ngram: int = 3
    reads_prompt = False

    def __post_init__(self) -> None:
        within(self, "[1, inf)", "tokens", "ngram", integer=True)

    def begin(self, model: Any, prompt: Sequence[int]) -> LookupDraft:
        return LookupDraft(self, prompt)


class LookupDraft:
    """Where every n-gram of one text stands."""

    def __init__(self, drafter: PromptLookup, prompt: Sequence[int]):
        self.drafter = drafter
        self.index = NGramPositions(prompt, range(1, drafter.ngram + 1))

    def draft(self, last_token: int, budget: int) -> TokenTree:
        self.index.extend([last_token])
        starts = self.index.after()
        most = min(self.drafter.tokens, budget)
        chain = self.index.text[starts[-1] : starts[-1] + most] if starts else []
        return TokenTree.chain([last_token, *chain])

    def update(self, tree: TokenTree, logits: Tensor, accepted: Accepted) -> None:
        self.index.extend(accepted.tokens[:-1])
