"""The suffix automaton against searching the sequence itself."""

from hypothesis import given
from hypothesis import strategies as st

from tokenry.text.suffix_automaton import Match, SuffixAutomaton

SEQUENCES = st.lists(st.integers(0, 2), min_size=1, max_size=24)


def occurrences(text, part):
    """Positions after each occurrence of `part`."""
    return [end for end in range(len(part), len(text) + 1) if text[end - len(part) : end] == part]


def earlier_suffix(text):
    """The longest suffix that also occurs before the end."""
    for length in range(len(text) - 1, 0, -1):
        if len(occurrences(text, text[-length:])) > 1:
            return text[-length:]
    return []


def followers(text, part):
    found = {}
    for end in occurrences(text, part):
        if end < len(text):
            found[text[end]] = found.get(text[end], 0) + 1
    return found


@given(SEQUENCES)
def test_the_suffix_and_what_followed_it_are_right_after_every_token(text):
    automaton = SuffixAutomaton()
    for end, token in enumerate(text, start=1):
        automaton.extend([token])
        suffix = earlier_suffix(text[:end])
        match = automaton.suffix()
        assert match.length == len(suffix)
        assert dict(automaton.following(match)) == followers(text[:end], suffix)


@given(SEQUENCES, st.lists(st.integers(0, 3), max_size=8))
def test_following_a_path_keeps_the_longest_match(text, path):
    automaton = SuffixAutomaton(text)
    match, read = Match(0, 0), []
    for token in path:
        match = automaton.follow(match, token)
        read.append(token)
        longest = next(
            n for n in range(len(read), -1, -1) if occurrences(text, read[len(read) - n :])
        )
        assert match.length == longest
        if longest:
            ends = occurrences(text, read[len(read) - longest :])
            assert automaton.count[match.state] == len(ends)
            assert automaton.latest[match.state] == ends[-1]


@given(SEQUENCES)
def test_it_has_at_most_two_states_per_token(text):
    assert len(SuffixAutomaton(text).next) <= max(2, 2 * len(text))
