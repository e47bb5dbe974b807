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


class UnknownNameError(TokenryError, LookupError):
    """A name that is not in a catalogue; the message lists the nearest ones."""

    def __init__(self, kind: str, name: str, known: Iterable[str]):
        known = sorted(known)
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known)}"
        super().__init__(f"unknown {kind} {name!r}; {hint}")
