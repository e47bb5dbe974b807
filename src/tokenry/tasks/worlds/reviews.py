"""Two kinds of short texts in words, each with an answer: reviews, where few words count, and sums,
where all do.

    overall the plot was really dull and the music ...       1 if most of three clauses praise
    two plus one minus one                                   the sum modulo 3
"""

from __future__ import annotations

import torch

PRAISE = ("wonderful", "great", "superb", "charming", "excellent", "brilliant", "touching")
BLAME = ("terrible", "awful", "dull", "clumsy", "weak", "dreadful", "tedious")
OPENINGS = ("overall", "in my view", "to be honest", "last night", "for me")
NOUNS = ("plot", "acting", "music", "ending", "script", "dialogue")
VERBS = ("was", "seemed", "felt", "looked")
DEGREES = ("really", "quite", "rather", "simply")
NUMBERS = ("zero", "one", "two")
TERMS = 3
VOCABULARY = sorted(
    {*PRAISE, *BLAME, *NOUNS, *VERBS, *DEGREES, *NUMBERS, "plus", "minus", "the", "and", "while"}
    | {word for opening in OPENINGS for word in opening.split()}
)
Text = tuple[list[str], int]
"""The words and the answer."""


def review(generator: torch.Generator) -> Text:
    """Three clauses; 1 if the majority of them praises."""

    def one_of(words: tuple[str, ...]) -> str:
        return words[int(torch.randint(len(words), (), generator=generator))]

    words = one_of(OPENINGS).split()
    signs = [int(torch.randint(2, (), generator=generator)) for _ in range(3)]
    for clause, sign in enumerate(signs):
        words += [["", "and", "while"][clause]] if clause else []
        words += ["the", one_of(NOUNS), one_of(VERBS), one_of(DEGREES)]
        words.append(one_of(PRAISE if sign else BLAME))
    return words, int(sum(signs) > 1)


def sum_of_words(generator: torch.Generator) -> Text:
    """A chain of additions and subtractions modulo 3."""
    terms = torch.randint(3, (TERMS,), generator=generator).tolist()
    signs = [1, *(2 * torch.randint(2, (TERMS - 1,), generator=generator) - 1).tolist()]
    words = [NUMBERS[terms[0]]]
    for sign, term in zip(signs[1:], terms[1:], strict=True):
        words += ["plus" if sign > 0 else "minus", NUMBERS[term]]
    return words, sum(sign * term for sign, term in zip(signs, terms, strict=True)) % 3
