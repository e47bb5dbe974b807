"""Stopping control: how soon a text may end, without touching what it says until then.

Let S be the tokens that end a text and s = p(S) the chance of stopping now, the *hazard*. Only its
log-odds are changed, then it is raised to a floor:

    s' = max( sigmoid( logit(s) / τ + b ), h_n ),      p'(v) = p(v) s' / s              v in S
                                                       p'(v) = p(v) (1 - s') / (1 - s)  otherwise

τ is the temperature of stopping, b its bias (in nats), h_n the floor after n generated tokens. In
logits that is one number added to the tokens of S: the relative probabilities within S, and those
of all other tokens, stay as they are. τ = 1, b = 0, h = 0 is the identity.

With h_n >= h from n = n0 on, the expected number of tokens, the end not counted, is at most
n0 + (1 - h) / h, whatever the model says or an attacker made it say: a bounded answer to inputs
that are built to keep a model talking.

Source: the stopping token's role is that of Inducing High Energy-Latency of Large Vision-Language
Models with Verbose Images (arXiv 2401.11170), which delays it by lowering its probability; the
control, the floor and the bound are derived here.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor

from tokenry.core.checks import in_range
from tokenry.core.errors import InputError, ShapeError, VocabularyError
from tokenry.decode.steering.base import Example, controller

Floor = float | Callable[[int], float]


@controller("stopping", paper=66, examples=lambda: _examples())
class StoppingControl(LogitsProcessor):
    """Sets the odds of ending a text apart from everything else; for `logits_processor=[...]`.

        short = StoppingControl([tokenizer.eos_token_id], floor=0.1, start=50, prompt_length=T)
        model.generate(**inputs, logits_processor=[short], do_sample=True)

    A stop that another processor has forbidden (-inf) stays forbidden, and a row whose tokens all
    stop is left alone. A top-k or top-p filter that comes later may drop a stop that the floor
    leaves improbable. Call `bound` for the expected length that a floor guarantees.

    Args:
        stop: ids of the tokens that end a text.
        temperature: τ > 0; above 1 the odds come nearer to even.
        bias: b; below 0 texts grow longer.
        floor: h in [0, 1], the least chance of stopping once `start` tokens were generated; or a
            function from the number of generated tokens n to h_n (`ramp`), asked from `start` on.
        prompt_length: columns of `input_ids`, padding included, that are the prompt; needed to
            count generated tokens, that is with a floor by function or a start above 0.
        sampling_temperature: the temperature that is applied to the logits afterwards; the floor
            and s are those of the distribution that is drawn from.
    """

    def __init__(
        self,
        stop: Sequence[int],
        *,
        temperature: float = 1.0,
        bias: float = 0.0,
        floor: Floor = 0.0,
        start: int = 0,
        prompt_length: int | None = None,
        sampling_temperature: float = 1.0,
    ):
        if not stop or min(stop) < 0:
            raise InputError(f"stop must hold the ids of the tokens that end a text, got {stop}")
        in_range("temperature", temperature, "(0, inf)")
        in_range("sampling_temperature", sampling_temperature, "(0, inf)")
        in_range("bias", bias, "(-inf, inf)")
        in_range("start", start, "[0, inf)", integer=True)
        in_range("prompt_length", prompt_length, "[0, inf)", integer=True, optional=True)
        if prompt_length is None and (start > 0 or callable(floor)):
            raise InputError(
                "a floor that depends on the length needs prompt_length, the number of columns of "
                "input_ids that are the prompt"
            )
        if not callable(floor):
            _check_hazard(floor)
        self.stop = sorted(set(stop))
        self.temperature, self.bias = temperature, bias
        self.floor, self.start = floor, start
        self.prompt_length = prompt_length
        self.sampling_temperature = sampling_temperature

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Logits `[B, V]` after `input_ids` `[B, T]`, those of the stop tokens moved."""
        if scores.shape[-1] <= self.stop[-1]:
            raise VocabularyError(
                f"stop token {self.stop[-1]} is outside the {scores.shape[-1]} logits of this model"
            )
        hazard = self.hazard_after(input_ids.shape[-1] - (self.prompt_length or 0))
        if self.temperature == 1.0 and self.bias == 0.0 and hazard == 0.0:
            return scores
        stop = torch.tensor(self.stop, device=scores.device)
        scaled = scores.double() / self.sampling_temperature
        odds = stop_log_odds(scaled, stop)  # [B]
        wanted = odds / self.temperature + self.bias
        if hazard > 0.0:
            floor = torch.tensor(hazard, dtype=torch.float64, device=scores.device)
            wanted = torch.maximum(wanted, floor.logit())
        # infinite odds: no stop is possible, or nothing else is
        shift = torch.where(odds.isfinite(), wanted - odds, 0.0) * self.sampling_temperature
        steered = scores.clone()
        if hazard == 1.0:
            others = torch.ones(scores.shape[-1], dtype=torch.bool, device=scores.device)
            others[stop] = False
            steered.masked_fill_(others & shift.isposinf()[:, None], float("-inf"))
            shift = shift.masked_fill(shift.isposinf(), 0.0)
        steered[:, stop] = (scores[:, stop].double() + shift[:, None]).to(scores.dtype)
        return steered

    def hazard_after(self, generated: int) -> float:
        """h_n, the floor after `generated` tokens."""
        if generated < self.start:
            return 0.0
        return _check_hazard(self.floor(generated)) if callable(self.floor) else self.floor

    def bound(self, horizon: int = 100_000) -> float:
        """The most tokens, the end not counted, that a text can have in expectation; maybe inf."""
        if not callable(self.floor):
            return self.start + (1 - self.floor) / self.floor if self.floor > 0 else float("inf")
        return expected_length([self.hazard_after(n) for n in range(horizon)])


