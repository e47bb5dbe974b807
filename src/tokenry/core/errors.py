"""Errors that speak: each says what was wrong, with the values, and what to do about it."""

import difflib
from collections.abc import Iterable


class TokenryError(Exception):
    """Base of every error that Tokenry raises on purpose; the command line prints it on one
    line."""


class ShapeError(TokenryError, ValueError):
    """Tensors whose shapes do not fit each other, or a convention such as [B, T]."""


class InputError(TokenryError, ValueError):
    """Data from the user that cannot be used: an empty text, a broken line, an impossible value."""


class VocabularyError(TokenryError, ValueError):
    """Two models or tokenizers whose vocabularies must agree and do not."""


class ConstraintError(TokenryError, ValueError):
    """A constraint that is malformed, or that no text of the allowed length can satisfy."""


class ModelError(TokenryError, RuntimeError):
    """A model that cannot be found, fetched, verified or used in the way that was asked."""


class NonFiniteError(TokenryError, ArithmeticError):
    """A loss, a gradient, a metric or a weight that is NaN or infinite: training stops there.

    metric: which one. value: what it was. step: the optimizer step, from 1. evaluating: whether it
    was met while evaluating after that step, not in it. checkpoint: the newest checkpoint whose
    weights gave finite numbers, or None.
    """

    def __init__(
        self,
        metric: str,
        value: float,
        step: int,
        *,
        evaluating: bool = False,
        checkpoint: str | None = None,
    ):
        self.metric, self.value, self.step, self.checkpoint = metric, value, step, checkpoint
        kept = f"the last good checkpoint is {checkpoint}" if checkpoint else "no good checkpoint"
        super().__init__(
            f"training stopped {'after' if evaluating else 'in'} step {step}: {metric} is {value}; "
            f"{kept}. Lower learning_rate, or look at the data of this step"
        )


class UnknownNameError(TokenryError, LookupError):
    """A name that is not in a catalogue; the message lists the nearest ones."""

    def __init__(self, kind: str, name: str, known: Iterable[str]):
        known = sorted(known)
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known)}"
        super().__init__(f"unknown {kind} {name!r}; {hint}")
