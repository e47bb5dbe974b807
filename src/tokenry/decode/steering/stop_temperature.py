"""Stop temperature: thinking ends sooner or later by the logit of one token.

While a row is thinking (`steering.thinking`), with e the end-of-thinking token and m the largest
logit,

    z'_e = m - (m - z_e) / T        "max-shift": T > 1 stops sooner, T < 1 later
    z'_e = z_e + scale log T        "bias"
    z'_e = z_e / T                  "raw", for comparison: it moves with the sign of z_e

All other tokens keep their logits, and in "max-shift" the likeliest token stays the likeliest.

Source: Making Small Language Models Efficient Reasoners: Intervention, Supervision, Reinforcement
(arXiv 2505.07961). Reconstructed: the forms; the paper's could not be found.
"""

from typing import Any, Literal, get_args

import torch
from torch import Tensor

from tokenry.core.checks import in_range, one_of
from tokenry.decode.steering.base import Example, controller
from tokenry.decode.steering.thinking import Thinking

Mode = Literal["max-shift", "bias", "raw"]


@controller("stop-temperature", paper=73, examples=lambda: _examples())
class StopTemperature(Thinking):
    """Thinks less (T > 1) or more (T < 1); for `logits_processor=[...]`.

    Args:
        stop: id of the end-of-thinking token.
        temperature: T, in (0, inf); 1 changes nothing.
        start: id of the token that begins thinking; None: every text begins with it.
        mode: see above.
        scale: of mode "bias", in (0, inf).
        prompt_length: columns of `input_ids` that are the prompt, whose stops do not count.
    """

    def __init__(
        self,
        stop: int,
        temperature: float,
        *,
        start: int | None = None,
        mode: Mode = "max-shift",
        scale: float = 1.0,
        prompt_length: int = 0,
    ):
        super().__init__(stop, start, prompt_length)
        in_range("temperature", temperature, "(0, inf)")
        in_range("scale", scale, "(0, inf)")
        one_of("mode", mode, get_args(Mode))
        self.temperature, self.mode, self.scale = temperature, mode, scale

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Logits `[B, V]` after `input_ids` `[B, T]`, that of the stop moved."""
        thinking, _ = self.thinking(input_ids, scores)
        if self.temperature == 1.0:
            return scores
        old = scores[:, self.stop].double()
        most = scores.amax(-1).double()
        if self.mode == "max-shift":
            moved = most - (most - old) / self.temperature
        elif self.mode == "bias":
            moved = old + self.scale * torch.tensor(self.temperature).double().log()
        else:
            moved = old / self.temperature
        steered = scores.clone()
        there = thinking.to(scores.device) & old.isfinite()
        steered[:, self.stop] = torch.where(there, moved.to(scores.dtype), scores[:, self.stop])
        return steered


def _examples() -> list[Example]:
    def made(t: Any, length: int, temperature: float) -> StopTemperature:
        return StopTemperature(t.eos_token_id, temperature, prompt_length=length)

    return [Example(lambda t, n, _: made(t, n, 3.0), lambda t, n, _: made(t, n, 1.0))]
