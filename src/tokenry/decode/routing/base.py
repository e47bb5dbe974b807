"""What routers are: they choose the model that writes, for each token or for a whole answer.

A small model comes first; a router says where its word is not enough and a larger one is asked.
"""

from typing import Protocol

from torch import Tensor

from tokenry.core.registry import Role


class TokenRouter(Protocol):
    """The role: d_t = r(l_t) in {0, 1} from the small model's logits l_t; 1 asks the larger model
    for token t."""

    def __call__(self, logits: Tensor) -> Tensor:
        """[B] bool from logits [B, V]."""
        ...


class SequenceRouter(Protocol):
    """The role: d = r(log p(y_1), ..., log p(y_T)) in {0, 1} from the small model's
    log-probabilities of its own answer y; 1 has the larger one answer anew."""

    def __call__(self, logprob: Tensor, mask: Tensor) -> Tensor:
        """[B] bool from [B, T] nats and the answers' tokens [B, T] bool."""
        ...


token_router = Role("token router", TokenRouter, ("tokenry.decode.routing",))
sequence_router = Role("sequence router", SequenceRouter, ("tokenry.decode.routing",))
