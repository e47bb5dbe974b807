"""The small transformer that toy worlds train: made in a moment, the same for the same seed."""

from __future__ import annotations

from typing import Any

import torch


def toy_model(
    vocabulary: int,
    length: int,
    seed: int,
    *,
    width: int = 64,
    inner: int | None = None,
    layers: int = 2,
    start: int | None = None,
    tied: bool = False,
) -> Any:
    """An untrained causal transformer over `vocabulary` ids for texts of at most `length` ids.

    width: of the hidden states, a multiple of 8; four attention heads. inner: of the feed-forward
    blocks, twice the width by default. start: the id that begins a text, if one does. tied: input
    and output embeddings are one matrix.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=inner or 2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=length,
        tie_word_embeddings=tied,
        pad_token_id=None,
        bos_token_id=start,
        eos_token_id=None,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)  # transformers initialises from the global generator
        return LlamaForCausalLM(config)
