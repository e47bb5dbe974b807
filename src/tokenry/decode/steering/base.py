"""What a logits controller is: a change of the next token's logits, as transformers takes it."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from tokenry.core.registry import Role


class Controller(Protocol):
    """The role: other logits l'_t = c(x_<t, l_t) of the same shape and type, and l_t itself where
    there is nothing to steer; a transformers `LogitsProcessor`."""

    def __call__(self, input_ids: Tensor, scores: Tensor, /) -> Any:
        """Logits [B, V] from ids [B, T] and logits [B, V]."""
        ...


Make = Callable[[Any, int, Any], Controller]


class Example(NamedTuple):
    """A controller as its contract test takes it: made so that it steers, and so that it leaves
    every text as it is, from a tokenizer, the length of a prompt, and a model of its vocabulary."""

    steering: Make
    idle: Make


controller = Role("logits controller", Controller, ("tokenry.decode.steering",))
