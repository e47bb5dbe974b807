"""A stand-in of reasoning-gym's interface, with one data set."""

import sys
from importlib.machinery import ModuleSpec
from random import Random
from types import ModuleType

import numpy


class Pairs:
    """Sums. The scorer needs tuples, gives half a point for one too many, and raises on letters."""

    def __init__(self, seed, size, top=9):
        assert top > 0, "top must be positive"
        self.seed, self.size, self.top = seed, size, top

    def __getitem__(self, index):
        numpy.random.seed(self.seed + index)
        random = Random(self.seed + index)
        pair = (random.randint(0, self.top), random.randint(0, self.top))
        answer = None if sum(pair) % 5 == 0 else str(sum(pair))
        metadata = {"pair": pair, "by_place": {0: numpy.str_(pair[0])}, "size": self.size}
        return {"question": f"{pair[0]} + {pair[1]}?", "answer": answer, "metadata": metadata}

    def score_answer(self, answer, entry):
        if answer is None:
            return 0.0
        assert isinstance(entry["metadata"]["pair"], tuple)
        assert entry["metadata"]["by_place"][0] == str(entry["metadata"]["pair"][0])
        assert entry["metadata"]["size"] == self.size
        return {0: 1.0, 1: 0.5}.get(int(answer) - sum(entry["metadata"]["pair"]), 0.0)


def extract_answer(text):
    return text.rpartition("<answer>")[2].partition("<")[0] if "<answer>" in text else None


def install(monkeypatch):
    """In the place of the package, for the length of a test."""
    gym = ModuleType("reasoning_gym")
    gym.__spec__, gym.__path__ = ModuleSpec("reasoning_gym", None), []
    gym.factory = ModuleType("reasoning_gym.factory")
    gym.factory.DATASETS = {"pairs": (Pairs, None)}
    gym.create_dataset = lambda name, **fields: gym.factory.DATASETS[name][0](**fields)
    gym.utils = ModuleType("reasoning_gym.utils")
    gym.utils.SYSTEM_PROMPTS = {"short": "Answer in <answer>."}
    gym.utils.extract_answer = extract_answer
    monkeypatch.setitem(sys.modules, "reasoning_gym", gym)
    monkeypatch.setitem(sys.modules, "reasoning_gym.utils", gym.utils)
