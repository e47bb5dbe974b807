"""LangGame: multiple choice about the letters of words, with an exact verifier.

Six kinds of question, drawn uniformly, each with four words to choose from and one right:

    occurrences  which word has the most 'e's?       right word has >= 2, the others <= 1
    contains     which word contains 'ea'?           a substring of 1-3 letters of the right word
    starts       which word starts with 'th'?        a prefix of 1-3 letters
    ends         which word ends with 'ng'?          a suffix of 1-3 letters
    longest      which word is the longest?          right word >= 7 letters, the others <= 4
    shortest     which word is the shortest?         right word <= 3 letters, the others >= 6

Chance is a quarter. Options are shown in brackets after the question or before it, then "
Answer:"; a model answers with the option it finds likeliest.

Source: the evaluation of "StochasTok: Improving Fine-Grained Subword Understanding in LLMs" (arXiv
2506.01687). Ours: the wording, and a uniformly drawn place of the right word.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import ClassVar

from tokenry.core.errors import InputError
from tokenry.tasks.task import Answer, Item, Loglikelihood, Task, likeliest, task

KINDS = ("occurrences", "contains", "starts", "ends", "longest", "shortest")
ASKS = {
    "occurrences": "Which word has the most '{}'s?",
    "contains": "Which word contains '{}'?",
    "starts": "Which word starts with '{}'?",
    "ends": "Which word ends with '{}'?",
    "longest": "Which word is the longest?",
    "shortest": "Which word is the shortest?",
}
ATTEMPTS = 200


@dataclass(frozen=True)
class Question:
    """A question: text up to "Answer:", options in the order shown, the index of the right one."""

    prompt: str
    options: tuple[str, ...]
    answer: int
    kind: str
    letters: str = ""


def satisfies(word: str, kind: str, letters: str = "") -> tuple[bool, bool]:
    """Whether a word may be the right answer, and whether it may be a wrong one."""
    match kind:
        case "occurrences":
            return word.count(letters) >= 2, word.count(letters) <= 1
        case "longest":
            return len(word) >= 7, len(word) <= 4
        case "shortest":
            return len(word) <= 3, len(word) >= 6
        case "contains":
            fits = letters in word
        case "starts":
            fits = word.startswith(letters)
        case _:
            fits = word.endswith(letters)
    return fits, not fits


def verify(question: Question) -> bool:
    """Whether exactly the marked option answers the question and all the others are wrong ones."""
    fits = [satisfies(word, question.kind, question.letters) for word in question.options]
    return all(
        right and not wrong if index == question.answer else wrong and not right
        for index, (right, wrong) in enumerate(fits)
    )


def _examples() -> list[LangGame]:
    words = "a the sea seen tea feature creature eleven everywhere nowhere bring thing going within"
    return [LangGame(words.split()), LangGame(words.split(), ("contains", "ends"))]


@task("langgame", paper=181, examples=_examples)
@dataclass(frozen=True)
class LangGame(Task):
    """Draws questions about `words`; as a task, the option that the model finds likeliest counts.

    InputError if the words cannot make a question of every kind asked for.
    """

    words: Sequence[str]
    kinds: Sequence[str] = KINDS
    options: int = 4

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.kinds) - set(KINDS)):
            raise InputError(f"unknown kinds {unknown}; LangGame knows {', '.join(KINDS)}")
        if self.options < 2 or len(set(self.words)) < self.options:
            raise InputError(
                f"{len(set(self.words))} words cannot fill {self.options} options (at least 2)"
            )

    primary: ClassVar[str] = "accuracy"

    def items(self, count: int, seed: int) -> list[Item]:
        """The questions as items that ask for the options' log-likelihoods."""
        return [
            Item(
                Loglikelihood(question.prompt, tuple(f" {word}" for word in question.options)),
                tuple(float(n == question.answer) for n in range(len(question.options))),
                {"answer": question.answer, "kind": question.kind},
            )
            for question in self.generate(count, seed)
        ]

    def score(self, item: Item, answer: Answer) -> dict[str, float]:
        """accuracy, and the same under the name of the question's kind."""
        right = float(likeliest(answer) == item.about["answer"])
        return {"accuracy": right, item.about["kind"]: right}

    def generate(self, n: int, seed: int) -> list[Question]:
        """`n` questions, the same for the same seed."""
        random = Random(seed)
        words = sorted(set(self.words))
        return [self._question(words, random) for _ in range(n)]

    def _question(self, words: list[str], random: Random) -> Question:
        kind = random.choice(list(self.kinds))
        for _ in range(ATTEMPTS):
            right = random.choice(words)
            letters = LETTERS[kind](right, random)
            if not satisfies(right, kind, letters)[0]:
                continue
            wrong = [word for word in words if satisfies(word, kind, letters)[1]]
            if len(wrong) < self.options - 1:
                continue
            shown = random.sample(wrong, self.options - 1)
            answer = random.randrange(self.options)
            shown.insert(answer, right)
            ask, choices = ASKS[kind].format(letters), f"[{', '.join(shown)}]"
            parts = (ask, choices) if random.random() < 0.5 else (choices, ask)
            return Question(f"{' '.join(parts)} Answer:", tuple(shown), answer, kind, letters)
        raise InputError(f"{ATTEMPTS} draws from {len(words)} words gave no {kind!r} question")


def _piece(place: Callable[[str, int, Random], int]) -> Callable[[str, Random], str]:
    """Draws 1-3 letters of a word, beginning where `place` says."""

    def letters(word: str, random: Random) -> str:
        size = random.randint(1, min(3, len(word)))
        start = place(word, size, random)
        return word[start : start + size]

    return letters


LETTERS: dict[str, Callable[[str, Random], str]] = {
    "occurrences": lambda word, random: random.choice(word),
    "contains": _piece(lambda word, size, random: random.randint(0, len(word) - size)),
    "starts": _piece(lambda word, size, random: 0),
    "ends": _piece(lambda word, size, random: len(word) - size),
    "longest": lambda word, random: "",
    "shortest": lambda word, random: "",
}
