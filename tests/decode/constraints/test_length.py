"""Length: when a text may end and when it must."""

import pytest
import torch

from tokenry.core.errors import ConstraintError, InputError
from tokenry.decode.constraints.length import Length
from tokenry.decode.samplers.smc import smc
from tokenry.tasks.worlds.toy_lm import ToyLM, ToyState

VOCABULARY, EOS = range(4), [0]


def test_the_end_is_refused_before_the_minimum_and_demanded_at_the_maximum():
    state = Length(2, 3, VOCABULARY, EOS).initial()
    assert state.mask().tolist() == [False, True, True, True]
    state = state.advance(1).advance(2)
    assert state.mask().tolist() == [True, True, True, True]
    state = state.advance(3)
    assert state.mask().tolist() == [True, False, False, False]
    with pytest.raises(ConstraintError, match="after 3 tokens of 2 to 3"):
        state.advance(1)


def test_without_a_maximum_states_of_enough_tokens_are_one():
    state = Length(1, None, VOCABULARY, EOS).initial().advance(1)
    assert state == state.advance(2).advance(3)
    assert state.complete


def test_no_text_at_all_is_a_text_of_length_zero():
    state = Length(0, 0, VOCABULARY, EOS).initial()
    assert state.mask().tolist() == [True, False, False, False]


@pytest.mark.parametrize(("low", "high"), [(-1, 3), (4, 3)])
def test_impossible_lengths_are_refused(low, high):
    with pytest.raises((ConstraintError, InputError), match="minimum"):
        Length(low, high, VOCABULARY, EOS)


def test_the_evidence_is_the_probability_of_the_length():
    model = ToyLM(seed=2)
    truth = model.conditional(lambda text: 2 <= len(text) <= 3, 4)[1]
    start = ToyState.start(model, torch.zeros(1, 0, dtype=torch.long))
    samples = smc(start, Length(2, 3, VOCABULARY, EOS), particles=1500, max_new_tokens=4)
    assert samples.log_evidence == pytest.approx(truth, abs=0.17)
    assert all(2 <= len(ids) <= 3 for ids in samples.ids)
