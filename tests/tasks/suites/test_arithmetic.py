import pytest

from tokenry.core.errors import InputError
from tokenry.tasks.suites.arithmetic import Arithmetic, calculated, written


def test_worked_values():
    assert calculated([57, 68], "+") == 125
    assert calculated([7, 12, 5], "-") == -10
    assert calculated([7, 12, 5], "-", 97) == 87  # in 0 .. m - 1, also of a negative value
    assert calculated([12, 12, 12], "*", 5) == 3
    assert [written(120, True), written(-45, True), written(-45), written(0, True)] == [
        "021",
        "-54",
        "-45",
        "0",
    ]


@pytest.mark.parametrize("operation", ["+", "-", "*"])
@pytest.mark.parametrize("modulus", [None, 7, 1000])
@pytest.mark.parametrize("backwards", ["none", "answer", "all"])
def test_the_prompt_as_a_reader_takes_it_has_the_answer(operation, modulus, backwards):
    made = Arithmetic(4, 3, (operation,), modulus, backwards)
    for item in made.items(30, 5):
        shown = item.request.prompt.removeprefix("Calculate ").partition(".")[0]
        inner, _, tail = shown.partition(" mod ")
        assert (tail == "") == (modulus is None)
        texts = inner.strip("()").split(f" {operation} ")
        assert [len(text) for text in texts] == [4, 4, 4]
        turn = slice(None, None, -1 if backwards == "all" else 1)
        value = eval(operation.join(text[turn].lstrip("0") or "0" for text in texts))
        value = value % int(tail) if tail else value
        digits = str(abs(value))[:: 1 if backwards == "none" else -1]
        assert item.solution == ("-" if value < 0 else "") + digits
        assert made.score(item, f" {item.solution}\n") == {"right": 1.0, "well_formed": 1.0}


def test_near_misses_are_wrong_and_nothing_raises():
    made = Arithmetic()
    for item in made.items(40, 1):
        right = item.solution
        last = str((int(right[-1]) + 1) % 10)
        misses = [right[:-1] + last, right + "0", "0" + right, "+" + right, right + ".0"]
        misses += [f"= {right}", f"{right}.", f"{right} {right}", f"The result is {right}", "-0"]
        misses += ["", "-", "None", "9" * 9000, "\u0661\u0662", "\x00"]
        misses += [right[1:] if right.startswith("-") else "-" + right]
        misses += [right[::-1]] if right != right[::-1] else []
        assert [made.score(item, miss)["right"] for miss in misses] == [0.0] * len(misses)
    assert made.score(item, "\u0661\u0662")["well_formed"] == 0.0  # digits of another script
    assert made.score(item, "9" * 9000)["well_formed"] == 1.0


def test_backwards_the_forward_number_is_wrong():
    made = Arithmetic(backwards="answer")
    for item in made.items(40, 1):
        forward = item.solution.replace("-", "")[::-1]
        forward = "-" * item.solution.startswith("-") + forward
        assert made.score(item, forward)["right"] == float(forward == item.solution)


def test_single_digits_have_a_hundred_sums_and_no_more():
    made = Arithmetic(1, operations=("+",))
    assert {tuple(item.about["numbers"]) for item in made.items(100, 0)} == {
        (a, b) for a in range(10) for b in range(10)
    }
    with pytest.raises(InputError, match="101 distinct"):
        made.items(101, 0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"digits": 0},
        {"terms": 1},
        {"modulus": 1},
        {"operations": ()},
        {"operations": ("/",)},
        {"backwards": "both"},
    ],
)
def test_settings_are_checked(wrong):
    with pytest.raises(InputError):
        Arithmetic(**wrong)
