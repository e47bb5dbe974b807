"""What a token attribution is: how much each token of a text counts for what the model says."""

from typing import Any, Protocol

from torch import Tensor

from tokenry.core.registry import Role


class Attribution(Protocol):
    """The role: scores s_k >= 0 of the tokens k <= position, by what each gave to the state there.

    The model is left as it was.

    Attributes:
        max_tokens: how much is read at once.
    """

    @property
    def max_tokens(self) -> int: ...

    def __call__(self, model: Any, ids: Tensor, position: int = -1) -> Tensor:
        """[T] float32 from ids [T]."""
        ...


attribution = Role("token attribution", Attribution, ("tokenry.model.attribution",))
