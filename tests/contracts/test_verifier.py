"""Every verifier: a number in [0, 1] for any text whatever, 1 for what is as it should be."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from role_cases import cases
from tokenry.tasks.verifiers.base import verifier
from tokenry.tasks.verifiers.programs import ConstraintSet

EACH = pytest.mark.parametrize("made", cases(verifier))
TEXTS = st.text(max_size=20) | st.sampled_from(["{}", '{"a": 1}', "a, b", "1 + 1 = 2", "[[", "\0"])


def arguments(scope, texts):
    """What a verifier of this scope is called with."""
    return {"response": texts[:1], "pair": texts[:2], "group": (texts[::2], texts[1::2])}[scope]


@EACH
def test_its_examples_are_judged_as_they_say(made):
    example = made()
    assert example.accepts
    assert example.refuses
    assert all(example.verifier(*texts) == 1.0 for texts in example.accepts)
    assert all(example.verifier(*texts) < 1.0 for texts in example.refuses)


@EACH
@given(texts=st.lists(TEXTS, min_size=4, max_size=4))
def test_any_text_has_a_value_and_always_the_same(made, texts):
    judge = made().verifier
    value = judge(*arguments(judge.scope, texts))
    assert 0 <= value <= 1
    assert made().verifier(*arguments(judge.scope, texts)) == value


@EACH
def test_alone_in_a_set_its_value_is_the_rate(made):
    example = made()
    for texts in (*example.accepts, *example.refuses):
        prompts, responses = {
            "response": lambda y: (["x"], [y]),
            "pair": lambda x, y: ([x], [y]),
            "group": lambda x, y: (x, y),
        }[example.verifier.scope](*texts)
        rates = ConstraintSet.of(example.verifier).csr(prompts, responses, [0] * len(prompts))
        assert rates == [example.verifier(*texts)] * len(responses)
