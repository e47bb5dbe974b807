"""DictDis: a decoder that may copy from all the translations a dictionary offers, and picks one.

Source tokens are followed by a block for each phrase i that the dictionary has, with all its k
candidates, in the target language:

    x_1 .. x_m  <sep> c_i1 <isep> c_i2 <isep> .. c_ik  <sep> ..  <eos>

Blocks are embedded by the decoder's embedding; their positions begin anew in every block, apart
from those of the source, and segment i tells them apart. With α_t the last layer's cross-attention
of decoder position t, averaged over heads, h_t its hidden state and c_t = Σ_j α_tj e_j the encoder
states that it sees, a gate decides between the vocabulary and the candidates' tokens:

    g_t = σ(w · [c_t; h_t] + b)
    p(y_t = v) = g_t softmax(logits_t)_v + (1 - g_t) Σ_{j is a candidate's token v} ᾱ_tj

ᾱ is α normalised over all candidates' tokens; separators are never copied. Without candidates, or
where none of them is attended to, g = 1 and the model is the plain one.

Source: DICTDIS: Dictionary Constrained Disambiguation for Improved NMT (arXiv 2210.06996). The
release normalises α in each block on its own, so that p adds up to more than 1: `blocks` does the
same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tokenry.core.errors import InputError, ShapeError
from tokenry.model.encoder_decoder import Reading, read

FIRST_POSITION = 1025  # of every block: behind those of a source of up to 1024 tokens


def copy_mixture(
    logits: Tensor,
    attention: Tensor,
    source_ids: Tensor,
    copyable: Tensor,
    gate: Tensor,
    *,
    blocks: Tensor | None = None,
) -> Tensor:
    """log p, float32 [B, T, V].

    Args:
        logits: [B, T, V].
        attention: [B, T, S], of each target position to the source.
        source_ids: [B, S].
        copyable: bool [B, S], the candidates' tokens.
        gate: [B, T] in [0, 1], counted as 1 where no candidate is attended to.
        blocks: [B, S], the number of each token's block, to normalise in each on its own; p is then
            not normalised.
    """
    B, T, V = logits.shape
    S = source_ids.shape[1]
    shapes = [(attention, [B, T, S]), (copyable, [B, S]), (gate, [B, T])]
    if wrong := [f"{list(x.shape)} for {shape}" for x, shape in shapes if list(x.shape) != shape]:
        raise ShapeError(f"attention, copyable and gate do not fit the logits: {', '.join(wrong)}")
    smallest = torch.finfo(torch.float32).tiny
    share = attention.float() * copyable[:, None]  # [B, T, S]
    total = share.sum(-1, keepdim=True)  # [B, T, 1]
    seen = total >= smallest  # else there is nothing to normalise, and nothing is copied
    if blocks is not None:
        same = (blocks[:, :, None] == blocks[:, None]).float()  # [B, S, S]
        total = share @ same
    share = (share / total.clamp_min(smallest)).masked_fill(~seen, 0.0)
    token = source_ids.masked_fill(~copyable, 0)[:, None].expand(-1, T, -1)
    copied = share.new_zeros(B, T, V).scatter_add(-1, token, share)
    gate = torch.where(seen, gate.float()[..., None], 1.0)
    generated = logits.float().log_softmax(-1) + gate.clamp_min(smallest).log()
    mixed = (1 - gate).clamp_min(smallest).log() + copied.clamp_min(smallest).log()
    return torch.where(copied > 0, torch.logaddexp(generated, mixed), generated)


@dataclass(frozen=True)
class Annotated:
    """A source with its candidates: ids, segment_ids, position_ids and copyable, [S] or [B, S]."""

    ids: Tensor
    segment_ids: Tensor
    position_ids: Tensor
    copyable: Tensor

    @classmethod
    def batch(cls, rows: Sequence[Annotated], pad: int) -> tuple[Annotated, Tensor]:
        """Rows padded on the right, and the mask of real tokens, bool [B, S]."""

        def stacked(name: str, value: int) -> Tensor:
            return nn.utils.rnn.pad_sequence(
                [getattr(row, name) for row in rows], batch_first=True, padding_value=value
            )

        sizes = torch.tensor([len(row.ids) for row in rows])
        mask = torch.arange(int(sizes.max())) < sizes[:, None]
        names = ("segment_ids", "position_ids", "copyable")
        return cls(stacked("ids", pad), *(stacked(name, 0) for name in names)), mask


def annotate_with_candidates(
    source: Sequence[int],
    phrases: Sequence[Sequence[Sequence[int]]],
    *,
    sep: int,
    isep: int,
    eos: int,
    first_position: int = FIRST_POSITION,
) -> Annotated:
    """A source's ids with a block for each phrase, given as its candidates' ids.

    sep begins a block, isep stands between candidates; both and the candidates are ids of the
    decoder's vocabulary.

    The end belongs to the source: without phrases, the ids are those of the plain model.

    Args:
        first_position: of every block's first token.
    """
    if first_position <= len(source):
        raise InputError(
            f"a source of {len(source)} tokens reaches the blocks' first position, "
            f"{first_position}: give a greater one"
        )
    ids, segments = list(source), [0] * len(source)
    positions, copyable = list(range(len(source))), [False] * len(source)
    for number, candidates in enumerate(phrases, start=1):
        if not candidates or not all(candidates):
            raise InputError(f"phrase {number} needs candidates of one token or more each")
        block = [sep]
        for rank, candidate in enumerate(candidates):
            block += [isep] * (rank > 0) + list(candidate)
        ids += block
        segments += [number] * len(block)
        positions += range(first_position, first_position + len(block))
        copyable += [token not in (sep, isep) for token in block]
    return Annotated(
        torch.tensor([*ids, eos]),
        torch.tensor([*segments, 0]),
        torch.tensor([*positions, len(source)]),
        torch.tensor([*copyable, False]),
    )


class CopyGate(nn.Module):
    """g_t = σ(w · [c_t; h_t] + b), [B, T], of any encoder-decoder's `Reading`. It begins at `bias`:
    0.88 at 2, so that an untrained gate leaves most to the vocabulary."""

    def __init__(self, hidden_size: int, bias: float = 2.0):
        super().__init__()
        self.weigh = nn.Linear(2 * hidden_size, 1)
        nn.init.constant_(self.weigh.bias, bias)

    def forward(self, reading: Reading) -> Tensor:
        attention = reading.attentions[-1].to(reading.encoder.dtype)
        context = attention @ reading.encoder  # [B, T, D]
        return torch.sigmoid(self.weigh(torch.cat([context, reading.decoder], -1)))[..., 0]


class DictionaryTranslator(nn.Module):
    """An encoder-decoder that reads annotated sources, with its gate.

    Args:
        model: of transformers, whose encoder takes `token_type_ids` and `position_ids` as BERT's
            does (its tables need an entry for each segment and position), and `inputs_embeds`.
        copying: whether there is a gate; without one the candidates are context and nothing else.
        per_block: normalise attention in each block on its own, as the release.
    """

    def __init__(self, model: Any, *, copying: bool = True, per_block: bool = False):
        super().__init__()
        self.model, self.per_block = model, per_block
        self.gate = CopyGate(model.config.decoder.hidden_size) if copying else None

    def forward(self, source: Annotated, mask: Tensor, decoder_input: Tensor) -> Tensor:
        """log p of the next tokens, [B, T, V].

        Args:
            source: [B, S] each.
            mask: bool [B, S].
        """
        reading = read(
            self.model,
            None,
            decoder_input,
            source_mask=mask,
            encoder_inputs={
                "inputs_embeds": candidate_embeddings(self.model, source),
                "token_type_ids": source.segment_ids,
                "position_ids": source.position_ids,
            },
        )
        if self.gate is None:
            return reading.logits.float().log_softmax(-1)
        return copy_mixture(
            reading.logits,
            reading.attentions[-1],
            source.ids,
            source.copyable,
            self.gate(reading),
            blocks=source.segment_ids if self.per_block else None,
        )


def candidate_embeddings(model: Any, source: Annotated) -> Tensor:
    """[B, S, D]: source tokens by the encoder's embedding, blocks by the decoder's."""
    inside = source.segment_ids > 0
    encoder = model.get_encoder().get_input_embeddings()
    decoder = (getattr(model, "decoder", None) or model.get_decoder()).get_input_embeddings()
    theirs = decoder(source.ids.masked_fill(~inside, 0))
    return torch.where(inside[..., None], theirs, encoder(source.ids.masked_fill(inside, 0)))
