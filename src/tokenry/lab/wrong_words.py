"""What a token reward says about words that are known to be wrong."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tokenry.learn.data.precompute import PrecomputeContext
from tokenry.model.hub import Loaded
from tokenry.tasks.suites.wrong_words import WrongWord
from tokenry.text.spans import token_labels


def rewards_of_words(
    objective: Any, column: str, loaded: Loaded, words: Sequence[WrongWord]
) -> list[dict[str, Tensor]]:
    """The token rewards that an objective computes before training, at words and beside them.

    Args:
        objective: its `precompute` adds `{side}_{column}`, one number for each token.
        loaded: the model that judges, and its tokenizer.
        words: true answers and the words that make them false.

    Returns:
        For each answer {"wrong": of the wrong word's tokens, "other": of the others in that
        answer, "right": of the right word's tokens in the true answer}.
    """
    model, tokenizer = loaded
    context, rows, inside = PrecomputeContext(tokenizer, model), [], []
    for word in words:
        row: dict[str, Any] = {"prompt_messages": [{"role": "user", "content": word.question}]}
        for side, text in (("chosen", word.right), ("rejected", word.wrong)):
            row[side], span = word.answer(text)
            row[f"{side}_ids"] = tokenizer(row[side], add_special_tokens=False)["input_ids"]
            labels = token_labels(context.offsets(row, side), [(*span, True)], default=False)
            inside.append(torch.tensor(labels))
        rows.append(row)
    judged = []
    for number, row in enumerate(objective.precompute(rows, context)):
        right, wrong = (torch.tensor(row[f"{side}_{column}"]) for side in ("chosen", "rejected"))
        at_right, at_wrong = inside[2 * number : 2 * number + 2]
        judged.append(
            {"wrong": wrong[at_wrong], "other": wrong[~at_wrong], "right": right[at_right]}
        )
    return judged
