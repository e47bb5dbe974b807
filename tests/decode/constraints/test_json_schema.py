"""JSON schemas: nothing that a schema forbids is written; what cannot be exact is refused."""

import json
import random
from datetime import date

import jsonschema
import pytest

from tokenry.core.errors import ConstraintError
from tokenry.decode.constraints.grammar import Grammar
from tokenry.decode.constraints.json_schema import read_json, told_apart
from tokenry.text.vocabulary import token_bytes


def accepts(schema, text, tokenizer, **options):
    """Whether a text, written byte by byte, is one of the constraint's."""
    pieces = {piece: token for token, piece in enumerate(token_bytes(tokenizer))}
    state = Grammar.json_schema(schema, tokenizer, **options).initial()
    for byte in text.encode():
        token = pieces[bytes([byte])]
        if not state.allows(token):
            return False
        state = state.advance(token)
    return state.complete


def nested(levels):
    schema = {"type": "integer"}
    for _ in range(levels):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    return schema


LIST = {"type": "array", "items": {"$ref": "#/$defs/list"}, "minItems": 1}
LOOP = {"type": "object", "properties": {"next": {"$ref": "#/$defs/loop"}}, "required": ["next"]}
CHAIN = {f"n{i}": {"type": "array", "items": {"$ref": f"#/$defs/n{i + 1}"}} for i in range(1500)}


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"const": 9007199254740993}, r"9007199254740993 has no exact.*#/const"),
        ({"properties": {"a": {"enum": [1, {"b": [2**53 + 1]}]}}}, "#/properties/a/enum/1/b/0"),
        ({"const": -(2**63)}, "#/const"),  # on which the engine breaks down
        ('{"const": 0.10000000000000000001}', "0.10000000000000000001 has no exact"),
        ('{"enum": [1e400]}', "#/enum/0"),
        ('{"const": NaN}', "NaN is no JSON number"),
        ('{"type": "integer", "type": "string"}', "'type' stands twice"),
        ({"items": {"minimum": 2**53 + 1}}, r"2\^53.*minimum.*#/items/minimum"),
        ({"type": "integer", "exclusiveMaximum": -(2**60)}, "#/exclusiveMaximum"),
        ({"type": "object", "minProperties": 2}, "written twice.*#/minProperties"),
        ({"patternProperties": {"^x": {}}, "minProperties": 3}, "twice"),
        ({"type": "integer", "multipleOf": 999983}, "multipleOf is 999983.*#/multipleOf"),
        ({"allOf": [{"multipleOf": 9973}, {"multipleOf": 9967}]}, "99,400,891.*#/allOf/0"),
        ({"multipleOf": 0}, "above 0"),
        (nested(300), "more than 96 levels.*defs"),
        ("[" * 100_000, "levels deep"),
        (json.dumps({"enum": ["x" * (1 << 20)]}), "characters"),
        ({"$defs": CHAIN, "$ref": "#/$defs/n0"}, "1,000 schemas"),
        ({"type": "object", "properties": {"n": {"$ref": "#"}}, "required": ["n"]}, "finite.*at #"),
        ({"$ref": "#"}, "no finite text"),
        ({"$defs": {"list": LIST}, "properties": {"x": {"$ref": "#/$defs/list"}}}, "#/.defs/list"),
        ({"$defs": {"loop": LOOP}, "anyOf": [{"$ref": "#/$defs/loop"}, {}]}, "#/.defs/loop"),
        ({"properties": {"d": {"format": "regex"}}}, "'regex' is not.*#/properties/d/format"),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "overlap.*const.*anyOf.*at #"),
        ({"const": "a\x01"}, "escape"),
        ({"type": "object", "required": ["\x01"]}, "escape"),
    ],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
def test_what_cannot_be_exact_is_refused_in_one_line_with_its_path(tiny_tokenizer, schema, said):
    with pytest.raises(ConstraintError, match=said) as caught:
        Grammar.json_schema(schema, tiny_tokenizer).initial()
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_a_schema_deeper_than_python_recurses_is_refused(tiny_tokenizer):
    with pytest.raises(ConstraintError, match=r"more than 96 levels.*defs"):
        Grammar.json_schema(nested(1200), tiny_tokenizer)


