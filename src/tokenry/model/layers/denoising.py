"""A non-autoregressive writer made of a masked language model: encoder and bidirectional decoder.

Both halves begin as the same pretrained model; the decoder gets cross-attention to the source, new
or copied from its self-attention, and sees both sides of every position. It gives the distribution
of every token of a clean text at once, from a noisy one: `decode.denoising` writes with it,
`learn.recipes.denoising` trains it. How long the text is to be, the encoder's states say.

Source: Making the Most of your Model: Methods for Finetuning and Applying Pretrained Transformers
(arXiv 2408.16241). The copied cross-attention is reconstructed.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tokenry.core.errors import ModelError, ShapeError
from tokenry.model import compat


class DenoisingSeq2Seq(nn.Module):
    """Encoder and bidirectional decoder, both begun as one masked language model.

    Make it with `from_masked_lm`.

    Args:
        max_length: of the texts that it writes.
    """

    def __init__(self, encoder: Any, decoder: Any, max_length: int):
        super().__init__()
        self.encoder, self.decoder, self.max_length = encoder, decoder, max_length
        config = decoder.config
        self.vocab_size = config.vocab_size
        self.pad_id = config.pad_token_id or 0
        self.mask_id: int | None = None
        self.length_head = nn.Linear(config.hidden_size, max_length + 1)

    @classmethod
    def from_masked_lm(
        cls,
        masked_lm: Any,
        max_length: int = 64,
        *,
        mask_id: int | None = None,
        copy_attention: bool = True,
    ) -> DenoisingSeq2Seq:
        """From BERT, RoBERTa or another masked model of transformers that can be a decoder.

        Args:
            mask_id: the tokenizer's mask token; None: uniform noise only.
            copy_attention: new cross-attention begins as a copy of the layer's self-attention, else
                as transformers initialises it.
        """
        from transformers import AutoModel, AutoModelForCausalLM

        config = copy.deepcopy(masked_lm.config)
        encoder = AutoModel.from_config(config)
        encoder.load_state_dict(masked_lm.base_model.state_dict(), strict=False)
        config = copy.deepcopy(config)
        config.is_decoder = config.add_cross_attention = True
        try:
            decoder = AutoModelForCausalLM.from_config(config)
        except ValueError as error:
            raise ModelError(f"{type(masked_lm).__name__} cannot be a decoder: {error}") from error
        known = masked_lm.state_dict()
        loaded = decoder.load_state_dict(known, strict=False)
        new = {
            name: name.replace(".crossattention.", ".attention.") for name in loaded.missing_keys
        }
        if not any("crossattention" in name for name in new):
            raise ModelError(f"{type(decoder).__name__} has no cross-attention to read a source by")
        if copy_attention:
            copied = {name: known[twin] for name, twin in new.items() if twin in known}
            decoder.load_state_dict(copied, strict=False)
        model = cls(encoder, decoder, max_length)
        model.mask_id = mask_id
        return model.to(next(masked_lm.parameters()).device)

    def encode(self, source: Padded) -> Encoded:
        source = source.aligned(self.pad_id)
        states = self.encoder(
            source.ids,
            attention_mask=source.mask.long(),
            **compat.counted_positions(self.encoder, source.mask),
        ).last_hidden_state
        return Encoded(states, source.mask)

    def forward(self, noisy: Tensor, mask: Tensor, encoded: Encoded) -> Tensor:
        """Logits [B, T, V] of the clean text, for noisy ids [B, T] padded on the right."""
        # a mask of four dimensions is taken as it is: every position sees every token
        table = torch.zeros(len(mask), 1, mask.shape[1], mask.shape[1], device=mask.device)
        dtype = encoded.states.dtype
        table = table.to(dtype).masked_fill(~mask[:, None, None], torch.finfo(dtype).min)
        return self.decoder(
            input_ids=noisy,
            attention_mask=table,
            encoder_hidden_states=encoded.states,
            encoder_attention_mask=encoded.mask.long(),
            use_cache=False,
            **compat.counted_positions(self.decoder, mask),
        ).logits

    def length_logits(self, encoded: Encoded) -> Tensor:
        """[B, max_length + 1], from the mean of the encoder's states."""
        return self.length_head(masked_mean_rows(encoded.states, encoded.mask))


@dataclass(frozen=True)
class Padded:
    """ids [B, T] and which of them are tokens, mask [B, T]; padding on either side."""

    ids: Tensor
    mask: Tensor

    def __post_init__(self) -> None:
        if self.ids.ndim != 2 or self.ids.shape != self.mask.shape:
            raise ShapeError(
                f"ids and mask must both be [B, T]; got {list(self.ids.shape)} and "
                f"{list(self.mask.shape)}"
            )

    @classmethod
    def of(cls, rows: list[list[int]]) -> Padded:
        """From lists of ids, padded on the right."""
        width = max(map(len, rows), default=0)
        ids = torch.zeros(len(rows), width, dtype=torch.long)
        mask = torch.zeros(len(rows), width, dtype=torch.bool)
        for at, row in enumerate(rows):
            ids[at, : len(row)], mask[at, : len(row)] = torch.tensor(row), True
        return cls(ids, mask)

    def aligned(self, pad_id: int) -> Padded:
        """Tokens first: absolute positions then do not depend on the padding."""
        order = self.mask.long().argsort(dim=1, descending=True, stable=True)
        mask = self.mask.gather(1, order)
        return Padded(self.ids.gather(1, order).masked_fill(~mask, pad_id), mask)


@dataclass(frozen=True)
class Encoded:
    """What the encoder made of the sources: states [B, S, D] and mask [B, S]."""

    states: Tensor
    mask: Tensor


def masked_mean_rows(values: Tensor, mask: Tensor) -> Tensor:
    """The mean over T of values [B, T] or [B, T, D] where mask [B, T]; 0 of an empty row."""
    weight = mask.to(values.dtype)
    if values.ndim == 3:
        weight = weight[..., None]
    return (values * weight).sum(1) / weight.sum(1).clamp_min(1)
