"""Thinking: which rows of a batch are in their thinking phase, and for how long they have been.

A row is thinking until its end-of-thinking token was generated; with a start token, behind the last
one of them that no end follows.
"""

import torch
from torch import Tensor
from transformers import LogitsProcessor

from tokenry.core.checks import in_range
from tokenry.core.errors import InputError, VocabularyError


class Thinking(LogitsProcessor):
    """A logits processor that knows the phase of every row.

    Args:
        stop: id of the end-of-thinking token.
        start: id of the token that begins thinking; None: every text begins with it.
        prompt_length: columns of the ids that are the prompt, whose stops do not count, padding
            included; without a start token.
    """

    def __init__(self, stop: int, start: int | None, prompt_length: int):
        in_range("stop", stop, "[0, inf)", integer=True)
        in_range("start", start, "[0, inf)", integer=True, optional=True)
        in_range("prompt_length", prompt_length, "[0, inf)", integer=True)
        if start == stop:
            raise InputError(f"thinking begins and ends with the same token, {stop}")
        self.stop, self.start, self.prompt_length = stop, start, prompt_length

    def thinking(self, input_ids: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Which rows are thinking, [B] bool, and how many tokens they have thought, [B]."""
        highest = max(self.stop, self.start or 0)
        if scores.shape[-1] <= highest:
            raise VocabularyError(f"token {highest} is outside the {scores.shape[-1]} logits")
        place = torch.arange(1, input_ids.shape[1] + 1, device=input_ids.device)
        if self.start is None:
            own = input_ids[:, self.prompt_length :]
            return (own != self.stop).all(-1), torch.full_like(input_ids[:, 0], own.shape[1])
        begun, ended = (
            torch.where(input_ids == token, place, 0).amax(-1) for token in (self.start, self.stop)
        )
        return begun > ended, input_ids.shape[1] - begun