TAGS = [
    {"type": "object", "properties": {"k": {"const": n}, "v": {}}, "required": ["k"]}
    for n in (1, 2)
]


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({"const": 2**60}, [str(2**60)], [str(2**60 + 1)]),
        ({"const": 1e300}, ["1" + "0" * 300], ["1"]),
        ({"type": "integer", "maximum": 2**63 - 1}, ["5", str(2**53)], [str(2**53 + 1)]),
        ({"type": "number", "minimum": -1e300, "maximum": 0.1}, ["-5", "0.1"], ["0.11"]),
        ({"type": "number", "multipleOf": 0.01}, ["0.05"], ["0.055"]),
        ({"type": "object", "minProperties": 1}, ['{"a":1}'], ["{}"]),
        (
            {"type": "object", "minProperties": 2, "required": ["a"]},
            ['{"a":1,"b":2}'],
            ['{"a":1}', '{"a":1,"a":2}', '{"a":1,"\\u0061":2}'],
        ),
        # the name of a property, escaped, is no free key
        (
            {"type": "object", "properties": {"a": {"type": "integer"}}},
            ['{"a":1}', '{"b":"x"}', '{"\\n":1}'],
            ['{"\\u0061":"x"}', '{"a":1,"\\u0061":"x"}'],
        ),
        (
            {"patternProperties": {"^x": {"type": "integer"}}, "type": "object"},
            ['{"x":1}', '{"y":"a"}'],
            ['{"x":"a"}', '{"\\u0078":"a"}'],
        ),
        ({"oneOf": TAGS}, ['{"k":1,"v":0}', '{"k":2}'], ['{"k":3}']),
        ({"oneOf": [{"const": 1}, {"const": True}]}, ["1", "true"], ["2"]),
        ({"type": "array", "items": {"$ref": "#"}}, ["[]", "[[],[]]"], ["[1]"]),
        (
            {"$defs": {"list": {"anyOf": [{"type": "null"}, LIST]}}, "$ref": "#/$defs/list"},
            ["null", "[null]", "[[null],null]"],
            ["[]"],
        ),
        (
            {"type": "object", "properties": {f"k{i}": {"type": "integer"} for i in range(520)}},
            ["{}", '{"k3":1,"k519":2}'],
            ['{"k519":2,"k3":1}', '{"k3":"a"}'],
        ),
        (nested(30), ['{"a":' * 30 + "1" + "}" * 30], ["1"]),
    ],
    ids=lambda value: str(value)[:40],
)
def test_texts_of_a_schema_are_read_and_others_are_not(tiny_tokenizer, schema, good, bad):
    for text in good:
        assert accepts(schema, text, tiny_tokenizer), text
    for text in bad:
        assert not accepts(schema, text, tiny_tokenizer), text


FORMATS = {
    "date": (["2024-02-29", "2000-02-29"], ["2023-02-30", "1900-02-29", "2023-04-31"]),
    "time": (["10:00:00Z", "23:59:59.5+01:00"], ["24:00:00Z", "10:00:60Z", "10:00:00"]),
    "date-time": (["2023-02-28T10:59:50Z"], ["2023-02-30T10:00:00Z", "2023-02-28T10:59:60Z"]),
    "json-pointer": (["", "/a/b~0/~1"], ["a", "/~2"]),
    "relative-json-pointer": (["0", "1/a", "2#"], ["01", "-1"]),
    "uri-reference": (
        ["", "a/b?c=d#e", "//x.y/z", "http://u@a.b:80/c", "../a", "#f", "%20"],
        ["a b", "1:a", "http://[", "\\a", "%2", "#a#b"],
    ),
    "iri": (["http://é.fr/ü?ö#ä"], ["é", "http://a b"]),
    "iri-reference": (["é/ü", ""], ["é b"]),
    "uri-template": (["http://x/{id}/{?q,r*}", "{/a:3}", ""], ["{", "{a", "a b", "{}", "{a:0}"]),
    "idn-email": (["jürgen@müller.de", "a.b@c.d"], ["a", "@b", "a@", "a@-b.c", "a..b@c"]),
    "idn-hostname": (["müller.de", "例え.jp"], ["-a", ".a", "a..b", "a-"]),
    "uuid": (["12345678-1234-1234-1234-123456789abc"], ["1234"]),
    "ipv4": (["127.0.0.1"], ["256.0.0.1"]),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMATS)
def test_formats_of_the_standard_are_checked(tiny_tokenizer, name):
    good, bad = FORMATS[name]
    schema = {"type": "string", "format": name}
    for texts, expected in ((good, True), (bad, False)):
        for text in texts:
            written = json.dumps(text, ensure_ascii=False)
            assert accepts(schema, written, tiny_tokenizer) is expected, text


