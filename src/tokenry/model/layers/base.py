"""What a layer is: a module from token states to token states, that padding does not disturb."""

from typing import Any, ClassVar, Protocol

from torch import Tensor

from tokenry.core.registry import Role


class Layer(Protocol):
    """The role: an `nn.Module`, Y [B, T, D] = f(X); if `causal`, y_t depends on no x_s with s > t.

    Registered are classes, or functions, of D. What stands outside the mask matters to nothing; the
    weights are float32, the output has the input's dtype; the state dict is all there is to save.
    """

    causal: ClassVar[bool]

    def __call__(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """[B, T, D], 0 outside the mask [B, T] (default: all of them count)."""
        ...

    def state_dict(self) -> dict[str, Any]: ...


layer = Role("layer", Layer, ("tokenry.model.layers",))
