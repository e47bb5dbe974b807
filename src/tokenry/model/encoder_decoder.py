"""Encoder-decoders: any of transformers' read once, its cross-attention included.

`read` runs the encoder and the decoder and returns what is wanted of them: logits, hidden states
and, layer by layer, how much each target position attends to each source position, averaged over
heads. A mask [B, T, S] can say which source positions a target position may see; masks, segments
and positions of the encoder are passed on to it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tokenry.core.errors import ModelError, ShapeError
from tokenry.model import compat


@dataclass(frozen=True)
class Reading:
    """What an encoder-decoder gives for a batch.

    Attributes:
        logits: [B, T, V].
        encoder: [B, S, D], its last hidden states.
        decoder: [B, T, D], its last hidden states.
        attentions: the cross-attention [B, T, S] of every decoder layer, averaged over heads.
    """

    logits: Tensor
    encoder: Tensor
    decoder: Tensor
    attentions: list[Tensor]


def read(
    model: Any,
    source: Tensor | None,
    decoder_input: Tensor,
    *,
    source_mask: Tensor | None = None,
    cross_mask: Tensor | None = None,
    encoder_inputs: Mapping[str, Any] | None = None,
    decoder_inputs: Mapping[str, Any] | None = None,
) -> Reading:
    """Read a batch with any encoder-decoder of transformers, its attention weights included.

    Args:
        source: ids [B, S], or None if `encoder_inputs` holds `inputs_embeds`.
        decoder_input: ids [B, T].
        source_mask: bool [B, S], True for real tokens.
        cross_mask: bool [B, T, S], True where the target may attend; a target position that may
            attend nowhere attends everywhere alike.
        encoder_inputs: further named inputs, such as position_ids; those of the decoder carry the
            prefix "decoder_".
        decoder_inputs: as `encoder_inputs`.

    Raises:
        ModelError: a model loaded with an attention that returns no weights.
    """
    encoder, decoder = model.get_encoder(), getattr(model, "decoder", None)
    own: dict[str, Any] = {}
    if source is not None:
        real = torch.ones_like(source) if source_mask is None else source_mask
        own = compat.counted_positions(encoder, real.bool())
    encoded = encoder(
        **{"input_ids": source, "attention_mask": source_mask, "return_dict": True}
        | own
        | dict(encoder_inputs or {})
    )
    positions: dict[str, Any] = {}
    if decoder is not None:  # of an EncoderDecoderModel, which hands on what is named so
        positions = compat.counted_positions(decoder, torch.ones_like(decoder_input).bool())
        positions = {f"decoder_{name}": value for name, value in positions.items()}
    seen = source_mask
    if cross_mask is not None:
        shape = (*decoder_input.shape, encoded[0].shape[1])
        if cross_mask.shape != shape:
            raise ShapeError(f"cross_mask must be {list(shape)}, not {list(cross_mask.shape)}")
        allowed = cross_mask if source_mask is None else cross_mask & source_mask[:, None].bool()
        seen = torch.zeros_like(allowed, dtype=encoded[0].dtype)
        seen = seen.masked_fill(~allowed, torch.finfo(seen.dtype).min)[:, None]  # [B, 1, T, S]
    output = model(
        encoder_outputs=encoded,
        attention_mask=seen,
        decoder_input_ids=decoder_input,
        output_attentions=True,
        output_hidden_states=True,
        use_cache=False,
        **(positions | dict(decoder_inputs or {})),
    )
    attentions = output.cross_attentions
    if not attentions or any(attention is None for attention in attentions):
        raise ModelError(
            'the model returns no cross-attention weights: load it with attn_implementation="eager"'
        )
    return Reading(
        output.logits,
        encoded[0],
        output.decoder_hidden_states[-1],
        [attention.float().mean(1) for attention in attentions],
    )
