"""Encoder-decoders: any of transformers' read with its cross-attention, and small ones for toys.

`read` runs the encoder and the decoder once and returns what the methods of this package need:
logits, hidden states and, layer by layer, how much each target position attends to each source
position, averaged over heads. A mask [B, T, S] can say which source positions a target position may
see; masks, segments and positions of the encoder are passed on to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tokenry.core.errors import ModelError, ShapeError
from tokenry.learn.fit import fit as optimise
from tokenry.learn.fit import linear
from tokenry.model import compat


@dataclass(frozen=True)
class Reading:
    """logits [B, T, V]. encoder [B, S, D] and decoder [B, T, D]: last hidden states. attentions:
    the cross-attention [B, T, S] of every decoder layer, averaged over heads."""

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

    source: ids [B, S], or None if `encoder_inputs` holds `inputs_embeds`. decoder_input: ids
    [B, T]. source_mask: bool [B, S], True for real tokens. cross_mask: bool [B, T, S], True where
    the target may attend; a target position that may attend nowhere attends everywhere alike.
    encoder_inputs, decoder_inputs: further named inputs, such as position_ids; those of the decoder
    carry the prefix "decoder_".

    Raises ModelError for a model loaded with an attention that returns no weights.
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
    told: dict[str, Any] = {}
    if decoder is not None:  # of an EncoderDecoderModel, which hands on what is named so
        told = compat.counted_positions(decoder, torch.ones_like(decoder_input).bool())
        told = {f"decoder_{name}": value for name, value in told.items()}
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
        **(told | dict(decoder_inputs or {})),
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


def small_encoder(
    vocabulary: int, length: int, seed: int, *, segments: int = 2, **size: int
) -> Any:
    """An untrained transformer encoder for texts of at most `length` ids.

    segments: how many kinds of tokens `token_type_ids` tells apart. size: see `small_config`.
    """
    from transformers import BertModel

    config = small_config(vocabulary, length, type_vocab_size=segments, **size)
    with torch.random.fork_rng():
        torch.manual_seed(seed)  # transformers initialises from the global generator
        return BertModel(config, add_pooling_layer=False)


def small_decoder(vocabulary: int, length: int, seed: int, **size: int) -> Any:
    """An untrained causal decoder with cross-attention, to be `joined` with an encoder."""
    from transformers import BertLMHeadModel

    config = small_config(
        vocabulary, length, type_vocab_size=1, is_decoder=True, add_cross_attention=True, **size
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed + 1)
        return BertLMHeadModel(config)


def joined(encoder: Any, decoder: Any) -> Any:
    """An encoder-decoder of the two, which it shares with others they are joined to."""
    from transformers import EncoderDecoderModel

    return EncoderDecoderModel(encoder=encoder, decoder=decoder)


def small_config(
    vocabulary: int, length: int, *, width: int = 64, layers: int = 2, **options: Any
) -> Any:
    """A small BERT's configuration: `width` a multiple of 4, `layers` of four heads."""
    from transformers import BertConfig

    options |= {"attn_implementation": "eager"}  # which returns its weights
    return BertConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=length,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=0.1,  # of a small width
        **options,
    )


def fit(
    loss: Callable[[torch.Generator], Tensor],
    modules: Iterable[nn.Module],
    *,
    steps: int,
    learning_rate: float,
    seed: int,
    warmup: float = 0.1,
) -> list[float]:
    """Train modules in place by AdamW; the losses of all steps.

    loss: of a batch that it draws with the generator. The learning rate rises over the share
    `warmup` of the steps and falls linearly to 0 over the others. Weights that occur in several
    modules are trained once; gradients are clipped to norm 1.
    """
    modules = list(modules)
    weights = [weight for module in modules for weight in module.parameters()]
    for module in modules:
        module.train()
    losses = optimise(
        lambda _, generator: loss(generator),
        weights,
        steps=steps,
        learning_rate=learning_rate,
        schedule=linear(warmup),
        weight_decay=0.01,
        seed=seed,
    )
    for module in modules:
        module.eval()
    return losses


@torch.no_grad()
def greedy(
    next_scores: Callable[[Tensor], Tensor], rows: int, *, start: int, end: int, limit: int
) -> Tensor:
    """The most probable token, again and again: ids [rows, at most limit], the start left out.

    next_scores: from ids [rows, t] to scores [rows, V] of the next token. After `end`, only `end`.
    """
    ids = torch.full((rows, 1), start)
    for _ in range(limit):
        token = next_scores(ids).argmax(-1)
        token = torch.where((ids == end).any(-1), end, token)
        ids = torch.cat([ids, token[:, None]], 1)
        if bool((token == end).all()):
            break
    return ids[:, 1:]
