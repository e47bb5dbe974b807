import pytest

from tokenry.core.errors import InputError
from tokenry.tasks.rules import Predicate, Rule

BORN = Predicate("born", ("X", "Y"), "{X} was born in {Y}.")
IN = Predicate("in", ("Y", "Z"), "{Y} lies in {Z}.")
FROM = Predicate("from", ("X", "Z"), "{X} comes from {Z}.")
TYPES = {"X": "a person", "Y": "a city", "Z": "a country"}
RULE = Rule((BORN, IN), FROM, TYPES)
ADA = {"X": "Ada", "Y": "London", "Z": "England"}


def test_variables_are_filled_from_the_subject_along_the_chain():
    assert RULE.order == ("X", "Y", "Z")
    assert Rule((IN, BORN), FROM, TYPES).order == ("X", "Y", "Z")
    assert Rule((BORN, IN), Predicate("home", ("Z", "X"), "{Z} {X}"), TYPES).order == (
        "Z",
        "Y",
        "X",
    )


def test_what_is_asked_of_a_value_has_no_other_open_variable():
    def names(variable, **bound):
        return [predicate.name for predicate in RULE.about(variable, bound)]

    assert names("X") == ["a person"]
    assert names("Y", X="Ada") == ["a city", "born"]
    assert names("Y") == ["a city"]
    assert names("Z", X="Ada", Y="London") == ["a country", "in"]
    assert RULE.about("X", {})[0].text(ADA) == "Ada is a person."


def test_texts_are_of_the_bound_premises():
    assert RULE.text({"X": "Ada"}) == "Ada is a person."
    assert RULE.text({"X": "Ada", "Y": "London"}) == "Ada was born in London."
    assert RULE.text(ADA) == "Ada was born in London. London lies in England."
    assert RULE.statement(ADA).endswith("England. Therefore: Ada comes from England.")
    negative = Rule((BORN, IN), FROM, TYPES, positive=False)
    assert "it is not so that: Ada comes" in negative.statement(ADA)


def test_rules_that_cannot_be_filled_are_refused():
    with pytest.raises(InputError, match="lacks Y"):
        Predicate("p", ("X", "Y"), "{X} is")
    with pytest.raises(InputError, match="types are of"):
        Rule((BORN, IN), FROM, {"X": "a person", "Y": "a city"})
    alone = Predicate("is", ("Z",), "{Z}")
    with pytest.raises(InputError, match=r"links \['Y', 'Z'\] to X"):
        Rule((alone, IN), Predicate("is", ("X",), "{X}"), TYPES)
