"""Token healing: the usual repair of a prompt that ends inside a token.

The prompt's last tokens are taken back, and the first new token has to begin with their bytes; all
others are the likeliest. What is written so is greedy over tokens, not over bytes: `complete` is
exact. With nothing taken back it is what a model writes from the tokens of the cut prompt.
"""

from __future__ import annotations

from typing import Any

import torch

from tokenry.core.checks import in_range
from tokenry.decode.bytes.canonical import canonical
from tokenry.model.decoding import DecodingState


@torch.no_grad()
def complete_healed(
    model: Any, tokenizer: Any, prompt: str, max_bytes: int, healed: int = 1
) -> bytes:
    """The greedy continuation of a prompt, of `max_bytes` bytes or some more.

    Args:
        max_bytes: tokens are added until there are so many bytes, or one spells nothing; >= 1.
        healed: the prompt's last tokens that are taken back, fewer than it has; 0 for none.
    """
    vocabulary = canonical(tokenizer).vocabulary
    ids = tokenizer(prompt)["input_ids"]
    in_range("max_bytes", max_bytes, "[1, inf)", integer=True)
    in_range("healed", healed, f"[0, {len(ids) - 1}]", integer=True)
    kept, taken = ids[: len(ids) - healed], ids[len(ids) - healed :]
    again = b"".join(vocabulary.pieces[token] for token in taken)
    state = DecodingState.start(model, torch.tensor([kept], device=model.device))
    # the tokens that begin with the bytes that were taken back
    low, high = vocabulary.range(again) if healed else (0, 0)
    first = torch.as_tensor(vocabulary.ids[low:high])
    token = int(
        first[state.logits[0].cpu()[first].argmax()] if healed else state.logits[0].argmax()
    )
    data = vocabulary.pieces[token]
    while len(data) < len(again) + max_bytes and vocabulary.pieces[token]:
        token = int(state.append(torch.tensor([token], device=model.device))[0].argmax())
        data += vocabulary.pieces[token]
    return data[len(again) :]
