"""What a quantizer is: vectors become one of finitely many, and the number of it."""

from typing import NamedTuple, Protocol

from torch import Tensor

from tokenry.core.registry import Role


class Quantized(NamedTuple):
    """z: [B, N, D], what `decode(ids)` gives, with the gradient of a straight-through estimator.
    ids: [B, N] long. losses: scalars to be added to the loss of whoever trains the encoder."""

    z: Tensor
    ids: Tensor
    losses: dict[str, Tensor]


class Quantizer(Protocol):
    """The role: a vector z [D] -> its id in [0, size) -> z' = decode(id), near z.

    dim: D. Positions outside the mask have id 0 and z 0.
    """

    @property
    def size(self) -> int: ...

    @property
    def dim(self) -> int: ...

    def __call__(self, z: Tensor, mask: Tensor | None = None) -> Quantized:
        """From z [B, N, D] and a mask [B, N] (default: all count)."""
        ...

    def decode(self, ids: Tensor) -> Tensor:
        """[..., D] from ids [...]."""
        ...


quantizer = Role("quantizer", Quantizer, ("tokenry.codecs.quantize",))
