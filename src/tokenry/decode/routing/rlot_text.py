"""RLoT on texts: the five blocks as prompts, the model's grades of itself, and one reasoning.

    text <- text + write(prompt of the block, for question and text)     until terminate
    s    <- the seven grades that the model gives to the text, 2 where none can be read

The prompts are ours: the paper's are not known.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tokenry.core.checks import within
from tokenry.core.errors import InputError
from tokenry.tasks.reasoning_blocks import GRADES, TERMINATE, Observation, executed

Write = Callable[[str], str]
"""A prompt -> what the language model says."""

PROMPTS = (
    "Take one more step of reasoning. Do not give the final answer yet.",
    "Split what is left into smaller tasks, solve each of them, and put the results together.",
    "Propose several plans for what comes next, compare them, and take one step of the best.",
    "Check the last step. If something in it is wrong, write it again, corrected.",
    'Give the final answer now, on a line that begins with "Answer:".',
)
ASKED = (
    "A1: is the problem set up correctly",
    "A2: is it clear how to go on",
    "A3: are the calculations correct",
    "B1: how complex is the way to the final answer",
    "B2: are there other methods that could be tried",
    "C1: how close is the final solution",
    "C2: is the last step complete",
)
GRADE = re.compile(r"\b([ABC][123])\b[^0-9\n]*([1-3])\b")
ANSWER = re.compile(r"^\s*Answer:", re.MULTILINE)


def block_prompt(question: str, text: str, action: int) -> str:
    """What the model is asked for an action in 0..4."""
    return f"Problem: {question}\n\nSo far:\n{text or '(nothing)'}\n\n{PROMPTS[action]}\n"


def grades_prompt(question: str, text: str) -> str:
    """What the model is asked for its grades."""
    asked = "\n".join(f"{line}? (1 low, 2 middle, 3 high)" for line in ASKED)
    return (
        f"Problem: {question}\n\nReasoning so far:\n{text or '(nothing)'}\n\nGrade it:\n{asked}\n"
    )


def read_grades(said: str) -> Tensor:
    """[7] long from lines such as "A1: 3"; the last of each counts, and 2 where there is none."""
    given = dict(GRADE.findall(said))
    return torch.tensor([int(given.get(line[:2], 2)) for line in ASKED])


@dataclass
class TextReasoning:
    """One question as an environment of a single reasoning.

    Args:
        write: the language model.
        question: what it reasons about.
        reward: (question, text) -> a score of the text so far, in [0, 1]; 0 without one, as when a
            trained navigator is only used.
        max_actions: terminate included, in [1, inf).
        has_answer: whether a text has an answer already; by default a line "Answer:".
    """

    write: Write
    question: str
    reward: Callable[[str, str], float] = field(default=lambda question, text: 0.0)
    max_actions: int = 8
    has_answer: Callable[[str], bool] = field(default=lambda text: bool(ANSWER.search(text)))
    text: str = field(default="", init=False)
    ended: bool = field(default=False, init=False)
    seen: Observation = field(init=False, repr=False)

    def __post_init__(self) -> None:
        within(self, "[1, inf)", "max_actions", integer=True)
        self.seen = Observation(
            torch.full((1, GRADES), 2), torch.zeros(1, dtype=torch.long), torch.zeros(1).bool()
        )

    def reset(self, count: int = 1, generator: torch.Generator | None = None) -> Observation:
        """The question, with its grades before anything is written; count must be 1."""
        if count != 1:
            raise InputError(f"one question is one reasoning, not {count}")
        self.text, self.ended = "", False
        return self._observed(0)

    def step(
        self, actions: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Observation, Tensor, Tensor]:
        if self.ended:
            return self.seen, torch.zeros(1), torch.ones(1).bool()
        action = int(executed(actions, self.seen, self.max_actions))
        said = self.write(block_prompt(self.question, self.text, action))
        self.text = f"{self.text}\n{said}".strip()
        self.ended = action == TERMINATE
        score = torch.tensor([float(self.reward(self.question, self.text))])
        return self._observed(int(self.seen.step) + 1), score, torch.tensor([self.ended])

    def _observed(self, step: int) -> Observation:
        if not self.ended:  # nothing follows on the end that grades could decide
            grades = read_grades(self.write(grades_prompt(self.question, self.text)))[None]
            answered = torch.tensor([self.has_answer(self.text)])
            self.seen = Observation(grades, torch.tensor([step]), answered)
        return self.seen
