"""Grammars: what the contract does not say, the errors and the tokenizers of the real models."""

import copy
import json

import pytest

from tokenry.core.errors import ConstraintError
from tokenry.decode.constraints import grammar as module
from tokenry.decode.constraints.grammar import Grammar
from tokenry.text.vocabulary import token_bytes


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


def test_what_the_engine_gives_up_on_is_one_line(tiny_tokenizer, monkeypatch):
    monkeypatch.setattr(module, "LIMITS", {**module.LIMITS, "max_items_in_row": 50})
    schema = {"type": "object", "properties": {f"k{i}": {"type": "null"} for i in range(520)}}
    with pytest.raises(ConstraintError) as caught:
        read(Grammar.json_schema(schema, tiny_tokenizer), tiny_tokenizer, '{"k1":').mask()
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_added_tokens_that_spell_text_are_allowed_and_special_ones_are_not(tiny_tokenizer):
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.add_tokens(["<table>", "null,"])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<tool>"]})
    table, null, tool = tokenizer.convert_tokens_to_ids(["<table>", "null,", "<tool>"])
    state = read(Grammar.regex("(<table>|<tool>|null)+x", tokenizer), tokenizer, "null")
    for token, allowed in ((table, True), (null, False), (tool, False)):
        assert state.allows(token) is allowed
        assert bool(state.mask()[token]) is allowed
    assert read(Grammar.regex("a<table>", tokenizer), tokenizer, "a").advance(table).complete
    grammar = Grammar.json_schema({"type": "array", "items": {"type": "null"}}, tokenizer)
    assert read(grammar, tokenizer, "[").advance(null).mask()[tokenizer.encode("null")[0]]


@pytest.mark.model
def test_every_token_of_gemma_that_spells_an_allowed_text_is_allowed(gemma3):
    tokenizer = gemma3.tokenizer
    spelling = token_bytes(tokenizer)
    mask = Grammar.regex(r"(?s:.)*", tokenizer).initial().mask()
    whole = [token for token, piece in enumerate(spelling) if piece and is_utf8(piece)]
    assert mask[whole].all()
    assert tokenizer.convert_tokens_to_ids("<table>") in whole
    assert not mask[[t for t, piece in enumerate(spelling) if not piece and t not in (1,)]].any()
    state = Grammar.regex("a<table>b", tokenizer).initial().advance(spelling.index(b"a"))
    begins = {
        token for token, piece in enumerate(spelling) if piece and b"<table>b".startswith(piece)
    }
    assert set(state.mask().nonzero()[:, 0].tolist()) == begins
    assert all(map(state.allows, begins))


def is_utf8(piece):
    try:
        return bool(piece.decode())
    except UnicodeDecodeError:
        return False


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
