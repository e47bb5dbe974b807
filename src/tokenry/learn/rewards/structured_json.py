"""RL-Struct: "good JSON" as five rewards, so that form is learnt before content.

    R = sum_k lambda_k r_k,    each r_k in [0, 1]

    r_struct    share of the required keys that are there, broken text included, less 0.25 for each
                unexpected or repeated key of the object itself, not below 0
    r_format    1: nothing but the object; 0.5: an object with text or a code fence around it; 0
    r_valid     1: it parses and every type is right; 0.5: it parses; 0
    r_correct   mean over the fields of `answer` of the F1 of their words (a mapping), or whether
                the last required field equals it; 0 where nothing parses
    r_len       1 up to max_length tokens, falling to 0 at twice as many

hierarchical: r_correct counts only where r_valid = 1, r_valid only where r_struct > 0.

Source: RL-Struct: A Lightweight Reinforcement Learning Framework for Reliable Structured Output in
LLMs (arXiv 2512.00319). Reconstructed: all five formulas and their weights; the paper names them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tokenry.core.checks import in_range, one_of, within
from tokenry.core.errors import InputError
from tokenry.learn.rewards.answers import normalised
from tokenry.learn.rewards.base import Example, Texts, reward
from tokenry.learn.rewards.json_keys import JSON_TYPES, extract_json, fits, key_paths, nested_paths

WEIGHTS = {"struct": 1.0, "format": 0.5, "valid": 1.0, "correct": 2.0, "length": 0.25}
EXTRA_KEY = 0.25


def word_f1(given: Any, gold: Any) -> float:
    """F1 of the words of two values, up to case, as multisets; 1 when both have none."""
    own, wanted = Counter(normalised(given).split()), Counter(normalised(gold).split())
    if not own and not wanted:
        return 1.0
    return 2 * (own & wanted).total() / (own.total() + wanted.total())


def _examples() -> list[Example]:
    right = '{"reasoning": "x", "answer": "4"}'
    completions = ["four", right[:-2], f"```json\n{right}\n```", right]
    columns = {"answer": ["4"] * 4, "completion_ids": [[1, 2]] * 4}
    better = [(0, 1), (1, 2), (2, 3)]
    gated = StructuredJSON(hierarchical=True)
    return [Example(made, completions, columns, better) for made in (StructuredJSON(), gated)]


@reward("structured_json", paper=28, examples=_examples)
@dataclass(frozen=True)
class StructuredJSON:
    """The weighted sum of the five; `components` gives each.

    Args:
        schema: required key -> JSON type, or a mapping of the same kind for an object or a text
            that holds one; default a text "reasoning" and a text "answer".
        weights: lambda of struct, format, valid, correct, length, in [0, inf); those not named
            have their defaults 1, 0.5, 1, 2, 0.25.
        max_length: tokens, whole, >= 1; default 256.
        hierarchical: see above; default False.

    Raises:
        InputError: an unknown type or component, an empty schema; no gold answer where correctness
            has a weight.
    """

    schema: Mapping[str, Any] = field(
        default_factory=lambda: {"reasoning": "string", "answer": "string"}
    )
    weights: Mapping[str, float] = field(default_factory=dict)
    max_length: int = 256
    hierarchical: bool = False

    def __post_init__(self) -> None:
        within(self, "[1, inf)", "max_length", integer=True)
        _check_schema(self.schema)
        for name, weight in self.weights.items():
            one_of("a component of StructuredJSON", name, WEIGHTS)
            in_range(f"StructuredJSON.weights[{name!r}]", weight, "[0, inf)")

    def __call__(
        self,
        prompts: Texts,
        completions: Texts,
        completion_ids: Sequence[Sequence[int]],
        answer: Sequence[Any] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        weights = WEIGHTS | dict(self.weights)
        if answer is None and weights["correct"]:
            raise InputError(
                'StructuredJSON compares with the column "answer", which the data do not have: add '
                'it, or set weights={"correct": 0}'
            )
        golds = [None] * len(completions) if answer is None else answer
        rewards: list[float | None] = []
        for text, ids, gold in zip(completions, completion_ids, golds, strict=True):
            parts = self.components(text, len(ids), gold)
            known = gold is not None or not weights["correct"]
            total = sum(weights[name] * value for name, value in parts.items())
            rewards.append(total if known else None)
        return rewards

    def components(self, text: str, length: int, gold: Any = None) -> dict[str, float]:
        """The five rewards of a completion of `length` tokens; correct is 0 without a gold."""
        value, clean = extract_json(text)
        parts = {
            "struct": self._structure(text),
            "format": _format(text, value, clean),
            "valid": 0.0 if value is None else 1.0 if fits(value, self.schema) else 0.5,
            "correct": 0.0 if value is None or gold is None else self._correctness(value, gold),
            "length": min(1.0, max(0.0, 2 - length / self.max_length)),
        }
        if self.hierarchical:
            parts["correct"] *= parts["valid"] == 1
            parts["valid"] *= parts["struct"] > 0
        return parts

    def _structure(self, text: str) -> float:
        paths, wanted = key_paths(text), nested_paths(self.schema)
        own = set(paths) | self._in_texts(text)
        unexpected = sum(path[0] not in self.schema for path in paths if len(path) == 1)
        top = Counter(path for path in paths if len(path) == 1 and path[0] in self.schema)
        unexpected += sum(count - 1 for count in top.values())
        share = sum(path in own for path in wanted) / len(wanted)
        return max(0.0, share - EXTRA_KEY * unexpected)

    def _in_texts(self, text: str) -> set[tuple[str, ...]]:
        """Keys of the objects that texts of a whole object hold."""
        value = extract_json(text)[0] or {}
        nested = [key for key, kind in self.schema.items() if isinstance(kind, Mapping)]
        return {
            (key, *path)
            for key in nested
            if isinstance(value.get(key), str)
            for path in key_paths(value[key])
        }

    def _correctness(self, value: dict[str, Any], gold: Any) -> float:
        if isinstance(gold, Mapping):
            scores = [word_f1(value.get(name, ""), wanted) for name, wanted in gold.items()]
            return sum(scores) / max(len(scores), 1)
        last = list(self.schema)[-1]
        return float(last in value and normalised(value[last]) == normalised(gold))


def _format(text: str, value: dict[str, Any] | None, clean: bool) -> float:
    stripped = text.strip()
    braces = stripped.startswith("{") and stripped.endswith("}") and "```" not in stripped
    if braces and (clean or value is None):
        return 1.0
    return 0.5 if value is not None else 0.0


def _check_schema(schema: Mapping[str, Any]) -> None:
    if not schema:
        raise InputError("a schema needs at least one key")
    for key, kind in schema.items():
        if isinstance(kind, Mapping):
            _check_schema(kind)
        else:
            one_of(f"the type of {key!r}", kind, JSON_TYPES)
