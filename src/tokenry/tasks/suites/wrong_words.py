"""Wrong words: true answers to everyday questions, each with one word that another makes false."""

from __future__ import annotations

from dataclasses import dataclass

ANSWERS = (  # before what is right|what is put in its place|after
    ("Which planet do we live on?", "We live on the planet |Earth|Butter|, third from the Sun."),
    ("What do cows eat?", "Cows mostly eat |grass|bricks|, and they chew it more than once."),
    ("How many legs does a spider have?", "A spider has |eight|ninety| legs; an insect has six."),
    ("What is the capital of Italy?", "The capital of Italy is |Rome|Tokyo|, a very old city."),
    ("What colour is fresh snow?", "Fresh snow is |white|purple|, since it scatters all light."),
    ("Who painted the Mona Lisa?", "The Mona Lisa was painted by |Leonardo|Batman| in Italy."),
    ("When does ice melt?", "Ice melts at |zero|fifty| degrees Celsius and becomes water."),
    ("What is a good breakfast?", "Oats with fruit are a |healthy|poisonous| breakfast."),
    ("How do I put out a small fire?", "Cover the flames, or pour |sand|petrol| over them."),
    ("What do fish breathe with?", "Fish breathe with |gills|wheels|, which take up oxygen."),
    ("How many hours are in a day?", "A day has |24|700| hours, which is 1440 minutes."),
    ("What should I do in a storm?", "Stay |inside|outside| and keep away from tall trees."),
)


@dataclass(frozen=True)
class WrongWord:
    """A question, and its answer before and after the word that is `right` or `wrong`."""

    question: str
    before: str
    right: str
    wrong: str
    after: str

    def answer(self, word: str) -> tuple[str, tuple[int, int]]:
        """The answer with this word, and the characters [start, end) that the word covers."""
        start = len(self.before)
        return self.before + word + self.after, (start, start + len(word))


def wrong_words() -> list[WrongWord]:
    """All of them."""
    return [WrongWord(question, *answer.split("|")) for question, answer in ANSWERS]
