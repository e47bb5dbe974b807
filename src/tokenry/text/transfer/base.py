"""What embedding transfer is: rows for a new vocabulary, from those of an old one.

No model is loaded: tables are tensors, tokenizers are tokenizers. The output layer's rows are
transferred like the input's, by a second call.
"""

from typing import Any, Protocol

from torch import Tensor

from tokenry.core.registry import Role


class EmbeddingTransfer(Protocol):
    """The role: E' [V', D] = T(E), for the vocabulary of another tokenizer, from E [V, D].

    A token that both vocabularies spell with the same bytes keeps its row.
    """

    def __call__(self, embeddings: Tensor, old: Any, new: Any) -> Tensor:
        """[len(new), D], of the dtype and on the device of `embeddings` [>= len(old), D].

        Raises:
            ShapeError: fewer rows than the old tokenizer has entries.
        """
        ...


embedding_transfer = Role("embedding transfer", EmbeddingTransfer, ("tokenry.text.transfer",))
