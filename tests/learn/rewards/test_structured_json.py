"""RL-Struct: five rewards of JSON, and what is read of broken objects."""

import json

import pytest

from tokenry.core.errors import InputError
from tokenry.learn.rewards.json_keys import extract_json, key_paths
from tokenry.learn.rewards.structured_json import WEIGHTS, StructuredJSON, word_f1

RIGHT = '{"reasoning": "x", "answer": "y"}'
NESTED = {"reasoning": "string", "answer": {"name": "string", "nutrition": "number"}}


def parts(text, gold="y", length=1, **settings):
    return StructuredJSON(**settings).components(text, length, gold)


def total(text, gold="y", length=1, **settings):
    ids = [[0] * length]
    return StructuredJSON(**settings)(["p"], [text], completion_ids=ids, answer=[gold])[0]


def test_a_perfect_object_has_all_of_it():
    assert set(parts(RIGHT).values()) == {1.0}
    assert WEIGHTS == {"struct": 1, "format": 0.5, "valid": 1, "correct": 2, "length": 0.25}
    assert total(RIGHT) == 4.75


@pytest.mark.parametrize(
    ("text", "struct", "form", "valid", "correct"),
    [
        ("", 0, 0, 0, 0),
        ("plain text", 0, 0, 0, 0),
        (f"Here: {RIGHT} ok", 1, 0.5, 1, 1),
        (f"```json\n{RIGHT}\n```", 1, 0.5, 1, 1),
        ('{"reasoning":"x","answer":"y', 1, 0, 0, 0),
        ('{"reasoning":"x","answer":"y"]}', 1, 1, 0, 0),
        ('{"reasoning":"x","answer":3}', 1, 1, 0.5, 0),
        ('{"answer":"y"}', 0.5, 1, 0.5, 1),
        ('{"reasoning":"x","answer":"y","more":1}', 0.75, 1, 1, 1),
        ('{"reasoning":"x","answer":"z","answer":"y"}', 0.75, 1, 1, 1),
        ('{"a":1,"b":1,"c":1,"d":1,"e":1,"answer":"y"}', 0, 1, 0.5, 1),
        ('{"reasoning":{"answer":"y"}}', 0.5, 1, 0.5, 0),
        ('{"reasoning":"\\"answer\\": 1"}', 0.5, 1, 0.5, 0),
        (RIGHT * 2, 1, 0.5, 1, 1),
        ('{"reasoning":"x","answer":NaN}', 1, 1, 0, 0),
    ],
)
def test_components(text, struct, form, valid, correct):
    given = parts(text)
    assert given == {
        "struct": struct, "format": form, "valid": valid, "correct": correct, "length": 1.0,
    }  # fmt: skip
    weighted = sum(WEIGHTS[name] * value for name, value in given.items())
    assert total(text) == pytest.approx(weighted, abs=1e-9)


def test_partial_credit_is_ordered():
    texts = [RIGHT, f"```{RIGHT}```", '{"reasoning":"x","answer":"y', "plain text"]
    rewards = [total(text) for text in texts]
    assert rewards == sorted(set(rewards), reverse=True)


def test_order_of_keys_and_white_space_say_nothing():
    value = {"answer": "y", "reasoning": "x"}
    for text in (json.dumps(value, indent=4), f"\n {json.dumps(value)}\t"):
        assert total(text) == 4.75


def test_length_is_free_up_to_the_longest_and_gone_at_twice_that():
    for length, value in ((0, 1), (10, 1), (15, 0.5), (20, 0), (99, 0)):
        assert parts(RIGHT, length=length, max_length=10)["length"] == value
    assert StructuredJSON().max_length == 256


def test_nested_fields_may_be_objects_or_texts_of_one():
    inner = {"name": "egg", "nutrition": 7}
    for answer in (inner, json.dumps(inner)):
        text = json.dumps({"reasoning": "x", "answer": answer})
        given = parts(text, inner, schema=NESTED)
        assert (given["struct"], given["valid"]) == (1.0, 1.0)
    broken = json.dumps({"reasoning": "x", "answer": '{"name": "egg", "nutr'})
    assert parts(broken, schema=NESTED)["valid"] == 0.5
    assert parts(broken, schema=NESTED)["struct"] == 0.75  # of four keys one is not there
    assert parts('{"reasoning": "x", "answer": {"name": ', schema=NESTED)["struct"] == 0.75


def test_content_is_an_equal_last_field_or_the_mean_f1_of_fields():
    assert parts(RIGHT, " Y ")["correct"] == 1.0
    assert parts(RIGHT, "z")["correct"] == 0.0
    gold = {"reasoning": "x z", "answer": "y", "absent": "w"}
    assert parts(RIGHT, gold)["correct"] == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert word_f1("The cat sat", "the cat") == pytest.approx(0.8)
    assert word_f1("a a", "a") == pytest.approx(2 / 3)
    assert (word_f1("", ""), word_f1("a", "")) == (1.0, 0.0)


def test_gates_of_the_hierarchy():
    wrong_type = '{"reasoning": 1, "answer": "y"}'
    assert parts(wrong_type)["correct"] == 1.0
    assert parts(wrong_type, hierarchical=True)["correct"] == 0.0
    unknown = '{"other": 1}'
    assert parts(unknown)["valid"] == 0.5
    assert parts(unknown, hierarchical=True)["valid"] == 0.0
    assert parts(RIGHT, hierarchical=True) == parts(RIGHT)


def test_without_gold_answers_content_needs_the_weight_0():
    assert total(RIGHT, None) is None
    assert total(RIGHT, None, weights={"correct": 0}) == 2.75
    call = {"completion_ids": [[1]]}
    with pytest.raises(InputError, match=r'column "answer".*"correct": 0'):
        StructuredJSON()(["p"], [RIGHT], **call)
    assert StructuredJSON(weights={"correct": 0})(["p"], [RIGHT], **call) == [2.75]


def test_settings_are_checked():
    for settings, what in (
        ({"schema": {}}, "at least one key"),
        ({"schema": {"a": "text"}}, "the type of 'a' is 'text'"),
        ({"schema": {"a": {"b": "str"}}}, "the type of 'b'"),
        ({"weights": {"valid": -1}}, r"weights\['valid'\] is -1"),
        ({"weights": {"validity": 1}}, "component of StructuredJSON is 'validity'"),
        ({"max_length": 0}, "max_length is 0"),
    ):
        with pytest.raises(InputError, match=what):
            StructuredJSON(**settings)


def test_objects_are_found_where_they_stand():
    assert extract_json('a {b} {"c": 1} d') == ({"c": 1}, False)
    assert extract_json(' {"c": {"d": []}}\n') == ({"c": {"d": []}}, True)
    assert extract_json("[1, 2]") == (None, False)
    assert extract_json('{"a":' * 3000) == (None, False)


def test_keys_have_the_path_of_what_they_stand_in():
    text = '{"a": {"b": [{"c": 1}]}, "d": "e: {", "f\\"": 1} {"g": 1}'
    assert key_paths(text) == [("a",), ("a", "b"), ("a", "b", "c"), ("d",), ('f\\"',)]
    assert key_paths('{"a": {"b": "unfinished') == [("a",), ("a", "b")]
    assert key_paths("no object") == []
