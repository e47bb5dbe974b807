"""Grammars: JSON schemas, regular expressions and Lark grammars, read by llguidance.

A state holds its own parser; a copy of one takes about two microseconds (its automata are shared),
so `advance` copies and never touches its parent. One token's check takes one or two microseconds, a
mask of the whole vocabulary ten to a hundred.

Texts are constrained, not tokenizations: any sequence of tokens whose bytes spell a wanted text is
wanted, as the distribution of the language model covers all of them.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from tokenry.core.errors import ConstraintError
from tokenry.decode.constraints.base import Constraint, Example, State, constraint, eos_of, refuse
from tokenry.decode.constraints.json_schema import Path, parts, pointer, prepare, read_json
from tokenry.text.vocabulary import token_bytes

# Where a grammar forces the next bytes, llguidance's masks keep only their usual tokenization,
# though its checks of single tokens allow all; without forcing, both allow all.
ANY_TOKENS = '%llguidance {"no_forcing": true}'
# Ten times the engine's own limits: an object of 5,000 optional properties is read. They count
# work, not seconds, so that what is refused on one machine is refused on all.
LIMITS = {
    "max_items_in_row": 20_000,
    "initial_lexer_fuel": 10_000_000,
    "step_lexer_fuel": 2_000_000,
    "step_max_items": 500_000,
    "max_grammar_size": 5_000_000,
    "verbose_errors": False,
}
OVERLAP = (
    'the options of "oneOf" may overlap, and a text that satisfies two of them is wrong: give each '
    '"type": "object" and a required property with a "const" that no other has, or a "type" of its '
    'own, or write "anyOf" if several may match'
)
LONGEST_REASON = 300  # characters
MASK_COST = 16.0  # one mask in single checks, measured on JSON schemas over 49,152 tokens


class Grammar(Constraint):
    """The texts of a grammar, for a fast tokenizer of transformers.

    Made by `Grammar.json_schema`, `.regex` or `.lark`.

    Args:
        eos: the ids that may end a text (default: the tokenizer's).

    Raises:
        ConstraintError: with llguidance's reason when it cannot be built.
    """

    def __init__(self, source: str, tokenizer: Any, eos: Sequence[int] | None = None):
        from llguidance import LLMatcher

        self.eos = eos_of(tokenizer, eos)
        self.vocab_size = len(tokenizer)
        self._start = LLMatcher(_vocabulary(tokenizer), source, log_level=0, limits=_limits())
        if reason := self._start.get_error():
            raise ConstraintError(f"the grammar cannot be used: {_one_line(reason)}")

    @classmethod
    def json_schema(
        cls,
        schema: Mapping[str, Any] | str | bool,
        tokenizer: Any,
        *,
        whitespace: str | None = None,
        lenient: bool = False,
        eos: Sequence[int] | None = None,
    ) -> Grammar:
        """JSON texts that satisfy a schema, given as a dict or as its JSON text.

        Fewer texts than the schema's, never others: keys come in the schema's order, integers
        without point and exponent, characters without \\u escapes. What cannot be represented
        exactly is refused with its path (`json_schema.prepare`).

        Args:
            whitespace: regular expression of the white space allowed between the parts (default:
                any amount of JSON's; `""` for none, `" ?"` for at most one space).
            lenient: formats that cannot be checked are left out, with a warning, instead of
                refused.
        """
        options: dict[str, Any] = {}
        if whitespace == "":
            options = {"whitespace_flexible": False}
        elif whitespace is not None:
            options = {"whitespace_pattern": whitespace}
        try:
            parsed = read_json(schema) if isinstance(schema, str) else schema
            prepared = prepare(parsed, lenient=lenient)
            known = prepared.schema
            if reason := _refused(known):
                raise ConstraintError(f"{_one_line(reason)}, at {_culprit(known)}")
            if options and isinstance(known, Mapping):
                known = {**known, "x-guidance": {**known.get("x-guidance", {}), **options}}
            grammar = cls(f"start: %json {json.dumps(known)}\n{ANY_TOKENS}", tokenizer, eos)
        except (ValueError, TypeError) as error:  # ConstraintError is a ValueError
            raise ConstraintError(
                f"not a JSON schema that can be used: {_reason(error)}"
            ) from error
        if prepared.dropped:
            warnings.warn(
                f"not checked: the format {', the format '.join(prepared.dropped)}", stacklevel=2
            )
        return grammar

    @classmethod
    def regex(cls, pattern: str, tokenizer: Any, *, eos: Sequence[int] | None = None) -> Grammar:
        """Texts that match a regular expression as a whole (Rust syntax, no look-around)."""
        from llguidance import LLMatcher

        source = json.loads(LLMatcher.grammar_from_regex(pattern))["grammars"][0]["lark_grammar"]
        try:
            return cls(f"{source}\n{ANY_TOKENS}", tokenizer, eos)
        except ConstraintError as error:
            raise ConstraintError(f"bad regular expression: {_reason(error)}") from error

    @classmethod
    def lark(cls, grammar: str, tokenizer: Any, *, eos: Sequence[int] | None = None) -> Grammar:
        """Texts of a Lark grammar; its first rule is `start`.

        A grammar with an `%llguidance` line of its own keeps it: unless that says `no_forcing`,
        what has to follow is then allowed in its usual tokenization only.
        """
        own = "%llguidance" in grammar
        try:
            return cls(grammar if own else f"{grammar}\n{ANY_TOKENS}", tokenizer, eos)
        except ConstraintError as error:
            raise ConstraintError(f"bad grammar: {_reason(error)}") from error

    def initial(self) -> State:
        state = _GrammarState(self, self._start.deep_copy(), False)
        if not state.mask().any():
            raise ConstraintError("no text over this vocabulary satisfies the grammar")
        return state


class _GrammarState:
    __slots__ = ("_grammar", "_parser", "complete", "finished")
    mask_cost = MASK_COST

    def __init__(self, grammar: Grammar, parser: Any, finished: bool):
        self._grammar = grammar
        self._parser = parser
        self.finished = finished
        self.complete: bool = not finished and parser.is_accepting()

    def allows(self, token: int) -> bool:
        grammar = self._grammar
        if token in grammar.eos:
            return self.complete
        if self.finished or not 0 <= token < grammar.vocab_size:
            return False
        return self._parser.validate_tokens([token]) == 1

    def mask(self) -> Tensor:
        grammar = self._grammar
        if self.finished:
            return torch.zeros(grammar.vocab_size, dtype=torch.bool)
        packed = np.frombuffer(self._parser.compute_bitmask(), dtype=np.uint8)
        bits = np.unpackbits(packed, bitorder="little")[: grammar.vocab_size]
        allowed = torch.from_numpy(bits.view(np.bool_))
        if reason := self._parser.get_error():
            if not reason.startswith("NoExtension"):
                raise ConstraintError(f"the grammar cannot go on: {_one_line(reason)}")
            allowed[:] = False  # a dead end is an answer, not an error
        allowed[list(grammar.eos)] = self.complete
        return allowed

    def advance(self, token: int) -> State:
        if not self.allows(token):
            raise refuse(token, "by the grammar here")
        if token in self._grammar.eos:
            return _GrammarState(self._grammar, self._parser, True)
        parser = self._parser.deep_copy()
        if not parser.consume_token(token):
            raise ConstraintError(f"the grammar cannot go on: {_one_line(parser.get_error())}")
        return _GrammarState(self._grammar, parser, False)


def _refused(schema: Any) -> str:
    """Why the engine refuses a schema; empty if it does not."""
    from llguidance import LLMatcher

    source = LLMatcher.grammar_from_json_schema(json.dumps(schema))
    return LLMatcher.validate_grammar(source, limits=_limits())


def _culprit(schema: Any) -> str:
    """JSON pointer to the smallest part of a schema that cannot be used on its own."""
    if not isinstance(schema, Mapping):
        return "#"
    shared = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
    path: Path = ()
    part = schema
    while True:
        for step, inner in parts(part):
            if isinstance(inner, Mapping) and _refused({**shared, **inner}):
                path, part = (*path, *step), inner
                break
        else:
            return pointer(path)


def _limits() -> Any:
    from llguidance import LLParserLimits

    return LLParserLimits(**LIMITS)


_vocabularies: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()


class _Spelled:
    """What llguidance asks of a tokenizer. The bytes of its tokens are those that all constraints
    see, added tokens that stand for text included; only special ones spell nothing."""

    def __init__(self, tokenizer: Any):
        self.eos_token_id, self.bos_token_id = tokenizer.eos_token_id, tokenizer.bos_token_id
        spelling = token_bytes(tokenizer)
        names = tokenizer.convert_ids_to_tokens(list(range(len(spelling))))
        # a byte that is not in UTF-8 marks the names of special tokens
        self.tokens = [
            piece or b"\xff" + (name or f"<nothing {token}>").encode()
            for token, (piece, name) in enumerate(zip(spelling, names, strict=True))
        ]
        self.special_token_ids = [token for token, piece in enumerate(spelling) if not piece]
        self._encode = tokenizer.encode

    def __call__(self, text: str) -> list[int]:
        return self._encode(text, add_special_tokens=False)


def _vocabulary(tokenizer: Any) -> Any:
    """llguidance's form of a tokenizer: takes a second to build, so one is kept per tokenizer."""
    if tokenizer not in _vocabularies:
        from llguidance import LLTokenizer, TokenizerWrapper

        if tokenizer.eos_token_id is None:
            raise ConstraintError(
                f"{type(tokenizer).__name__} has no end-of-sequence token, which a grammar needs"
            )
        _vocabularies[tokenizer] = LLTokenizer(TokenizerWrapper(_Spelled(tokenizer)))
    return _vocabularies[tokenizer]


def _reason(error: Exception) -> str:
    return _one_line(str(error)).removeprefix("the grammar cannot be used: ")


def _one_line(message: str) -> str:
    """Without the quoted lines of the grammar, which the library has wrapped, and without the
    engine's state, which follows an error's first paragraph."""
    if "oneOf constraints are not supported" in message:
        return OVERLAP
    lines = (line.strip() for line in message.split("\n<state>")[0].splitlines())
    kept = " ".join(line for line in lines if line and not re.match(r"\d+ \||\^+$", line))
    return kept if len(kept) <= LONGEST_REASON else kept[:LONGEST_REASON] + " ..."


PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 6}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
JSON_EXAMPLES = (
    Example(
        lambda t: Grammar.json_schema(PERSON, t),
        ['{"name": "Ada", "age": 36}'],
        ['{"name": "Ada"}', '{"name": "Ada", "age": 3.5}'],
    ),
    Example(
        lambda t: Grammar.json_schema(PERSON, t, whitespace=""),
        ['{"name":"Ada","age":36}'],
        ['{"name": "Ada","age":36}'],
    ),
)
REGEX_EXAMPLE = Example(
    lambda t: Grammar.regex(r"(the|cat| )*[0-9]{1,3}(é|東)?", t), ["the cat12東"], ["the cat"]
)
LARK_EXAMPLE = Example(
    lambda t: Grammar.lark('start: term ("+" term)*\nterm: /[0-9]+/ | "(" start ")"', t),
    ["12+(3+4)"],
    ["12+(3+4"],
)

# named by what a grammar is written in
constraint("json", examples=lambda: JSON_EXAMPLES)(Grammar.json_schema)
constraint("regex", examples=lambda: [REGEX_EXAMPLE])(Grammar.regex)
constraint("lark", examples=lambda: [LARK_EXAMPLE])(Grammar.lark)
