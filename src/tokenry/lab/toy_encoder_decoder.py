"""Small untrained encoders and decoders of transformers' BERT, for toy worlds."""

from __future__ import annotations

from typing import Any

import torch


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
