"""Methods by their names: how settings are read, and that every registered one is covered."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import pytest

from tokenry.app import constraints, steering
from tokenry.app.choices import chosen, listed, plain_value, reader_of
from tokenry.core.errors import InputError, UnknownNameError
from tokenry.core.registry import Role
from tokenry.decode.constraints.base import constraint
from tokenry.decode.steering.base import controller


def method(
    words: Sequence[str],
    tokenizer: Any,
    count: int = 1,
    share: float | None = None,
    exact: bool = False,
    note: str = "",
    mode: Literal["a", "b"] = "a",
    sizes: Iterable[int] = (),
    function: Callable[[str], bool] | None = None,
) -> dict[str, Any]:
    return dict(locals())


ROLE = Role("toy", None, ())
ROLE("toy")(method)


def settings(option, **options):
    return chosen(ROLE, option, provided=("tokenizer",), **options).settings


def test_a_value_is_of_the_kind_that_its_parameter_says():
    read = settings("toy:words=1,b c,count=3,share=inf,exact=true,note=7,mode=b,sizes=1,2")
    assert read == {
        "words": ["1", "b c"],
        "count": 3,
        "share": float("inf"),
        "exact": True,
        "note": "7",
        "mode": "b",
        "sizes": [1, 2],
    }


def test_a_comma_behind_which_no_setting_begins_belongs_to_the_value():
    assert settings("toy:words=a,note=x{1,9}, y=,count=2")["note"] == "x{1,9}, y="
    assert settings('toy:words=["a,b", "c"]')["words"] == ["a,b", "c"]
    assert settings("toy:words=")["words"] == [""]


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ("toy", "needs words: write toy:words=..."),
        ("toy:count=2", "needs words"),
        ("toy:words", "name=value"),
        ("toy:words=a,words=b", "gives words twice"),
        ("toy:words=a,exact=1.0e", "exact of toy is '1.0e'"),
        ("toy:words=a,tokenizer=b", "unknown setting of toy 'tokenizer'"),
        ("toy:words=a,function=b", "unknown setting of toy 'function'; known: count, exact"),
        ("tow", "did you mean toy"),
    ],
)
def test_what_cannot_be_read_is_refused(option, says):
    with pytest.raises((InputError, UnknownNameError), match=says.replace(".", "[.]")):
        settings(option)


def test_the_command_gives_what_it_has_and_no_more():
    made = chosen(ROLE, "toy:words=a", provided=("tokenizer",)).made(tokenizer=5, model=6)
    assert (made["tokenizer"], made["words"], made["count"]) == (5, ["a"], 1)


def test_readers_of_a_command_come_before_the_annotation():
    read = settings("toy:words=2,extra=3", readers={"words": int, "extra": int})
    assert read == {"words": 2, "extra": 3}


def test_a_default_stands_in_only_where_something_was_set():
    def span(low: int, high: int | None) -> None: ...

    role = Role("span", None, ())
    role("span")(span)
    defaults = {"low": 0, "high": None}
    assert chosen(role, "span:high=3", defaults=defaults).settings == {"low": 0, "high": 3}
    with pytest.raises(InputError, match="needs low or high"):
        chosen(role, "span", defaults=defaults)


def test_plain_values_and_lists():
    assert [plain_value(text) for text in ("3", "0.5", "true", "null", "-inf", "x")] == [
        3, 0.5, True, None, float("-inf"), "x",
    ]  # fmt: skip
    assert listed("8,6", plain_value) == listed("[8, 6]") == [8, 6]
    assert reader_of(dict[str, int]) is reader_of(Any) is reader_of(Sequence[Any]) is None


def test_every_registered_constraint_is_listed_with_settings_that_can_be_read(tiny_tokenizer):
    for name in constraint.names():
        assert f"\n  {name}" in constraints.LISTED, name
    for line in constraints.LISTED.splitlines()[1:]:
        option = line.strip().split(" ")[0]
        if ":" in option and "FILE" not in option:
            choice = constraints.with_one_filter([constraints.read_constraint(option)])[0]
            assert choice.made(tokenizer=tiny_tokenizer, eos=[1]).eos == {1}


def test_every_registered_controller_is_listed_or_has_its_place_named():
    for name in controller.names():
        assert (f"\n  {name}" in steering.LISTED) != (name in steering.ELSEWHERE), name
