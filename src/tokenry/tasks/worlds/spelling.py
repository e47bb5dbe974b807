"""Words spelled letter by letter: the first letter tells the word, and three words may follow each.

What comes next is certain inside a word and open at its end, so that a model can know several
letters ahead, but not which word comes after the next.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from tokenry.core.batch import TokenBatch
from tokenry.core.checks import within

LETTERS = 26
CHANCES = (0.6, 0.3, 0.1)  # of the words that may follow


@dataclass(frozen=True)
class SpelledWords:
    """A language of `words` words of `spelled` letters, drawn with `seed`.

    Args:
        seed: of the words and of what follows them.
        length: letters of a text, a multiple of `spelled`.
        words: in [3, 26]. spelled: letters of a word.
    """

    seed: int = 0
    length: int = 48
    words: int = 20
    spelled: int = 4

    generator: torch.Generator = field(init=False, repr=False, compare=False)
    """Goes on behind the draws of the words."""
    letters: Tensor = field(init=False, repr=False, compare=False)  # [words, spelled]
    follow: Tensor = field(init=False, repr=False, compare=False)  # [words, 3]

    def __post_init__(self) -> None:
        within(self, "[3, 26]", "words", integer=True)
        generator = torch.Generator().manual_seed(self.seed)
        rest = torch.randint(LETTERS, (self.words, self.spelled - 1), generator=generator)
        letters = torch.cat([torch.arange(self.words)[:, None], rest], dim=1)
        chances = torch.rand(self.words, self.words, generator=generator)
        made = {"letters": letters, "follow": chances.topk(3).indices, "generator": generator}
        for name, value in made.items():
            object.__setattr__(self, name, value)

    @property
    def size(self) -> int:
        """Letters of the alphabet."""
        return LETTERS

    @property
    def start(self) -> int:
        """Letters of a prompt: a word."""
        return self.spelled

    def batch(self, count: int, generator: torch.Generator) -> TokenBatch:
        """Texts [count, length], every letter but the first a target."""
        word = torch.randint(self.words, (count,), generator=generator)
        text, chances = [word], torch.tensor(CHANCES)
        for _ in range(self.length // self.spelled - 1):
            choice = torch.multinomial(chances, count, replacement=True, generator=generator)
            word = self.follow[word, choice]
            text.append(word)
        return TokenBatch.from_ids(self.letters[torch.stack(text, 1)].flatten(1).tolist())