def stop_log_odds(logits: Tensor, stop: Tensor) -> Tensor:
    """log s / (1 - s) for the chance s of the tokens `stop`, from logits `[..., V]` -> `[...]`."""
    others = logits.index_fill(-1, stop, float("-inf"))
    return logits[..., stop].logsumexp(-1) - others.logsumexp(-1)


def expected_length(hazards: Sequence[float] | Tensor) -> float:
    """E[N] = Σ_{n>=0} Π_{i<=n} (1 - h_i): tokens before the end when the n-th step stops with h_n.

    The last hazard goes on for ever; if it is 0 the expectation is infinite unless all texts have
    ended before.
    """
    going_on = 1.0 - torch.as_tensor(hazards, dtype=torch.float64)
    if going_on.ndim != 1 or not len(going_on):
        raise ShapeError(f"hazards must be a list of chances, got {list(going_on.shape)}")
    alive = going_on.cumprod(0)
    if float(alive[-1]) == 0.0:
        return float(alive.sum())
    last = float(going_on[-1])
    if last == 1.0:
        return float("inf")
    return float(alive.sum()) + float(alive[-1]) * last / (1.0 - last)


def ramp(start: int, end: int) -> Callable[[int], float]:
    """A floor that rises evenly from 0 after `start` tokens to 1, a sure end, after `end`."""
    in_range("start", start, "[0, inf)")
    in_range("end", end, f"({start}, inf)")
    return lambda n: min(max((n - start) / (end - start), 0.0), 1.0)


def _check_hazard(hazard: float) -> float:
    in_range("floor", hazard, "[0, 1]")
    return hazard


def _examples() -> list[Example]:
    options: dict[str, Any] = {"bias": -1.0, "floor": 0.3, "start": 2}
    return [
        Example(
            lambda t, length, _: StoppingControl([t.eos_token_id], prompt_length=length, **options),
            lambda t, *_: StoppingControl([t.eos_token_id]),
        )
    ]