def test_a_format_and_a_pattern_hold_both(tiny_tokenizer):
    schema = {"type": "string", "format": "date", "pattern": "^2024"}
    assert accepts(schema, '"2024-02-29"', tiny_tokenizer)
    assert not accepts(schema, '"2023-02-28"', tiny_tokenizer)
    assert not accepts(schema, '"2024-02-30"', tiny_tokenizer)


def test_lenient_reading_leaves_formats_out_with_a_warning_that_names_them(tiny_tokenizer):
    schema = {"properties": {"p": {"type": "string", "format": "regex"}, "q": {"format": "colour"}}}
    with pytest.warns(UserWarning, match="'regex' at #/properties/p/format.*'colour' at"):
        assert accepts(schema, '{"p":"(a"}', tiny_tokenizer, lenient=True)


def test_the_schema_that_was_given_is_not_changed(tiny_tokenizer):
    schema = {"$defs": {"a": {"format": "date", "maximum": 2**60}}, "oneOf": TAGS, "default": {}}
    before = json.dumps(schema)
    Grammar.json_schema(schema, tiny_tokenizer)
    assert json.dumps(schema) == before


def test_one_of_becomes_any_of_only_where_nothing_satisfies_two():
    text, whole, real = ({"type": name} for name in ("string", "integer", "number"))
    free = {"properties": {"k": {"const": 1}}, "required": ["k"]}  # any number satisfies it too
    for options, apart in [
        ([text, whole], True),
        ([whole, real], False),
        ([{"const": 1}, {"const": 1.0}], False),
        ([{"const": [1]}, {"const": [1.0]}], False),
        ([{"const": [1]}, {"const": "a"}], True),
        (TAGS, True),
        ([TAGS[0], free], False),
        ([TAGS[0], {"type": "object"}], False),
        ([{"type": ["string", "null"]}, {"type": ["null", "integer"]}], False),
        ([True, text], False),
        ([False, text], True),
    ]:
        assert ("anyOf" in told_apart({"oneOf": options})) is apart, options


def test_numbers_are_read_without_loss():
    found = read_json(
        "[0.1, 1e2, 12345678901234567890, 0.1000000000000000055511151231257827, 1e-400]"
    )
    assert found[:3] == [0.1, 100.0, 12345678901234567890]
    assert [type(number).__name__ for number in found] == [
        "float",
        "float",
        "int",
        "Decimal",
        "Decimal",
    ]


RANDOM = [
    {"type": "object", "properties": {"a": {"type": "integer", "minimum": -3, "maximum": 1200}}},
    {"type": "object", "properties": {"a": {"type": "boolean"}}, "minProperties": 1,
     "additionalProperties": {"type": "integer", "multipleOf": 7}, "required": ["a"]},
    {"type": "object", "patternProperties": {"^[ab]+$": {"type": "null"}}, "maxProperties": 2,
     "additionalProperties": {"type": "string", "maxLength": 3}},
    {"type": "array", "prefixItems": [{"type": "number", "maximum": 0.35}], "minItems": 1,
     "items": {"enum": [1, "é\n", None, [2], {"k": 0.5}]}, "maxItems": 4},
    {"type": "string", "format": "date-time"},
    {"type": "string", "pattern": "\\d\\w[^a]", "minLength": 4, "maxLength": 5},
    {"oneOf": TAGS},
    {"type": "number", "exclusiveMinimum": -0.25, "exclusiveMaximum": 13.5},
]  # fmt: skip


@pytest.mark.parametrize("schema", RANDOM, ids=lambda schema: str(schema)[:50])
def test_random_texts_satisfy_the_schema_by_an_independent_reading(tiny_tokenizer, schema):
    """Random walks, which prefer the ends of things, so that they come to one."""
    spelling = token_bytes(tiny_tokenizer)
    validator = jsonschema.Draft202012Validator(schema)
    grammar = Grammar.json_schema(schema, tiny_tokenizer, whitespace=" ?")
    chance, ended = random.Random(0), 0
    closing = [token for token, piece in enumerate(spelling) if piece in (b'"', b"}", b"]", b":")]
    for _ in range(12):
        state, data = grammar.initial(), b""
        for _ in range(60):
            if state.complete and chance.random() < 0.5:
                break
            allowed = [t for t in state.mask().nonzero()[:, 0].tolist() if t not in grammar.eos]
            if not allowed:
                break
            ends = [token for token in closing if token in allowed]
            token = chance.choice(ends if ends and chance.random() < 0.3 else allowed)
            state, data = state.advance(token), data + spelling[token]
        if state.complete:
            ended += 1
            value = json.loads(data)
            validator.validate(value)
            if schema.get("format") == "date-time":
                date.fromisoformat(value[:10])
    assert ended > 2
