"""Numeric fields of everything registered for decoding: what lies outside their range is refused.

The fields are found by their annotations, so that a new method is checked without being listed
here; how it is built otherwise is.
"""

import inspect
import math
import re

import pytest

from tokenry.core.errors import TokenryError
from tokenry.decode.constraints.base import constraint
from tokenry.decode.samplers.base import sampler
from tokenry.decode.samplers.request import text_sampler
from tokenry.decode.steering import phonetics, word_filters, word_shapes
from tokenry.decode.steering.base import controller

ROLES = {role.name: role for role in (constraint, sampler, text_sampler, controller)}
# what a method needs besides its numbers
NEEDS = {
    "predicate": lambda t: {"prefix": bool, "complete": bool, "tokenizer": t},
    "words": lambda t: {"filter": word_filters.WithoutLetters("e"), "tokenizer": t},
    "contains": lambda t: {"strings": ["a"], "tokenizer": t},
    "stop": lambda t: {"strings": ["a"], "tokenizer": t},
    "length": lambda t: {"minimum": 1, "maximum": 2, "tokenizer": t},
    "dictionary": lambda t: {"phrases": [["a"]], "tokenizer": t},
    "melody": lambda t: {"phrases": [1], "tokenizer": t, "lexicon": ["cat"]},
    "completion": lambda t: {"engine": None, "tokenizer": t},
    "uscd": lambda t: {"model": None, "negative": [1]},
    "ngram-style": lambda t: {"ngrams": None},
    "posterior": lambda t: {"features": [0.0, 1.0], "epsilon": 0.5},
    "stopping": lambda t: {"stop": [1], "prompt_length": 1},
    "ctgs": lambda t: {"filter": None},
    "asap": lambda t: {"constraint": None},
    "stop-temperature": lambda t: {"stop": 1, "temperature": 2.0},
    "budget-forcing": lambda t: {"stop": 1, "most": 5},
}
INFINITE = {("uscd", "threshold")}  # whose range has infinity in it


def fields(build):
    """The parameters of a class that are numbers, and whether they must be whole."""
    for name, parameter in inspect.signature(build).parameters.items():
        kind = str(parameter.annotation)
        plain = re.sub(r"<class '(\w+)'>", r"\1", kind)
        if re.match(r"(int|float|Floor)\b(?! *\[)", plain):
            yield name, plain.startswith("int")


CASES = [
    (role, entry.key, name, whole)
    for role in ROLES
    for entry in ROLES[role]
    for name, whole in fields(entry.value)
]


@pytest.mark.parametrize(("role", "key", "name", "whole"), CASES, ids=lambda value: str(value))
def test_numbers_outside_their_range_are_refused_by_name(tiny_tokenizer, role, key, name, whole):
    build = ROLES[role][key]
    needs = {} if role in ("token sampler", "text sampler") else NEEDS[key](tiny_tokenizer)
    needs = {n: v for n, v in needs.items() if n in inspect.signature(build).parameters}
    build(**needs)  # as it stands it can be built
    wrong = [math.nan, "1", -math.inf]
    wrong += [] if (key, name) in INFINITE else [math.inf]
    wrong += [0.5, True, -1] if whole else []
    for value in wrong:
        with pytest.raises(TokenryError, match=name):
            build(**{**needs, name: value})


def test_the_numbers_of_the_methods_are_found():
    assert {(key, name) for _, key, name, _ in CASES} >= {
        ("awrs", "max_accepts"),
        ("awrs", "tail"),
        ("beam", "beams"),
        ("beam", "length_penalty"),
        ("best-of-n", "n"),
        ("guard", "beta"),
        ("length", "maximum"),
        ("melody", "melisma"),
        ("ngram-style", "strength"),
        ("posterior", "epsilon"),
        ("rejection", "max_trials"),
        ("smc", "ess_threshold"),
        ("stopping", "floor"),
        ("uscd", "weight"),
        ("words", "cache_size"),
    }


FILTERS = [
    (kind, name)
    for module in (phonetics, word_filters, word_shapes)
    for kind in vars(module).values()
    if inspect.isclass(kind) and kind.__module__ == module.__name__
    for name, _ in fields(kind)
]


@pytest.mark.parametrize(("kind", "name"), FILTERS, ids=lambda value: str(value))
def test_numbers_of_word_filters_are_checked_too(kind, name):
    needs = {"target": "cat"} if "target" in inspect.signature(kind).parameters else {}
    for value in (math.nan, math.inf, 0.5, -1, "1"):
        with pytest.raises(TokenryError, match=name):
            kind(**{**needs, name: value})


def test_settings_of_decoding_functions_are_checked(tiny_llama_text, tiny_tokenizer):
    import torch

    from tokenry.decode.controls import ControlContrast
    from tokenry.decode.generate import generate
    from tokenry.decode.repilot import complete_code
    from tokenry.decode.samplers.request import check_sampling
    from tokenry.decode.search import best_of_n
    from tokenry.decode.steering.selective_contrast import selective_contrast

    loaded = tiny_llama_text, tiny_tokenizer
    logits = torch.zeros(1, 4)
    calls = (
        lambda wrong: generate(loaded, "a", temperature=wrong),
        lambda wrong: generate(loaded, "a", ess_threshold=wrong),
        lambda wrong: generate(loaded, "a", particles=wrong),
        lambda wrong: complete_code(loaded, "a", temperature=wrong),
        lambda wrong: complete_code(loaded, "a", top_k=wrong),
        lambda wrong: check_sampling(wrong, 1.0),
        lambda wrong: best_of_n(tiny_llama_text, [1], len, wrong, max_new_tokens=1),
        lambda wrong: ControlContrast(tiny_llama_text, torch.zeros(1, 32), wrong),
        lambda wrong: selective_contrast(logits, logits, keep_ratio=wrong),
        lambda wrong: selective_contrast(logits, logits, weight=-wrong),
    )
    for wrong in (math.nan, math.inf, -1.0, -math.inf):
        for call in calls:
            with pytest.raises(TokenryError):
                call(wrong)
