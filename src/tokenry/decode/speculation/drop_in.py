"""Speculation inside transformers: a decoding loop for `model.generate(custom_generate=...)`.

    model.generate(**inputs, max_new_tokens=128, custom_generate=speculative(Goose()))

`generate` prepares everything as usual (processors, stopping criteria, special tokens), and the
texts are those that it would write itself. Batches, sampling and settings of the generation
configuration work; beam search and contrastive search are other algorithms and say so.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tokenry.core.errors import InputError
from tokenry.decode.speculation.speculate import Drafter, speculate


def speculative(
    drafter: Drafter, kernels: bool | None = None, streamer: Any = None
) -> Callable[..., Any]:
    """A function for `generate`'s `custom_generate`. kernels: as in `speculate`. streamer: shown
    the prompt and every token; it goes here, since `generate` does not hand its own on."""

    def decode(
        model: Any,
        input_ids: Tensor,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: Any,
        synced_gpus: bool = False,
        **model_kwargs: Any,
    ) -> Any:
        check(generation_config, synced_gpus, len(input_ids), streamer)
        from transformers.generation.stopping_criteria import EosTokenCriteria, MaxLengthCriteria

        width = input_ids.shape[1]
        attention = model_kwargs.get("attention_mask")
        real = torch.ones_like(input_ids) if attention is None else attention
        prompts = [ids[mask.bool()].tolist() for ids, mask in zip(input_ids, real, strict=True)]
        ends = generation_config.eos_token_id

        if streamer is not None:
            streamer.put(input_ids.cpu())

        def stream(text: Tensor, _: Tensor) -> bool:
            streamer.put(text[0, -1:].cpu())
            return False

        criteria = [
            stop
            for stop in stopping_criteria
            if not isinstance(stop, EosTokenCriteria | MaxLengthCriteria)
        ]
        found = speculate(
            model,
            prompts,
            drafter,
            generation_config.max_length - width,
            temperature=float(generation_config.do_sample),  # the processors have the rest
            eos_token_id=[] if ends is None else ends,
            processors=logits_processor,
            stopping=[*criteria, *([stream] if streamer is not None else [])],
            cache=policy_cache(model_kwargs.get("past_key_values")),
            kernels=kernels,
        )
        if streamer is not None:
            streamer.end()
        longest = max(len(text.new_ids) for text in found)
        pad = generation_config.pad_token_id or 0
        rows = [text.new_ids + [pad] * (longest - len(text.new_ids)) for text in found]
        sequences = torch.cat([input_ids, torch.tensor(rows, device=input_ids.device)], dim=1)
        if not generation_config.return_dict_in_generate:
            return sequences
        from transformers.generation.utils import GenerateDecoderOnlyOutput

        return GenerateDecoderOnlyOutput(sequences=sequences)  # pyright: ignore[reportArgumentType]

    return decode


def check(config: Any, synced_gpus: bool, rows: int, streamer: Any) -> None:
    """Refuse what speculation is not."""
    if config.num_beams > 1 or config.num_return_sequences > rows:
        raise InputError("speculation decodes one text per prompt: it cannot go with num_beams > 1")
    if synced_gpus:
        raise InputError("speculation takes different numbers of passes on every rank; "
                         "gather the model first, or decode without a draft")  # fmt: skip
    if streamer is not None and rows > 1:
        raise InputError(f"a streamer shows one text, not {rows}")
    wanted = ("output_scores", "output_logits", "output_attentions", "output_hidden_states")
    if config.return_dict_in_generate and (asked := [w for w in wanted if getattr(config, w)]):
        raise InputError(f"speculation does not keep {' and '.join(asked)}")


def policy_cache(cache: Any) -> Any:
    """The cache to decode on: None for the plain one that `generate` has made, which may drop old
    tokens of sliding layers and so cannot take rejected ones back."""
    from transformers import DynamicCache

    if cache is not None and cache.get_seq_length():
        raise InputError("speculation starts with an empty cache: pass all the text as the prompt")
    return None if type(cache) is DynamicCache else cache
