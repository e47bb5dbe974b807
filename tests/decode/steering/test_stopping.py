"""Stopping control: closed forms of the hazard, the floor and the expected length."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenry.core.errors import InputError, VocabularyError
from tokenry.decode.steering.stopping import StoppingControl, expected_length, ramp, stop_log_odds

IDS = torch.zeros(3, 5, dtype=torch.long)
STOP = [0, 4]


def logits(seed=0, rows=3, size=7):
    return 2 * torch.randn(rows, size, generator=torch.Generator().manual_seed(seed))


def hazard(scores, stop=STOP):
    return scores.double().softmax(-1)[:, stop].sum(-1)


@given(st.integers(0, 999), st.floats(0.2, 5), st.floats(-5, 5), st.floats(0, 0.99))
def test_only_the_hazard_changes_and_as_stated(seed, temperature, bias, floor):
    scores = logits(seed)
    control = StoppingControl(STOP, temperature=temperature, bias=bias, floor=floor)
    steered = control(IDS, scores)
    s = hazard(scores)
    wanted = ((s.log() - (-s).log1p()) / temperature + bias).sigmoid().clamp_min(floor)
    torch.testing.assert_close(hazard(steered), wanted, atol=1e-5, rtol=1e-5)
    others = [1, 2, 3, 5, 6]
    for group in (others, STOP):  # relative probabilities within either group
        torch.testing.assert_close(
            steered[:, group].log_softmax(-1), scores[:, group].log_softmax(-1)
        )
    assert torch.equal(steered[:, others], scores[:, others])


def test_the_floor_holds_at_the_temperature_of_sampling():
    scores = logits() - torch.tensor([8.0, 0, 0, 0, 8.0, 0, 0])
    steered = StoppingControl(STOP, floor=0.3, sampling_temperature=0.5)(IDS, scores)
    torch.testing.assert_close(hazard(steered / 0.5), torch.full((3,), 0.3, dtype=torch.float64))


def test_a_hazard_above_the_floor_is_left_alone():
    scores = logits()
    floor = float(hazard(scores).min()) * 0.999
    assert torch.equal(StoppingControl(STOP, floor=floor)(IDS, scores), scores)


def test_the_schedule_counts_generated_tokens():
    scores = logits() - torch.tensor([9.0, 0, 0, 0, 9.0, 0, 0])
    control = StoppingControl(STOP, floor=0.5, start=2, prompt_length=4)
    assert torch.equal(control(IDS, scores), scores)  # one token generated
    longer = torch.zeros(3, 6, dtype=torch.long)
    torch.testing.assert_close(
        hazard(control(longer, scores)), torch.full((3,), 0.5, dtype=torch.float64)
    )


def test_a_floor_of_one_ends_the_text_and_only_that():
    scores = logits()
    steered = StoppingControl(STOP, floor=1.0)(IDS, scores)
    assert torch.equal(steered[:, STOP], scores[:, STOP])
    assert steered[:, [1, 2, 3, 5, 6]].isneginf().all()


def test_what_cannot_stop_or_must_stop_is_left_alone():
    scores = logits()
    scores[0, STOP] = -torch.inf
    scores[1, [1, 2, 3, 5, 6]] = -torch.inf
    for floor in (0.999, 1.0):
        steered = StoppingControl(STOP, floor=floor)(IDS, scores)
        assert torch.equal(steered[:2], scores[:2])
        assert not torch.equal(steered[2], scores[2])


def test_the_log_odds_survive_tiny_and_huge_hazards():
    z = torch.tensor([[0.0, 300.0], [300.0, 0.0]], dtype=torch.float64)
    assert stop_log_odds(z, torch.tensor([0])).tolist() == [-300.0, 300.0]


@given(st.floats(0.01, 1.0))
def test_the_expected_length_of_a_geometric_text(h):
    assert expected_length([h]) == pytest.approx((1 - h) / h, abs=1e-12)
    assert expected_length([0.0] * 7 + [h]) == pytest.approx(7 + (1 - h) / h)
    assert StoppingControl([0], floor=h, start=7, prompt_length=1).bound() == pytest.approx(
        7 + (1 - h) / h
    )


def test_the_expected_length_of_any_hazards_against_its_definition():
    hazards = [0.1, 0.5, 0.0, 0.9, 1.0]
    alive, mean = 1.0, 0.0
    for n, h in enumerate(hazards):
        mean += n * alive * h
        alive *= 1 - h
    assert expected_length(hazards) == pytest.approx(mean)
    assert expected_length([0.5, 0.0]) == math.inf
    assert expected_length([1.0, 0.0]) == 0.0


@settings(max_examples=10)
@given(st.integers(0, 99), st.floats(0.05, 1.0), st.integers(0, 6))
def test_the_bound_holds_for_any_model(seed, floor, start):
    """Steered hazards of a model whose stop is very unlikely; its length by the exact sum."""
    generator = torch.Generator().manual_seed(seed)
    control = StoppingControl([0], floor=floor, start=start, prompt_length=0)
    hazards = []
    for n in range(150):
        scores = torch.randn(1, 4, generator=generator) * 3 - torch.tensor([6.0, 0, 0, 0])
        steered = control(torch.zeros(1, n, dtype=torch.long), scores)
        hazards.append(float(hazard(steered, [0])))
    assert expected_length([*hazards, floor]) <= control.bound() * (1 + 1e-4)


def test_a_ramp_ends_every_text():
    floor = ramp(2, 6)
    assert [floor(n) for n in (0, 2, 4, 6, 9)] == [0.0, 0.0, 0.5, 1.0, 1.0]
    control = StoppingControl([0], floor=floor, prompt_length=0)
    assert control.bound() == pytest.approx(expected_length([0, 0, 0, 0.25, 0.5, 0.75, 1.0]))
    with pytest.raises(InputError, match="end is 3"):
        ramp(3, 3)


def test_texts_of_a_real_generation_end_in_time(tiny_llama):
    ids = torch.randint(2, 60, (4, 3), generator=torch.Generator().manual_seed(0))
    last = StoppingControl([1], floor=ramp(0, 5), prompt_length=3)
    out = tiny_llama.generate(ids, logits_processor=[last], do_sample=True, max_new_tokens=30)
    assert out.shape[1] <= 3 + 5 + 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stop": []}, "stop must"),
        ({"stop": [0], "temperature": 0.0}, "temperature is 0.0"),
        ({"stop": [0], "floor": 1.5}, r"\[0, 1\]"),
        ({"stop": [0], "floor": 0.5, "start": 3}, "prompt_length"),
        ({"stop": [0], "floor": 0.5, "start": -3}, "start is -3"),
    ],
)
def test_impossible_settings_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        StoppingControl(**options)


def test_a_stop_outside_the_vocabulary_is_an_error():
    with pytest.raises(VocabularyError, match="7"):
        StoppingControl([7], bias=1.0)(IDS, logits())
    with pytest.raises(InputError, match="in \\[0, 1\\]"):
        StoppingControl([0], floor=lambda n: 2.0, prompt_length=0)(IDS, logits())
