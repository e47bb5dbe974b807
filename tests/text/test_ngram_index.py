from hypothesis import given
from hypothesis import strategies as st

from tokenry.text.ngram_index import NGramPositions

TOKENS = st.lists(st.integers(0, 2), max_size=20)


@given(TOKENS, st.lists(st.integers(0, 2), max_size=4))
def test_places_are_those_that_searching_finds(text, ahead):
    lengths = (1, 3, 2)
    index = NGramPositions(text[:5], lengths)
    index.extend(text[5:])
    end = [*text[-3:], *ahead]
    expected = []
    for length in (3, 2, 1):
        gram = end[-length:]
        if len(gram) == length:
            starts = range(len(text) - length)
            expected = [at + length for at in starts if text[at : at + length] == gram]
        if expected:
            break
    assert index.after(ahead) == expected
