"""Word senses: a made-up pair of languages in which context decides how a word is translated.

Every sentence has a topic, which a word in it gives away. A source word has one sense, or two or
three of different topics, of which the sentence's topic is always one; the translation of a
sentence is that of its words, in order. Some words are rare: they occur once in the training
sentences. All target words are the senses of frequent words too, so that a rare word can
be translated by whoever is told its candidates and has learnt which topic each target word is of.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from tokenry.core.errors import InputError

PAD, SEP, ISEP, EOS, START = range(5)
FIRST = 5  # the first id that is a word, in either language


@dataclass(frozen=True)
class Translation:
    """source and target: ids, one target for each source word. rare: the place of a rare word, or
    None. topic: the sentence's."""

    source: tuple[int, ...]
    target: tuple[int, ...]
    topic: int
    rare: int | None = None


@dataclass(frozen=True)
class WordSenses:
    """The languages, drawn from a seed.

    topics: how many. words: target words of each topic. plain, polysemous: frequent source words
    with one sense and with several. rare: rare source words, two thirds of them with several.
    length: words of a sentence.
    """

    topics: int = 3
    words: int = 15
    plain: int = 20
    polysemous: int = 40
    rare: int = 60
    length: int = 6
    seed: int = 0
    senses: dict[int, dict[int, int]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.topics < 2 or self.length < 2:
            raise InputError("several topics and sentences of two words or more are needed")
        chance = random.Random(self.seed)
        senses: dict[int, dict[int, int]] = {}  # source word -> {topic: target word}
        for word in self.frequent + self.rare_words:
            several = word in self.frequent[self.plain :] or word in self.rare_words[: -self.few]
            count = chance.randint(2, min(3, self.topics)) if several else 1
            places = chance.sample(range(self.topics), count)
            senses[word] = {topic: self._target(topic, chance) for topic in places}
        object.__setattr__(self, "senses", senses)

    @property
    def few(self) -> int:
        """How many rare words have one sense."""
        return max(1, self.rare // 3)

    @property
    def frequent(self) -> list[int]:
        """The frequent words: plain ones, then polysemous ones. Before them, one for each topic."""
        first = FIRST + self.topics
        return list(range(first, first + self.plain + self.polysemous))

    @property
    def rare_words(self) -> list[int]:
        first = self.frequent[-1] + 1
        return list(range(first, first + self.rare))

    @property
    def source_size(self) -> int:
        return self.rare_words[-1] + 1

    @property
    def target_size(self) -> int:
        return FIRST + self.topics + self.topics * self.words

    def candidates(self, word: int) -> list[int]:
        """All translations of a word, in the order of the dictionary."""
        return sorted(self.senses[word].values()) if word in self.senses else []

    def sentence(self, chance: random.Random, rare: int | None = None) -> Translation:
        """A sentence, with a rare word in it if one is given."""
        topics = range(self.topics) if rare is None else sorted(self.senses[rare])
        topic = chance.choice(list(topics))
        fitting = [w for w in self.frequent if topic in self.senses[w] or w in self._plain]
        words = chance.choices(fitting, k=self.length - 1 - (rare is not None))
        words.append(FIRST + topic)
        if rare is not None:
            words.append(rare)
        chance.shuffle(words)
        target = tuple(self.translated(word, topic) for word in words)
        place = None if rare is None else words.index(rare)
        return Translation(tuple(words), target, topic, place)

    def translated(self, word: int, topic: int) -> int:
        """The translation of a word in a sentence of a topic."""
        if word < FIRST + self.topics:
            return word
        senses = self.senses[word]
        return senses[topic] if len(senses) > 1 else next(iter(senses.values()))

    def training(self, sentences: int, chance: random.Random) -> list[Translation]:
        """Sentences in which every rare word occurs once."""
        if sentences < self.rare:
            raise InputError(f"{self.rare} rare words do not fit into {sentences} sentences")
        rare = [*self.rare_words, *[None] * (sentences - self.rare)]
        made = [self.sentence(chance, word) for word in rare]
        chance.shuffle(made)
        return made

    @property
    def _plain(self) -> set[int]:
        return set(self.frequent[: self.plain])

    def _target(self, topic: int, chance: random.Random) -> int:
        return FIRST + self.topics + topic * self.words + chance.randrange(self.words)
