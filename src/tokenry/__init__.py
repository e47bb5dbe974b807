"""Tokenry: everything in a language model that is decided token by token.

    import tokenry

    model, tokenizer = tokenry.load("smollm2")
    batch = tokenry.TokenBatch.from_pairs(tokenizer, [("The capital of France is", " Paris.")])
    scores = tokenry.score(model, batch, needs=("logprob", "entropy"))

Names are imported when first used, so `import tokenry` loads neither torch nor transformers.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenry.core.batch import TokenBatch as TokenBatch
    from tokenry.core.errors import TokenryError as TokenryError
    from tokenry.core.scores import Scores as Scores
    from tokenry.decode.generate import generate as generate
    from tokenry.learn.run import train as train
    from tokenry.measure.inspect import inspect as inspect
    from tokenry.model.decoding import DecodingState as DecodingState
    from tokenry.model.hub import load as load
    from tokenry.model.score import score as score

__version__ = "0.1.0"

_HOMES = {
    "DecodingState": "tokenry.model.decoding",
    "Scores": "tokenry.core.scores",
    "TokenBatch": "tokenry.core.batch",
    "TokenryError": "tokenry.core.errors",
    "generate": "tokenry.decode.generate",
    "inspect": "tokenry.measure.inspect",
    "load": "tokenry.model.hub",
    "score": "tokenry.model.score",
    "train": "tokenry.learn.run",
}
__all__ = [
    "DecodingState",
    "Scores",
    "TokenBatch",
    "TokenryError",
    "__version__",
    "generate",
    "inspect",
    "load",
    "score",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'tokenry' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
