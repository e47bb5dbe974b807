"""Token rules: exactly the texts of the rule, and no others, are accepted."""

import itertools

import pytest

from tokenry.core.errors import ConstraintError
from tokenry.lab.token_rule import OddSum, TokenRule
from tokenry.tasks.worlds.toy_lm import may_get_odd, odd_sum


def accepts(rule, text):
    state = rule.initial()
    for token in text:
        if not state.allows(token):
            return False
        state = state.advance(token)
    return state.complete


@pytest.mark.parametrize(
    ("rule", "right", "possible"),
    [
        (OddSum(), odd_sum, may_get_odd),
        (TokenRule(lambda text: 2 in text), lambda text: 2 in text, lambda text: True),
    ],
)
def test_the_accepted_texts_are_those_of_the_rule(rule, right, possible):
    for length in range(4):
        for text in itertools.product(range(1, 4), repeat=length):
            prefixes = all(possible(text[:at]) for at in range(1, length + 1))
            assert accepts(rule, text) == (right(text) and prefixes)


def test_masks_say_what_is_allowed_and_nothing_follows_the_end():
    rule = TokenRule(lambda text: text == (1,), lambda text: text == (1,), vocab_size=3, end=2)
    start = rule.initial()
    assert start.mask().tolist() == [False, True, False]
    behind = start.advance(1)
    assert behind.complete
    assert behind.mask().tolist() == [False, False, True]
    ended = behind.advance(2)
    assert ended.finished
    assert not ended.complete
    assert not any(ended.mask())
    with pytest.raises(ConstraintError, match=r"token 0 is not allowed after \[1\]"):
        behind.advance(0)
    assert not start.allows(3)
