"""Additions: right results pass, and exactly the beginnings of right additions may go on."""

import pytest

from tokenry.tasks.verifiers.additions import is_right_addition, may_become_right


@pytest.mark.parametrize("text", ["1 + 1 = 2", "12 + 30 = 42", "999 + 999 = 1998"])
def test_right_additions_and_all_their_beginnings(text):
    assert is_right_addition(text)
    assert all(may_become_right(text[:length]) for length in range(len(text) + 1))
    assert not any(is_right_addition(text[:length]) for length in range(len(text)))


@pytest.mark.parametrize("text", ["1 + 1 = 3", "12 + 30 = 420", "1+1 = 2", "1 + 1 = 2.", "1000 +"])
def test_what_never_becomes_right(text):
    assert not is_right_addition(text)
    assert not may_become_right(text)
