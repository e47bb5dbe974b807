"""Byte-pair encoding on bytes: the ordinary tokenizer, trained on any texts.

    V_0 = the special tokens and the 256 bytes
    V_k = V_k-1 + {ab}       ab the neighbours that stand side by side most often, inside of words

until |V| = size, or no two tokens stand side by side `frequency` times. Every text can be written,
and decodes to itself.

Source: Neural Machine Translation of Rare Words with Subword Units (arXiv 1508.07909), on bytes as
in GPT-2; `tokenizers` counts and merges.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

from tokenry.core.checks import in_range, within
from tokenry.core.errors import InputError
from tokenry.text.tokenizers.base import TrainerExample, tokenizer_trainer

BYTES = 256


@tokenizer_trainer("bpe", examples=lambda: _examples())
@dataclass(frozen=True)
class BPE:
    """Trains byte-level BPE: `BPE().train(texts, 8000)`.

    Args:
        special: tokens that no text is cut into, the first ones of the vocabulary; "</s>" among
            them ends texts, "<s>" begins them. Default ("<s>", "</s>").
        frequency: how often two tokens must stand side by side to be merged, in [1, inf);
            default 2.
    """

    special: tuple[str, ...] = ("<s>", "</s>")
    frequency: int = 2

    lossless: ClassVar[bool] = True

    def __post_init__(self) -> None:
        within(self, "[1, inf)", "frequency", integer=True)

    def train(self, texts: Iterable[str], size: int) -> Any:
        """A tokenizer of at most `size` entries, fewer where the texts have no more to merge.

        Raises:
            InputError: a size below the special tokens and the bytes, or no texts.
        """
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
        from transformers import PreTrainedTokenizerFast

        in_range("size", size, f"[{BYTES + len(self.special)}, inf)", integer=True)
        texts = [text for text in texts if text]
        if not texts:
            raise InputError("there is no text to train a tokenizer on")
        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=size,
            min_frequency=self.frequency,
            special_tokens=list(self.special),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        backend.train_from_iterator(texts, trainer)
        named = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}
        return PreTrainedTokenizerFast(
            tokenizer_object=backend,
            clean_up_tokenization_spaces=False,
            **{name: token for name, token in named.items() if token in self.special},
        )


def _examples() -> list[TrainerExample]:
    return [TrainerExample(BPE(), 258), TrainerExample(BPE(special=()), 256)]
