"""Models that write tokens, seen as models of bytes: exact, and comparable across tokenizers."""

from tokenry.decode.bytes.canonical import cover_encodings, is_canonical
from tokenry.decode.bytes.completion import ByteCompletion, complete, suffix_context
from tokenry.decode.bytes.ensemble import ByteEnsemble, EnsembleState
from tokenry.decode.bytes.model import ByteModel, ByteState, byte_logprob
from tokenry.decode.bytes.prefix_scorer import Passes

__all__ = [
    "ByteCompletion",
    "ByteEnsemble",
    "ByteModel",
    "ByteState",
    "EnsembleState",
    "Passes",
    "byte_logprob",
    "complete",
    "cover_encodings",
    "is_canonical",
    "suffix_context",
]
