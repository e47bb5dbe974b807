"""Word filters measured: what they do to perplexity, and how many words of texts break them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from tokenry.decode.constraints.words import WordConstraint
from tokenry.decode.steering.ctgs import filtered_logprob


@torch.no_grad()
def filtered_perplexity(
    model: Any, ids: Sequence[int], constraint: WordConstraint
) -> tuple[float, float]:
    """exp(-mean log p) of a text, its first token not scored: of the model, and of the model whose
    next tokens are those that the constraint allows.

    Raises ConstraintError for a text that breaks the constraint.
    """
    tokens = torch.tensor(list(ids))
    logits = model(tokens[None].to(next(model.parameters()).device)).logits[0, :-1].float().cpu()
    state, masks = constraint.initial(), []
    for token in tokens.tolist():
        state = state.advance(token)
        masks.append(state.mask())
    allowed = torch.stack(masks[:-1])  # [T - 1, V]
    plain, filtered = (
        float(filtered_logprob(logits, mask, tokens[1:]).mean().neg().exp())
        for mask in (torch.ones_like(allowed), allowed)
    )
    return plain, filtered


def broken_share(constraint: WordConstraint, texts: Sequence[str]) -> float:
    """The share of words that the filter rejects, 0 without any word. The last word of a text may
    be cut and is left out."""
    words = [word for text in texts for word in constraint.spelling.words(text)[:-1]]
    return sum(not constraint.filter(word) for word in words) / max(1, len(words))
