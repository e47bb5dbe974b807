"""GlobEnc: how much of each input token reaches a position, by norms multiplied over the layers.

In every layer, the state of token j writes into position i, through the attention, the residual
and the norms with their true statistics (biases and β left out):

    v_{i←j} = Σ_h α^h_ij W_O^h W_V^h x_j + [i = j] x_i
    u_{i←j} = LN_1(v_{i←j}) by the mean of the part and the deviation of the whole
    w_{i←j} = LN_2(u_{i←j}) likewise, what the feed-forward block writes left out of the part
    N_ij    = ‖w_{i←j}‖₂,    row-normalised;    R_l = N_l R_{l-1},  R_1 = N_1

The score of token j is R_L[position, j]: that of [CLS] in an encoder. In a decoder, whose norms
stand before the sublayers, x_j passes its norm on the way into the attention and the residual
passes none, so w = v; the position is that of the last token.

Source: FrugalPrompt: Reducing Contextual Overhead in LLMs via Token Attribution (arXiv 2510.16439),
after GlobEnc: Quantifying Global Token Attribution by Incorporating the Whole Encoder Layer in
Transformers (arXiv 2205.03286). The rows are normalised for stability, which the reference does
not do, and which changes what layers weigh against each other; the version for decoders is ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from tokenry.core.checks import within
from tokenry.model.attribution.base import attribution
from tokenry.model.attribution.blocks import MAX_TOKENS, Block, blocks_of, observe


@attribution("globenc", paper=27)
@dataclass(frozen=True)
class GlobEnc:
    """Scores of a text's tokens: their shares in the state at one position, rolled out.

    Args:
        normalise: make the rows of each layer's norms sum to 1.
    """

    normalise: bool = True
    max_tokens: int = MAX_TOKENS

    def __post_init__(self) -> None:
        within(self, "[1, inf)", "max_tokens", integer=True)

    @torch.no_grad()
    def __call__(self, model: Any, ids: Tensor, position: int = -1) -> Tensor:
        """[T], not negative; they sum to 1 with `normalise`.

        model: a causal language model, or an encoder, where `position` is that of [CLS].
        """
        seen = observe(model, ids, self.max_tokens)
        layers = zip(blocks_of(model), seen.states, seen.attention, strict=False)
        norms = (layer_norms(*layer) for layer in layers)
        return rollout([row_normalised(n) if self.normalise else n for n in norms])[position]


def layer_norms(block: Block, states: Tensor, weights: Tensor) -> Tensor:
    """N [T, T] of one layer: row i, column j is the length of what j writes into i.

    Args:
        states: [T, D] before the layer.
        weights: its attention [H, T, T].
    """
    # every position is a part of its own, the last part being for the biases, which do not count
    alone = torch.diag_embed(states.T).permute(1, 2, 0)
    parts = torch.cat([alone, torch.zeros_like(states)[None]])
    written = block.skip_feed_forward(block.attend(parts, weights))
    return written[:-1].norm(dim=-1).T


def row_normalised(norms: Tensor) -> Tensor:
    """The rows divided by their sums."""
    return norms / norms.sum(-1, keepdim=True).clamp_min(torch.finfo(norms.dtype).tiny)


def rollout(norms: list[Tensor]) -> Tensor:
    """N_L ··· N_1, [T, T]."""
    return reduce(lambda rolled, layer: layer @ rolled, norms)
