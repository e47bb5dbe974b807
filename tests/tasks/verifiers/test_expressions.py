from fractions import Fraction
from random import Random

import pytest

from tokenry.tasks.verifiers.expressions import parsed, reaches


def value(text):
    expression = parsed(text)
    assert expression is not None
    return expression.value()


def test_worked_values():
    assert value("2 + 3 * 4") == 14
    assert value("(2 + 3) * 4") == 20
    assert value("20 - 5 - 3") == 12
    assert value("16 / 4 / 2") == 2
    assert value("16 / (4 / 2)") == 8
    assert value("2 - 3 + 4") == 3
    assert value("7 / 2") == Fraction(7, 2)
    assert value("8/(3-8/3)") == 24
    assert value("5") == value("((5))") == 5
    assert value("1 / (2 - 2)") is None


def test_random_expressions_have_the_value_that_python_gives_them():
    random = Random(0)

    def grown(depth):
        if depth == 0 or random.random() < 0.2:
            return str(random.randint(0, 12))
        text = f"{grown(depth - 1)} {random.choice('+-*/')} {grown(depth - 1)}"
        return f"({text})" if random.random() < 0.5 else text

    for _ in range(400):
        text = grown(4)
        exact = "".join(f"Fraction({part})" if part.isdigit() else part for part in pieces(text))
        try:
            wanted = eval(exact)
        except ZeroDivisionError:
            wanted = None
        assert value(text) == wanted, text


def pieces(text):
    return text.replace("(", "( ").replace(")", " )").split()


BROKEN = """
|+|1 +|+ 1|-1|1 2|(1|1)|()|1 ** 2|1 // 2|1 = 1|x|1 + (2|(1 + 2) 3|3 (1 + 2)|1.0|1e3|1,000|1 × 2
|1\t+ 2| )( |1 + + 1|__import__('os')|\u0661|{1}|[1]|1;|"""


@pytest.mark.parametrize("text", [*BROKEN.split("|"), "1\n+ 2"])
def test_what_is_no_expression_is_none(text):
    assert parsed(text) is None
    assert reaches([1], 1)(text) == 0.0


def test_depth_and_huge_numbers_cost_nothing():
    assert parsed("(" * 50_000) is None
    deep = "(" * 50_000 + "1" + ")" * 50_000
    assert value(deep) == 1
    assert reaches([1], 1)("9" * 9_000) == 0.0  # never turned into a number


def test_numbers_are_used_exactly_or_at_most_as_often_as_given():
    exactly, at_most = reaches([3, 3, 4], 12), reaches([3, 3, 4], 12, "at_most")
    assert exactly("3 * 4 * 3 / 3") == at_most("3 * 4 * 3 / 3") == 0.0  # a third 3
    assert (exactly("3 * 4"), at_most("3 * 4")) == (0.0, 1.0)
    assert reaches([3, 3, 4], 13)("3 * 3 + 4") == 1.0
    assert reaches([3, 4], 12)("03 * 4") == 0.0
    assert reaches([1, 2], 12)("12") == 0.0  # digits of two numbers make no third
    with pytest.raises(ValueError, match="use is 'twice'"):
        reaches([1], 1, "twice")
