"""Grammars: what the contract does not say, the errors and the tokenizers of the real models."""

import json

import pytest

from tokenry.core.errors import ConstraintError
from tokenry.decode.constraints.grammar import Grammar


def read(constraint, tokenizer, text):
    state = constraint.initial()
    for token in tokenizer.encode(text, add_special_tokens=False):
        state = state.advance(token)
    return state


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ('{"type": "strin"}', "Invalid type: strin"),
        ('{"type":', "line 1"),
        ("[1]", "must be an object"),
        ({"properties": 3}, "properties must be an object"),
        ({"type": "integer", "minimum": 5, "maximum": 3}, "minimum"),
        (False, "schema is false"),
    ],
)
def test_a_schema_that_is_none_is_refused_with_the_reason(tiny_tokenizer, schema, reason):
    with pytest.raises(ConstraintError, match=reason):
        Grammar.json_schema(schema, tiny_tokenizer)


def test_a_feature_that_cannot_be_used_is_named_with_its_path(tiny_tokenizer):
    name = {"type": "string"}
    tags = {"type": "array", "items": {"anyOf": [name, {"not": name}]}}
    schema = {"type": "object", "properties": {"name": name, "tags": tags}}
    with pytest.raises(ConstraintError, match=r'"not".*#/properties/tags/items/anyOf/1'):
        Grammar.json_schema(schema, tiny_tokenizer)
    shared = {"$defs": {"n": {"uniqueItems": True}}, "properties": {"a": {"$ref": "#/$defs/n"}}}
    with pytest.raises(ConstraintError, match=r"uniqueItems.*#/"):
        Grammar.json_schema(shared, tiny_tokenizer)


def test_left_recursion_and_ambiguity_are_read(tiny_tokenizer):
    recursive = Grammar.lark('start: start "+" NUMBER | NUMBER\nNUMBER: /[0-9]+/', tiny_tokenizer)
    ambiguous = Grammar.lark('start: start "+" start | NUMBER\nNUMBER: /[0-9]/', tiny_tokenizer)
    for grammar in (recursive, ambiguous):
        assert read(grammar, tiny_tokenizer, "1+2+3").complete
        assert not read(grammar, tiny_tokenizer, "1+2+").complete


def test_bad_expressions_and_grammars_are_refused_with_the_reason(tiny_tokenizer):
    with pytest.raises(ConstraintError, match="unclosed group"):
        Grammar.regex("(abc", tiny_tokenizer)
    with pytest.raises(ConstraintError, match="look-around"):
        Grammar.regex("a(?=b)", tiny_tokenizer)
    with pytest.raises(ConstraintError, match='unknown name: "foo"'):
        Grammar.lark("start: foo", tiny_tokenizer)


def test_an_expression_that_nothing_matches_is_found_at_the_start(tiny_tokenizer):
    with pytest.raises(ConstraintError, match="no text"):
        Grammar.regex(r"[^\s\S]", tiny_tokenizer).initial()


def test_a_schema_reads_the_same_as_text_and_as_a_mapping(tiny_tokenizer):
    schema = {"type": "array", "items": {"type": "integer"}}
    for form in (schema, json.dumps(schema)):
        assert read(Grammar.json_schema(form, tiny_tokenizer), tiny_tokenizer, "[1, 2]").complete


def test_white_space_can_be_limited(tiny_tokenizer):
    schema = {"type": "array", "items": {"type": "integer"}}
    one = Grammar.json_schema(schema, tiny_tokenizer, whitespace=" ?")
    assert read(one, tiny_tokenizer, "[1, 2]").complete
    with pytest.raises(ConstraintError, match="not allowed"):
        read(one, tiny_tokenizer, "[1,  2]")


def test_several_tokens_may_end_a_text(tiny_tokenizer):
    grammar = Grammar.regex("a", tiny_tokenizer, eos=[0, 1])
    state = read(grammar, tiny_tokenizer, "a")
    assert state.allows(0)
    assert state.allows(1)
    assert state.mask().sum() == 2
    assert state.advance(0).finished


def test_a_tokenizer_without_an_end_is_refused(tiny_tokenizer):
    with pytest.raises(ConstraintError, match="end-of-sequence"):
        Grammar.regex("a", tiny_tokenizer, eos=[])


@pytest.mark.model
@pytest.mark.parametrize("name", ["smollm2", "gemma3"])
def test_reads_the_tokenizers_of_the_real_models(request, name):
    tokenizer = request.getfixturevalue(name).tokenizer
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string"}, "count": {"type": "integer"}},
        "required": ["city", "count"],
        "additionalProperties": False,
    }
    grammar = Grammar.json_schema(schema, tokenizer)
    assert len(grammar.initial().mask()) == len(tokenizer)
    assert read(grammar, tokenizer, '{"city": "São Paulo 東京 🙂", "count": 12}').complete
    with pytest.raises(ConstraintError):
        read(grammar, tokenizer, '{"town": 1}')
