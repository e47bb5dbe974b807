import json

import pytest

from tokenry.core.errors import InputError
from tokenry.tasks.suites.json_extraction import JsonExtraction
from tokenry.tasks.task import Generate, Item
from tokenry.tasks.worlds.people import FIELDS, schema_of

FACTS = {
    "name": "Ada",
    "city": "Lima",
    "job": "baker",
    "age": 31,
    "height": 1.75,
    "member": True,
    "languages": ["Dutch", "Hindi"],
}
ITEM = Item(Generate("x"), json.dumps(FACTS), {"facts": FACTS})


def scores(answer):
    return tuple(JsonExtraction().score(ITEM, answer).values())


def test_the_solution_has_all_scores_in_any_layout_and_order():
    assert scores(json.dumps(FACTS)) == (1, 1, 1, 1)
    assert scores(f"\n{json.dumps(FACTS, indent=2)} ") == (1, 1, 1, 1)
    assert scores(json.dumps(dict(reversed(FACTS.items())))) == (1, 1, 1, 1)


@pytest.mark.parametrize(
    ("change", "schema"),
    [
        ({"age": 32}, 1),
        ({"age": 31.0}, 1),  # an integer of JSON schema, but written otherwise
        ({"age": "31"}, 0),
        ({"age": True}, 0),
        ({"age": 31.5}, 0),
        ({"age": None}, 0),
        ({"height": 1.76}, 1),
        ({"height": 2}, 1),
        ({"height": True}, 0),
        ({"member": False}, 1),
        ({"member": 1}, 0),
        ({"city": "lima"}, 1),
        ({"languages": ["Hindi", "Dutch"]}, 1),
        ({"languages": ["Dutch"]}, 1),
        ({"languages": ["Dutch", 1]}, 0),
        ({"languages": "Dutch and Hindi"}, 0),
        ({"name": "Bela"}, 1),
    ],
)
def test_one_wrong_value_costs_one_field_in_seven(change, schema):
    assert scores(json.dumps(FACTS | change)) == (0, pytest.approx(6 / 7), schema, 1)


def test_keys_too_many_and_too_few():
    assert scores(json.dumps(FACTS | {"pets": 0})) == (0, pytest.approx(7 / 8), 0, 1)
    short = {key: value for key, value in FACTS.items() if key != "job"}
    assert scores(json.dumps(short)) == (0, pytest.approx(6 / 7), 0, 1)
    assert scores("{}") == (0, 0, 0, 1)


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "null",
        "[]",
        "31",
        "{",
        "[" * 100_000,
        '{"age": ' + "9" * 9_000 + "}",
        '{"age": NaN}',
        '{"age": 30, "age": 31}',
        f"```json\n{json.dumps(FACTS)}\n```",
        f"Here it is: {json.dumps(FACTS)}",
        json.dumps(FACTS) + ".",
        json.dumps(FACTS).replace('"', "'"),
    ],
    ids=range(13),
)
def test_what_is_no_json_object_scores_nothing_and_does_not_raise(answer):
    assert scores(answer) == (0, 0, 0, 0)


def test_the_schema_score_is_that_of_a_schema_validator():
    jsonschema = pytest.importorskip("jsonschema")
    validator = jsonschema.Draft202012Validator(schema_of(list(FIELDS)))
    values = [0, 1.5, 31.0, True, None, "a", ["a"], [1], [], {}]
    for key in FACTS:
        for value in values:
            answer = FACTS | {key: value}
            assert scores(json.dumps(answer))[2] == float(validator.is_valid(answer)), answer


@pytest.mark.parametrize("others", [0, 1, 3])
def test_the_text_says_every_fact_and_the_schema_stands_in_the_prompt(others):
    made = JsonExtraction(others=others)
    for item in made.items(20, 4):
        text, asked = item.request.prompt.split("\n")[:2]
        facts = dict(item.about["facts"])
        name = facts.pop("name")
        assert f"about {name} as" in asked
        assert json.loads(asked.partition("else: ")[2]) == schema_of(list(FIELDS))
        assert all(FIELDS[key].say(name, value) in text for key, value in facts.items())
        assert text.count(".") - text.count("metres") == 6 * (others + 1)  # 1.75 has a point
        assert made.score(item, item.solution)["exact"] == 1.0


def test_the_other_person_is_wrong():
    made = JsonExtraction(("job",))
    item = made.items(1, 0)[0]
    name, job = item.about["facts"].values()
    text = item.request.prompt.partition("\n")[0]
    other = next(one for one in text.split(". ") if name not in one)
    wrong = {"name": other.split()[0], "job": other.rstrip(".").split()[-1]}
    assert made.score(item, json.dumps(wrong))["exact"] == 0.0
    assert (name, job) != tuple(wrong.values())


@pytest.mark.parametrize(
    "wrong", [{"fields": ()}, {"fields": ("age", "age")}, {"fields": ("shoe",)}, {"others": -1}]
)
def test_settings_are_checked(wrong):
    with pytest.raises(InputError):
        JsonExtraction(**wrong)
