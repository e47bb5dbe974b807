"""Drafting for a text that is known: what a drafter would have added in every step.

The walk through a tree depends on the text alone, so no model is read, and many settings of a
drafter can be compared on the same texts. For drafters that do not learn from the model's logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from tokenry.decode.speculation.speculate import Drafter
from tokenry.decode.speculation.verify import Accepted


def replay(model: Any, drafter: Drafter, prompt: Sequence[int], text: Sequence[int]) -> list[int]:
    """Tokens that each step adds to `text`, what was generated after `prompt`; its first token
    comes
    with the prompt's pass.

    Args:
        model: read for its vocabulary and its latency, if at all.
    """
    draft, at, steps = drafter.begin(model, prompt), 1, []
    while at < len(text):
        tree = draft.draft(text[at - 1], len(text) - at - 1)
        path = [0]
        while at + len(path) < len(text):
            child = tree.children.get((path[-1], text[at + len(path) - 1]))
            if child is None:
                break
            path.append(child)
        tokens = list(text[at : at + len(path)])
        draft.update(tree, torch.empty(0), Accepted(path, tokens))
        steps.append(len(tokens))
        at += len(tokens)
    return steps
