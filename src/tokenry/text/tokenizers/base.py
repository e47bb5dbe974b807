"""What a tokenization is: another way from a text to the ids of a vocabulary that is given."""

from typing import Any, Protocol

from tokenry.core.registry import Role


class Tokenization(Protocol):
    """The role: `wrap` gives something that is called like the tokenizer, and decodes like it."""

    def wrap(self, tokenizer: Any) -> Any:
        """`tokenizer` with this method. VocabularyError if it cannot be."""
        ...


tokenizer = Role("tokenizer", Tokenization, ("tokenry.text",))
