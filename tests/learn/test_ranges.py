"""Hyper-parameters keep to the ranges that their docstrings state: a docstring is the table.

For every numeric field the docstring says "in [0, inf)", ">= 0" or the like. What lies outside is
refused by name, the ends as they are drawn; NaN always.
"""

import dataclasses
import importlib
import inspect
import math
import pkgutil
import re

import pytest

import tokenry.learn.policy
import tokenry.learn.preference
import tokenry.learn.rewards
from tokenry.core.errors import InputError
from tokenry.learn.objective import objective
from tokenry.learn.recipes.draft_heads import Schedule
from tokenry.learn.recipes.fingerprint import AutoConfusion
from tokenry.learn.recipes.sequence_to_sequence.event_posterior import EventLikelihood
from tokenry.learn.recipes.still import AttentionTransfer
from tokenry.measure.audit.verbosity import TemporalWeights
from tokenry.text.markers import MarkerDropout
from tokenry.text.tokenizers.base import tokenizer

NUMBERS = ("float", "int", "float | None", "int | None", float, int, float | None, int | None)
INTERVAL = re.compile(r"in ([\[(])(\S+), ([^\s\])]+)([\])])")
BOUND = re.compile(r">(=?) (-?[\d.]+)")
REFUSAL = r"must be a (whole )?number in"


def hyperparameters():
    """Every registered method, the parts that objectives are composed of, and other methods."""
    found = {entry.value for role in (objective, tokenizer) for entry in role}
    found |= {AttentionTransfer, AutoConfusion, EventLikelihood, MarkerDropout, Schedule}
    found.add(TemporalWeights)
    for package in (tokenry.learn.preference, tokenry.learn.policy, tokenry.learn.rewards):
        for info in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            for value in vars(importlib.import_module(info.name)).values():
                own = inspect.isclass(value) and value.__module__ == info.name
                if own and (hasattr(value, "needs") or value.__name__.endswith("Settings")):
                    found.add(value)
    return sorted(filter(dataclasses.is_dataclass, found), key=lambda kind: kind.__name__)


def entry_of(kind, name):
    """What the docstring of a class, or of the one it extends, says about a field."""
    for owner in kind.__mro__:
        text = owner.__doc__ or ""
        heads = [*re.finditer(r"(?:^|(?<=[.;:]\s)|(?<=\n))\s*((?:\w+, )*\w+): ", text)]
        for head, after in zip(heads, [*heads[1:], None], strict=False):
            if name in head[1].split(", "):
                return " ".join(text[head.end() : after.start() if after else None].split())
    return ""


def range_of(entry):
    """(bracket, low, high, bracket) of "in (0, 1]", of "> 0" or of ">= 0"."""
    if stated := INTERVAL.search(entry):
        return stated.groups()
    bound = BOUND.search(entry)
    return bound and ("[" if bound[1] else "(", bound[2], "inf", ")")


def _needs_nothing(kind):
    empty = dataclasses.MISSING
    fields = dataclasses.fields(kind)
    return all(f.default is not empty or f.default_factory is not empty for f in fields)


FIELDS = [
    pytest.param(kind, field, id=f"{kind.__name__}.{field.name}")
    for kind in hyperparameters()
    for field in dataclasses.fields(kind)
    if field.type in NUMBERS and field.default is not dataclasses.MISSING and _needs_nothing(kind)
]


def test_all_objectives_with_numbers_are_here():
    assert len(FIELDS) > 90
    assert {"dpo", "ppo", "tars"} <= set(objective.names())


def accepts(kind, name, value):
    """Whether the range of a field admits a value; what else a value needs is another matter."""
    try:
        kind(**{name: value})
    except InputError as error:
        return re.search(rf"{name} is .*{REFUSAL}", str(error)) is None
    return True


@pytest.mark.parametrize(("kind", "field"), FIELDS)
def test_a_field_keeps_to_the_range_in_its_docstring(kind, field):
    entry = entry_of(kind, field.name)
    stated = range_of(entry)
    assert stated, f"the docstring of {kind.__name__} states no range of {field.name}: {entry!r}"
    left, low, high, right = stated
    low, high, whole = float(low), float(high), "int" in str(field.type)
    assert whole or "whole" not in entry
    assert accepts(kind, field.name, field.default)

    inside = {int(x) if whole else x for x, closed in ((low, left == "["), (high, right == "]"))
              if closed and math.isfinite(x)}  # fmt: skip
    outside = {math.nan, "0.5", True}
    for end, closed, step in ((low, left == "[", -1), (high, right == "]", 1)):
        if not closed:
            outside.add(int(end) if whole and math.isfinite(end) else end)
        if math.isfinite(end):
            outside |= {end + step * (1 if whole else 1e-6 * max(abs(end), 1)), step * math.inf}
            outside.add(step * 10**20)
    outside |= {1.5} if whole else set()
    for value in inside:
        assert accepts(kind, field.name, value), value
    for value in outside:
        assert not accepts(kind, field.name, value), value
    if "None" not in str(field.type):
        assert not accepts(kind, field.name, None)


@pytest.mark.parametrize(
    "kind", dict.fromkeys(param.values[0] for param in FIELDS), ids=lambda k: k.__name__
)
def test_a_numeric_field_with_an_error_is_named_with_its_class_or_as_it_is(kind):
    name = next(p.values[1].name for p in FIELDS if p.values[0] is kind)
    with pytest.raises(InputError, match=rf"{name} is nan; it must be a (whole )?number in"):
        kind(**{name: math.nan})
