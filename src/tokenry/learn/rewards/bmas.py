"""BMAS, bidirectional max-average similarity: open answers against a gold answer, without a judge.

    S_ij = cos(x_i, y_j)
    BMAS = 1/2 [ 1/m sum_i max_j S_ij  +  1/n sum_j max_i S_ij ],   in [-1, 1]

x_1 .. x_m are the embeddings of the answer's tokens, y_1 .. y_n of the gold answer's. The first
half falls when the answer says what the gold one does not, the second when it leaves something out.
An empty answer gets 0.

Source: Mixed-R1: Unified Reward Perspective for Reasoning Capability in Multimodal Large Language
Models (arXiv 2505.24164). The formula is the reading of its name and description; `center` is not
in the paper: a language model's embeddings share a component that lifts all cosines.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from tokenry.core.errors import InputError, ShapeError
from tokenry.learn.rewards.answers import answer_text, golds_of
from tokenry.learn.rewards.base import Example, Texts, reward


def bmas(answer: Tensor, gold: Tensor) -> float:
    """BMAS of embeddings [m, D] and [n, D], float32 at least; 0 when one of them is empty."""
    if answer.ndim != 2 or gold.ndim != 2 or answer.shape[1] != gold.shape[1]:
        raise ShapeError(f"embeddings must be [m, D] and [n, D]: {answer.shape}, {gold.shape}")
    if not len(answer) or not len(gold):
        return 0.0
    dtype = torch.promote_types(answer.dtype, torch.float32)
    similarity = normalize(answer.to(dtype), dim=-1) @ normalize(gold.to(dtype), dim=-1).T
    halves = similarity.amax(1).mean() + similarity.amax(0).mean()
    return float(halves / 2)


@dataclass(frozen=True)
class TokenEmbedding:
    """A text as its tokens' rows in an embedding table, without context.

    Args:
        tokenizer: of the table. table: [V, D], float32, a copy that training does not move.
    """

    tokenizer: Any
    table: Tensor

    @classmethod
    def of(cls, model: Any, tokenizer: Any, center: bool = False) -> TokenEmbedding:
        """The input embeddings of a model as they are now; center: less their mean."""
        table = model.get_input_embeddings().weight.detach().float().cpu().clone()
        return cls(tokenizer, table - table.mean(0) if center else table)

    def __call__(self, text: str) -> Tensor:
        special = set(self.tokenizer.all_special_ids)
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return self.table[[token for token in ids if token not in special]]


@dataclass(frozen=True)
class _Letters:
    """One direction for each letter; for examples."""

    def __call__(self, text: str) -> Tensor:
        places = [ord(letter) % 128 for letter in text if letter.isalpha()]
        return torch.eye(128)[places]


def _examples() -> list[Example]:
    return [
        Example(BMAS(_Letters()), ["xyz", "abx", "cab"], {"answer": ["abc"] * 3}, [(0, 1), (1, 2)])
    ]


@reward("bmas", paper=125, examples=_examples)
@dataclass(frozen=True)
class BMAS:
    """Similarity of an answer's tokens and those of the column `answer`, the best of several.

    Args:
        embed: a text -> [tokens, D], without special tokens, the same as long as a training lasts
            (`TokenEmbedding.of(model, tokenizer)`, the paper's: the policy's own at the start).
    """

    embed: Callable[[str], Tensor]

    def __call__(
        self, prompts: Texts, completions: Texts, answer: Sequence[Any], **columns: Any
    ) -> list[float | None]:
        rewards: list[float | None] = []
        known: dict[str, Tensor] = {}
        for text, gold in zip(completions, answer, strict=True):
            given = self.embed(answer_text(text))
            golds = [] if gold is None else [str(one) for one in golds_of(gold)]
            for one in golds:
                known.setdefault(one, self.embed(one))
                if not len(known[one]):
                    raise InputError(f"the gold answer {one!r} has no tokens to compare with")
            rewards.append(max((bmas(given, known[one]) for one in golds), default=None))
        return rewards
