"""A tokenizer from its file, by the library `tokenizers` alone: neither transformers nor torch.

For what needs tokens and no model. It answers the questions of a `PreTrainedTokenizerFast` that
`text` asks: ids of a text, entries of the vocabulary, which of them are special.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import AddedToken, Tokenizer

# classes of transformers that take tokenizer.json as it is; others may change it while they read it
AS_IT_IS = ("TokenizersBackend", "PreTrainedTokenizerFast")


@dataclass(eq=False)
class TokenizerFile:
    """tokenizer.json, and the names of the special tokens in tokenizer_config.json."""

    backend_tokenizer: Tokenizer
    special: frozenset[str]

    @classmethod
    def read(cls, folder: Path, trusted: bool = False) -> TokenizerFile | None:
        """The tokenizer of a model's folder; None where only transformers knows how to read it.

        trusted: tokenizer.json says it all, whatever the class.
        """
        from tokenizers import Tokenizer

        file, settings = folder / "tokenizer.json", folder / "tokenizer_config.json"
        if not (file.is_file() and settings.is_file()):
            return None
        try:
            config = json.loads(settings.read_text(encoding="utf-8"))
            if not trusted and config.get("tokenizer_class") not in AS_IT_IS:
                return None
            backend = Tokenizer.from_file(str(file))
        except Exception:  # transformers says what is wrong with it
            return None
        backend.no_truncation()
        backend.no_padding()
        return cls(backend, frozenset(special_names(config)))

    def __call__(self, text: str, add_special_tokens: bool = True, **_: Any) -> dict[str, Any]:
        """{"input_ids": the text's ids}."""
        found = self.backend_tokenizer.encode(text, add_special_tokens=add_special_tokens)
        return {"input_ids": found.ids}

    def __len__(self) -> int:
        return self.backend_tokenizer.get_vocab_size(with_added_tokens=True)

    def convert_ids_to_tokens(self, ids: int | Sequence[int]) -> Any:
        if isinstance(ids, int):
            return self.backend_tokenizer.id_to_token(ids)
        return [self.backend_tokenizer.id_to_token(token) for token in ids]

    def get_vocab(self) -> dict[str, int]:
        return self.backend_tokenizer.get_vocab(with_added_tokens=True)

    @cached_property
    def added_tokens_decoder(self) -> dict[int, AddedToken]:
        return self.backend_tokenizer.get_added_tokens_decoder()

    @cached_property
    def all_special_ids(self) -> list[int]:
        named = (self.backend_tokenizer.token_to_id(name) for name in self.special)
        return sorted(token for token in named if token is not None)


def special_names(config: dict[str, Any]) -> list[str]:
    """The special tokens that a tokenizer_config.json names, as text."""
    values = [value for key, value in config.items() if key.endswith("_token")]
    for key in ("extra_special_tokens", "additional_special_tokens"):
        more = config.get(key) or []
        values += more.values() if isinstance(more, dict) else more
    texts = (value.get("content") if isinstance(value, dict) else value for value in values)
    return [text for text in texts if isinstance(text, str)]
