"""Writing with two models: the small one, and the larger one for the tokens that a router says.

    y_t ~ p_small(. | x, y_<t)   if r(l_t) = 0,   else   p_large(. | x, y_<t)

The larger model reads only when it is asked, and then in one pass all that was written since.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch

from tokenry.core.checks import in_range
from tokenry.decode.branches import Branch, Branches
from tokenry.decode.routing.base import TokenRouter
from tokenry.decode.sample import draw


@dataclass(frozen=True)
class RoutedTexts:
    """ids: the new tokens of each text, the end included. asked: which of them are the larger
    model's. passes: forward passes of the small and of the larger model."""

    ids: list[list[int]]
    asked: list[list[bool]]
    passes: tuple[int, int]


def write_routed(
    small: Branch,
    large: Branch,
    router: TokenRouter,
    *,
    max_new_tokens: int,
    ends: Collection[int] = (),
    temperature: float = 0.0,
    generator: torch.Generator | None = None,
) -> RoutedTexts:
    """Continue prompts with two models of one vocabulary.

    Args:
        small: the model at the end of B prompts, used up.
        large: the other model at the end of the same prompts, used up.
        router: asks the larger model for tokens.
        max_new_tokens: of each text, in [1, inf).
        ends: ids that end a text.
        temperature: in [0, inf); 0, the default, takes the likeliest token.
        generator: of the draws.
    """
    in_range("max_new_tokens", max_new_tokens, "[1, inf)", integer=True)
    in_range("temperature", temperature, "[0, inf)")
    models = Branches([small, large])
    written: list[list[int]] = [[] for _ in range(models.rows)]
    asked: list[list[bool]] = [[] for _ in range(models.rows)]
    alive = torch.ones(models.rows, dtype=torch.bool)
    for _ in range(max_new_tokens):
        logits = small.logits
        ask = router(logits).cpu() & alive
        if bool(ask.any()):
            logits = torch.where(ask[:, None], large.logits.cpu(), logits.cpu())
        tokens = draw(logits, temperature, generator)
        for row in alive.nonzero()[:, 0].tolist():
            written[row].append(int(tokens[row]))
            asked[row].append(bool(ask[row]))
            alive[row] = written[row][-1] not in ends
        if not bool(alive.any()):
            break
        models.append(tokens)
    return RoutedTexts(written, asked, (small.passes, large.passes))
