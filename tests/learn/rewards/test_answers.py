"""Exact and numeric answers."""

import threading

import pytest

from tokenry.core.errors import InputError
from tokenry.learn.rewards.answers import ExactAnswer, NumericAnswer, answer_text
from tokenry.learn.rewards.scoring import Rewards, Rows


def exact(text, gold):
    return ExactAnswer()(["x"], [text], [gold])[0]


def numeric(text, gold, **settings):
    return NumericAnswer(**settings)(["x"], [text], [gold])[0]


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("  plain ", "plain"),
        ("<answer>a</answer> then <answer> b </answer>", "b"),
        ("<answer>open <answer>inner</answer>", "inner"),
        ("<answer>never closed", "<answer>never closed"),
        ("<answer></answer>", ""),
    ],
)
def test_the_last_closed_answer_counts_or_the_whole_text(text, answer):
    assert answer_text(text) == answer


def test_texts_are_equal_up_to_case_and_white_space():
    assert exact("<answer>New\n YORK</answer>", "new york") == 1.0
    assert exact("new yorks", "new york") == 0.0
    assert exact("42", 42) == 1.0
    assert exact("b", ["a", "b"]) == 1.0
    assert exact("a", None) is None


@pytest.mark.parametrize(
    ("text", "gold", "value"),
    [
        ("0.5", "1/2", 1.0),
        (r"so $\frac{1}{2}$", "0.5", 1.0),
        (r"\boxed{50}", 50, 1.0),
        (r"<answer>$\frac{2}{4}$</answer>", r"\frac{1}{2}", 1.0),
        ("1,000", "1000", 1.0),
        ("0.51", "0.5", 0.0),
        ("I do not know", "7", 0.0),
        ("3", ["2", "3"], 1.0),
        ("3", None, None),
    ],
)
def test_numbers_are_equal_as_mathematics(text, gold, value):
    pytest.importorskip("math_verify")
    assert numeric(text, gold) == value


def test_numbers_are_rounded_to_so_many_digits():
    pytest.importorskip("math_verify")
    assert numeric("0.3333334", "0.3333333") == 1.0  # six digits, the default
    assert numeric("0.33334", "0.33333") == 0.0
    assert numeric("0.33334", "0.33333", digits=4) == 1.0


def test_a_gold_answer_that_is_no_mathematics_is_refused():
    pytest.importorskip("math_verify")
    with pytest.raises(InputError, match="'' is neither number nor expression"):
        numeric("7", "")


def test_it_works_in_a_thread_and_in_a_worker():
    """math-verify's own limit needs a main thread, and elsewhere gives no match without a word."""
    pytest.importorskip("math_verify")
    given = []
    thread = threading.Thread(target=lambda: given.append(numeric("0.5", "1/2")))
    thread.start()
    thread.join()
    assert given == [1.0]
    rewards = Rewards.of(["numeric_answer"], timeout=120.0)
    rows = Rows(["x"] * 2, ["0.5", "0.6"], [[1]] * 2, [0, 0], {"answer": ["1/2", "1/2"]})
    assert rewards(rows).values == [[1.0, 0.0]]
    rewards.close()


def test_without_math_verify_the_extra_is_named(monkeypatch):
    monkeypatch.setattr("tokenry.core.extras.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"math_verify: pip install 'tokenry\[rewards\]'"):
        numeric("7", "7")
