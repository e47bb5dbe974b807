"""Drafting from the text itself."""

import pytest

from tokenry.core.errors import InputError
from tokenry.decode.speculation.context import TRUST, ContextNGrams, Matcher


def test_guesses_are_shares_of_what_followed_the_longest_match():
    matcher = Matcher([1, 2, 8, 1, 2, 8, 1, 2, 9, 1])
    matcher.read(2)
    place = matcher.automaton.suffix()
    assert place.length == 2
    found = {guess.token: guess for guess in matcher.guesses(place)}
    # 8 followed twice, 9 once but last; one more is added for the latest
    assert {token: guess.prob for token, guess in found.items()} == {
        8: pytest.approx(TRUST[2] * 2 / 4),
        9: pytest.approx(TRUST[2] * 2 / 4),
    }
    assert found[8].place.length == 3
    assert [guess.token for guess in matcher.guesses(found[8].place)] == [1]


def test_matches_that_are_too_short_are_not_used():
    matcher = Matcher([1, 2, 3], shortest=2)
    matcher.read(2)
    assert matcher.automaton.suffix().length == 1
    assert matcher.guesses(matcher.automaton.suffix()) == []
    with pytest.raises(InputError, match="got 0 and None"):
        ContextNGrams(shortest=0)


def test_a_text_that_copies_its_prompt_is_drafted_as_a_chain(tiny_llama):
    prompt = [5, 9, 3, 8, 2, 7, 4, 6, 1]
    draft = ContextNGrams(nodes=4).begin(tiny_llama, prompt)
    tree = draft.draft(9, room=9)  # after prompt + [9]: 9 was followed by 3 8 2 7
    assert tree.tokens == (9, 3, 8, 2, 7)
    assert tree.parents == (-1, 0, 1, 2, 3)
