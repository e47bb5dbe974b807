"""Letter reversal: the letters of a word from the last to the first.

    w_1 w_2 ... w_n  ->  w_n ... w_2 w_1

Hard for a model that sees tokens and not letters, and exact to verify. The answer is the word
alone, up to white space around it; case counts. Words are drawn letter by letter, or from a list.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from string import ascii_lowercase
from typing import ClassVar

from tokenry.core.checks import within
from tokenry.core.errors import InputError
from tokenry.tasks.distinct import distinct_items
from tokenry.tasks.task import Answer, Generate, Item, Task, task


def _examples() -> list[LetterReversal]:
    words = "able bring cable delta eager fable gable habit ideal joker knave label magic navel "
    words += "ocean paper quail rabat sabre table uncle vapor wager yacht zebra anna"
    return [
        LetterReversal(),
        LetterReversal(words=words.split()),
        LetterReversal(4, 6, "abc", separator="-"),
    ]


@task("letter_reversal", examples=_examples)
@dataclass(frozen=True)
class LetterReversal(Task):
    """Draws words to be turned round.

    Args:
        shortest: letters of a drawn word, >= 2; default 4 to 8.
        longest: see `shortest`.
        alphabet: the letters, different ones, at least 2; default a to z.
        separator: stands between the letters of the answer, and is no letter; default "".
        words: draws from these instead, each of at least 2 characters; None for drawn letters.

    Raises:
        InputError: a setting out of range.
    """

    shortest: int = 4
    longest: int = 8
    alphabet: str = ascii_lowercase
    separator: str = ""
    words: Sequence[str] | None = None

    primary: ClassVar[str] = "right"

    def __post_init__(self) -> None:
        within(self, "[2, inf)", "shortest", integer=True)
        within(self, f"[{self.shortest}, inf)", "longest", integer=True)
        if len(set(self.alphabet)) < 2 or len(set(self.alphabet)) < len(self.alphabet):
            raise InputError(f"{self.alphabet!r} is no alphabet of 2 or more different letters")
        letters = set(self.alphabet if self.words is None else "".join(self.words))
        if any(letter.isspace() for letter in letters) or letters & set(self.separator):
            raise InputError("a letter is white space, or stands in the separator")
        if self.words is not None and min(map(len, self.words), default=0) < 2:
            raise InputError("words of at least 2 letters are needed")

    def items(self, count: int, seed: int) -> list[Item]:
        """Different words; `about` has the word."""
        return distinct_items(self._item, count, seed)

    def score(self, item: Item, answer: Answer) -> dict[str, float]:
        """right: the word turned round. letters: the share of places with the right letter, of the
        longer of the two words."""
        text, right = str(answer).strip(), item.about["word"][::-1]
        letters = text.split(self.separator) if self.separator else list(text)
        same = sum(one == other for one, other in zip(letters, right, strict=False))
        return {
            "right": float(text == self.separator.join(right)),
            "letters": same / max(len(letters), len(right)),
        }

    def _item(self, random: Random) -> Item:
        if self.words is not None:
            word = random.choice(list(self.words))
        else:
            size = random.randint(self.shortest, self.longest)
            word = "".join(random.choice(self.alphabet) for _ in range(size))
        between = f", with {self.separator!r} between them" if self.separator else ""
        prompt = (
            f"Write the letters of {word} from the last to the first{between}. Write nothing else."
            "\n"
        )
        limit = 4 + 2 * len(word) * (1 + len(self.separator))
        about = {"word": word}
        return Item(Generate(prompt, limit, ("\n",)), self.separator.join(word[::-1]), about)
