"""ByteEnsemble: models with different tokenizers, averaged byte by byte.

    p(b | x) = Σ_m w_m p_m(b | x),      Σ_m w_m = 1

where p_m is the exact next-byte distribution of model m (`ByteModel`), over 256 bytes and the end
of the text. All models are advanced by the byte that is chosen. A model for which the text has
become impossible drops out, and the weights of the others are scaled up.

Source: Exact Byte-Level Probabilities from Tokenized Language Models for FIM-Tasks and Model
Ensembles (arXiv 2410.09303).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add

import numpy as np

from tokenry.core.errors import ConstraintError, InputError
from tokenry.decode.bytes.model import NOTHING, ByteModel, ByteState, Floats
from tokenry.decode.bytes.prefix_scorer import Passes


@dataclass(frozen=True)
class EnsembleState:
    """A text, and the state of each model; None for those to which it is impossible."""

    data: bytes
    states: tuple[ByteState | None, ...]


class ByteEnsemble:
    """A weighted mean of byte models, with the same verbs.

        both = ByteEnsemble([ByteModel(*smollm2), ByteModel(*gemma3)])
        complete(both, "The capital of Fra", temperature=0).text

    Args:
        weights: one for each model, not negative; equal by default.
    """

    def __init__(self, models: Sequence[ByteModel], weights: Sequence[float] | None = None):
        self.models = list(models)
        given = [1.0] * len(self.models) if weights is None else [float(w) for w in weights]
        if not self.models or len(given) != len(self.models):
            raise InputError(f"{len(self.models)} models and {len(given)} weights: give as many")
        if min(given) < 0.0 or not sum(given) > 0.0:
            raise InputError(f"weights must be at least 0 and not all 0, got {given}")
        self.weights = np.array(given) / sum(given)

    @property
    def passes(self) -> Passes:
        return reduce(add, (model.passes for model in self.models), Passes())

    def start(self, prompt: bytes | str, context: Sequence[Sequence[int]] = ()) -> EnsembleState:
        """The state after a prompt.

        Args:
            context: for each model, the token ids before it.
        """
        before = list(context) or [()] * len(self.models)
        if len(before) != len(self.models):
            raise InputError(f"{len(before)} contexts for {len(self.models)} models")
        pairs = zip(self.models, before, strict=True)
        states = tuple(model.start(prompt, ids) for model, ids in pairs)
        return EnsembleState(states[0].data, states)

    def next_byte_logprobs(self, state: EnsembleState) -> Floats:
        """float64 [257]: log-probabilities of the 256 bytes and, last, of the end of the text."""
        rows, weights = [], []
        for model, one, weight in zip(self.models, state.states, self.weights, strict=True):
            if one is not None and weight > 0.0:
                rows.append(model.next_byte_logprobs(one) + np.log(weight))
                weights.append(weight)
        return np.logaddexp.reduce(rows) - np.log(sum(weights))

    def advance(self, state: EnsembleState, byte: int) -> EnsembleState:
        """The state after one more byte.

        Raises:
            ConstraintError: no model can write it.
        """
        states: list[ByteState | None] = []
        for model, one in zip(self.models, state.states, strict=True):
            try:
                states.append(None if one is None else model.advance(one, byte))
            except ConstraintError:
                states.append(None)
        living = zip(states, self.weights, strict=True)
        if not any(one is not None and weight > 0.0 for one, weight in living):
            raise ConstraintError(f"byte {byte:#04x} cannot follow {state.data[-40:]!r}")
        return EnsembleState(state.data + bytes([byte]), tuple(states))

    def logprob(self, data: bytes | str, prompt: bytes | str = "") -> float:
        """log p(data | prompt) in nats, the product of its bytes' probabilities."""
        state, total = self.start(prompt), 0.0
        for byte in data.encode() if isinstance(data, str) else data:
            value = float(self.next_byte_logprobs(state)[byte])
            if value == NOTHING:
                return NOTHING
            total += value
            state = self.advance(state, byte)
        return total
