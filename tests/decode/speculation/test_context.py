"""Drafting from the text itself."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenry.core.errors import InputError
from tokenry.decode.speculation.context import GOES_ON, TRUST, WENT_ON, ContextNGrams, Matcher


def test_guesses_are_shares_of_what_followed_the_longest_match():
    matcher = Matcher([1, 2, 8, 1, 2, 8, 1, 2, 9, 1])
    matcher.read([2])
    cursor = matcher.cursor
    assert cursor.match.length == 2
    found = matcher.rated(cursor)
    # 8 followed twice, 9 once but last; one more is added for the latest
    assert {token: prob for token, (prob, _) in found.items()} == {
        8: pytest.approx(TRUST[2] * 2 / 4),
        9: pytest.approx(TRUST[2] * 2 / 4),
    }
    behind = matcher.after(cursor, 8)
    assert behind.match.length == 3
    assert list(matcher.rated(behind)) == [1]


def test_matches_that_are_too_short_are_not_used():
    matcher = Matcher([1, 2, 3], shortest=2)
    matcher.read([2])
    assert matcher.cursor.match.length == 1
    assert matcher.rated(matcher.cursor) == {}
    with pytest.raises(InputError, match=r"ContextNGrams\.shortest is 0"):
        ContextNGrams(shortest=0)


def test_a_text_that_copies_its_prompt_is_drafted_as_a_chain(tiny_llama):
    prompt = [5, 9, 3, 8, 2, 7, 4, 6, 1]
    draft = ContextNGrams(nodes=4).begin(tiny_llama, prompt)
    tree = draft.draft(9, budget=9)  # after prompt + [9]: 9 was followed by 3 8 2 7
    assert tree.tokens == (9, 3, 8, 2, 7)
    assert tree.parents == (-1, 0, 1, 2, 3)


def test_a_replaced_token_does_not_end_the_copying():
    """After 1 2 3 came 4 5 6; now another token stands for 4, and 5 6 are guessed behind it."""
    matcher = Matcher([1, 2, 3, 4, 5, 6, 0, 1, 2, 3])
    matcher.read([9])
    assert matcher.cursor.match.length == 0
    ((token, (prob, kind)),) = matcher.rated(matcher.cursor).items()
    share = 2 / 2  # one occurrence, one more for the latest
    assert (token, prob) == (5, pytest.approx(GOES_ON[3] * share))
    ((token, (prob, second)),) = matcher.rated(matcher.after(matcher.cursor, 5)).items()
    # 5 alone is a match of one token, and the replaced one was right once: both say 6
    both = 1 - (1 - TRUST[1] * share) * (1 - WENT_ON * share)
    assert (token, prob) == (6, pytest.approx(both))
    assert second != kind
    matcher.read([5, 6])
    assert matcher.cursor.replaced.right == 2
    matcher.read([8])  # not 0: it was no replacement after all
    assert matcher.cursor.replaced is None or matcher.cursor.replaced.right == 0


def test_a_match_of_one_token_does_not_go_on_behind_another_token():
    matcher = Matcher([1, 2, 3, 7, 2])
    matcher.read([9])
    assert matcher.cursor.replaced is None
    assert matcher.rated(matcher.cursor) == {}


def test_the_likeliest_follower_is_the_one_that_is_replaced():
    text = [1, 2, 3, 4, 1, 2, 3, 4, 1, 2, 5, 6, 1, 2]
    matcher = Matcher(text)
    matcher.read([9])
    assert list(matcher.rated(matcher.cursor)) == [4]


@given(st.lists(st.integers(0, 3), min_size=1, max_size=30), st.integers(1, 29))
def test_reading_a_text_leads_where_the_path_does(text, split):
    """A path that is looked up on a text that stands still matches what reading it on would, or
    less: the automaton does not know the path's own tokens yet."""
    matcher, path = Matcher(text[:split]), text[split:]
    cursor = matcher.cursor
    for token in path:
        assert all(0 < prob < 1 for prob, _ in matcher.rated(cursor).values())
        cursor = matcher.after(cursor, token)
    matcher.read(path)
    assert matcher.cursor.match.length >= cursor.match.length
