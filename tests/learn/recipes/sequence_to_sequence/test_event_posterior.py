"""Event posterior regularisation: closed forms, brute force and gradients."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from tokenry.core.errors import InputError, ShapeError
from tokenry.learn.recipes.sequence_to_sequence.event_posterior import (
    EventLikelihood,
    EventPosteriorHead,
    event_token_weights,
    event_unlikelihood,
)


def batch(seed=0, N=2, T=3, V=5):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(N, T, V, generator=generator) * 2
    weights = torch.rand(N, V, generator=generator).softmax(-1)
    mask = torch.ones(N, T, dtype=torch.bool)
    mask[1, 2:] = False
    return logits, mask, weights


def test_without_preference_the_weights_are_uniform_and_the_sum_is_over_everything():
    weights = event_token_weights(5, [1], [2, 3], w_answer=1.0, w_nonanswer=1.0)
    assert torch.allclose(weights, torch.full((5,), 0.2))
    logits, mask, _ = batch()
    loss = event_unlikelihood(logits, mask, weights.expand(2, -1), selective=False)
    expected = -(1 - logits[mask].softmax(-1)).log().sum() / 5
    assert torch.allclose(loss, expected, rtol=1e-5)


def test_the_worked_example():
    logits = torch.tensor([[[0.8, 0.2]]]).log()
    loss = event_unlikelihood(logits, torch.ones(1, 1), torch.full((1, 2), 0.5))
    assert float(loss) == pytest.approx(-0.5 * math.log(0.2), abs=1e-6)
    assert float(loss) == pytest.approx(0.80472, abs=1e-5)


@given(st.integers(0, 50), st.booleans())
def test_is_the_written_sum(seed, selective):
    logits, mask, weights = batch(seed)
    expected = 0.0
    for n in range(2):
        for t in range(3):
            p = logits[n, t].softmax(-1).tolist()
            for v in range(5):
                if mask[n, t] and (not selective or p[v] == max(p)):
                    expected -= float(weights[n, v]) * math.log(1 - p[v])
    loss = event_unlikelihood(logits, mask, weights, selective=selective)
    assert float(loss) == pytest.approx(expected, rel=1e-4)


@given(
    st.lists(st.integers(0, 19), max_size=8, unique=True),
    st.integers(0, 8),
    st.floats(0.1, 3),
    st.floats(0.1, 3),
)
def test_weights_add_up_to_one_for_distinct_ids(ids, cut, w_answer, w_nonanswer):
    weights = event_token_weights(
        20, ids[:cut], ids[cut:], w_answer=w_answer, w_nonanswer=w_nonanswer
    )
    assert float(weights.sum()) == pytest.approx(1.0, abs=1e-5)
    rest = [v for v in range(20) if v not in ids]
    for group, factor in ((ids[:cut], w_answer), (ids[cut:], w_nonanswer)):
        for v in group:
            assert float(weights[v] / weights[rest[0]]) == pytest.approx(factor, rel=1e-4)


def test_ids_given_twice_count_twice():
    weights = event_token_weights(10, [], [4, 4], w_nonanswer=1.5)
    assert float(weights[4]) == pytest.approx(2.25 / 11, abs=1e-6)
    assert float(weights[0]) == pytest.approx(1 / 11, abs=1e-6)


def test_an_emitted_event_costs_less_among_the_answers():
    logits = torch.zeros(1, 1, 6)
    logits[0, 0, 3] = 2.0
    as_answer = event_token_weights(6, [3], [4])[None]
    as_other = event_token_weights(6, [4], [3])[None]
    mask = torch.ones(1, 1)
    losses = [event_unlikelihood(logits, mask, w) for w in (as_answer, as_other)]
    assert losses[0] < losses[1]
    assert float(losses[1] / losses[0]) == pytest.approx(3.0, rel=1e-4)


@pytest.mark.parametrize("selective", [True, False])
def test_gradient_is_zero_where_masked_and_that_of_finite_differences_elsewhere(selective):
    logits, mask, weights = batch(3)
    exact = logits.clone().requires_grad_()
    event_unlikelihood(exact, mask, weights, selective=selective).backward()
    assert not exact.grad[~mask].any()
    assert exact.grad[mask].abs().sum() > 0
    step = torch.zeros_like(logits)
    step[0, 1, 2] = 1e-2
    high, low = (
        event_unlikelihood(logits + s * step, mask, weights, selective=selective) for s in (1, -1)
    )
    assert float(exact.grad[0, 1, 2]) == pytest.approx(float(high - low) / 2e-2, abs=2e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_is_finite_as_a_probability_goes_to_one(dtype):
    logits = torch.tensor([[[200.0, 0.0, 0.0]]], dtype=dtype, requires_grad=True)
    loss = event_unlikelihood(logits, torch.ones(1, 1), torch.full((1, 3), 1 / 3))
    loss.backward()
    assert loss.item() == pytest.approx(-math.log(1e-8) / 3, rel=1e-3)
    assert logits.grad.isfinite().all()


def test_the_objective_is_the_cross_entropy_plus_a_share():
    logits, mask, weights = batch(1)
    target = torch.randint(5, (2, 3), generator=torch.Generator().manual_seed(0))
    loss = EventLikelihood(weight=0.3)(logits, target, mask, weights)
    likelihood = F.cross_entropy(logits[mask], target[mask])
    assert torch.allclose(loss, likelihood + 0.3 * event_unlikelihood(logits, mask, weights) / 2)
    assert torch.equal(EventLikelihood(weight=0.0)(logits, target, mask, weights), likelihood)


def test_wrong_input_is_named():
    logits, mask, weights = batch()
    with pytest.raises(ShapeError, match=r"\[2, 3\].*\[2, 5\].*\[2, 4\]"):
        event_unlikelihood(logits, mask, weights[:, :4])
    with pytest.raises(InputError, match=r"0\.\.4, not \[5\]"):
        event_token_weights(5, [5], [])
    with pytest.raises(InputError, match="w_answer is"):
        event_token_weights(5, [1], [], w_answer=0.0)
    with pytest.raises(InputError, match="positive_class"):
        EventPosteriorHead(8, positive_class=2)


SENTENCES = torch.tensor([[-1, -1, 0, 0, 0, 1, 1, 2, -1], [-1, 0, 0, 0, 1, 1, 1, 1, 1]])
QUESTION = torch.tensor([[True, True] + [False] * 7, [True] + [False] * 8])
EVENTS = torch.tensor(
    [[False, False, True, False, True, True, False, False, False], [False, True] + [False] * 7]
)
ANSWERS = torch.tensor([[False, False, True, False, False] + [False] * 4, [False] * 9])


def head(**options):
    torch.manual_seed(0)
    return EventPosteriorHead(8, dropout=0.0, **options)


def hidden():
    return torch.randn(2, 9, 8, generator=torch.Generator().manual_seed(4))


def written_head(made, states):
    """The equations, sentence by sentence: logits, u, and the two auxiliary means."""
    logits, factors, event_errors, sentence_errors = [], [], [], []
    for n in range(2):
        H = states[n]
        question = H[QUESTION[n]]
        aware = []
        for k in range(2):
            reader = made.readers[k]
            attended, _ = reader(H[None], question[None], question[None])
            aware.append(torch.tanh(made.relevance[k](attended[0]))[:, 0])
        m = made.event_score(H)[:, 0]
        row = made.tagger(H).clone()
        for s in range(int(SENTENCES[n].max()) + 1):
            inside = [e for e in range(9) if SENTENCES[n, e] == s and EVENTS[n, e]]
            u = [sum([m[e] * aware[k][e] for e in inside]) / (1 + len(inside)) for k in (0, 1)]
            tokens = SENTENCES[n] == s
            row[tokens] = row[tokens] * torch.stack([torch.as_tensor(v) for v in u]).exp()
            y = 1.0 if any(ANSWERS[n, e] for e in inside) else -1.0
            sentence_errors.append((u[0] - y) ** 2 + (u[1] + y) ** 2)
            event_errors += [(m[e] - (1.0 if ANSWERS[n, e] else -1.0)) ** 2 for e in inside]
            factors.append(u)
        logits.append(row)
    auxiliary = 0.1 * sum(event_errors) / len(event_errors)
    auxiliary = auxiliary + 0.1 * sum(sentence_errors) / len(sentence_errors)
    return torch.stack(logits), auxiliary


def test_the_head_is_what_the_equations_say():
    made, states = head(), hidden()
    logits, auxiliary = made(states, QUESTION, SENTENCES, EVENTS, ANSWERS)
    expected, expected_auxiliary = written_head(made, states)
    assert torch.allclose(logits, expected, atol=1e-6)
    assert torch.allclose(auxiliary, expected_auxiliary, atol=1e-6)


def test_without_events_the_logits_are_the_taggers():
    made, states = head(), hidden()
    logits, auxiliary = made(states, QUESTION, SENTENCES, torch.zeros_like(EVENTS))
    assert torch.equal(logits, made.tagger(states))
    assert auxiliary == 0
    nowhere = torch.full_like(SENTENCES, -1)
    assert torch.equal(made(states, QUESTION, nowhere, EVENTS)[0], made.tagger(states))


def test_a_factor_of_log_two_doubles_its_class(monkeypatch):
    made, states = head(), hidden()

    def fixed(*_):
        factors = torch.zeros(2, 4, 2)
        factors[0, 1, 1] = math.log(2)
        return factors

    monkeypatch.setattr(made, "sentence_factors", fixed)
    logits, plain = made(states, QUESTION, SENTENCES, EVENTS)[0], made.tagger(states)
    assert torch.allclose(logits[0, 5:7, 1], 2 * plain[0, 5:7, 1])
    logits[0, 5:7, 1] = plain[0, 5:7, 1]
    assert torch.equal(logits, plain)


def test_auxiliary_losses_teach_unless_they_are_detached():
    states = hidden()
    made = head()
    made(states, QUESTION, SENTENCES, EVENTS, ANSWERS)[1].backward()
    assert made.event_score.weight.grad.abs().sum() > 0
    assert all(reader.in_proj_weight.grad.abs().sum() > 0 for reader in made.readers)
    release = head(detach_auxiliary=True)
    auxiliary = release(states, QUESTION, SENTENCES, EVENTS, ANSWERS)[1]
    assert not auxiliary.requires_grad
    assert torch.equal(auxiliary, made(states, QUESTION, SENTENCES, EVENTS, ANSWERS)[1].detach())


def test_the_class_that_is_taught_plus_one_can_be_chosen():
    states = hidden()
    arguments = (states, QUESTION, SENTENCES, EVENTS, ANSWERS)
    zero, one = head(), head(positive_class=1)
    for left, right in ((0, 1), (1, 0)):  # exchange what the classes are read with
        one.readers[left].load_state_dict(zero.readers[right].state_dict())
        one.relevance[left].load_state_dict(zero.relevance[right].state_dict())
    assert torch.allclose(zero(*arguments)[1], one(*arguments)[1], atol=1e-6)


def test_rows_do_not_depend_on_their_neighbours_or_on_padding():
    made, states = head(), hidden()
    both = made(states, QUESTION, SENTENCES, EVENTS)[0]
    alone = made(states[1:], QUESTION[1:], SENTENCES[1:], EVENTS[1:])[0]
    assert torch.allclose(both[1:], alone, atol=1e-6)
    padded = [F.pad(x, (2, 0)) for x in (QUESTION, EVENTS)]
    left = made(
        F.pad(states, (0, 0, 2, 0), value=3.0),
        padded[0],
        F.pad(SENTENCES, (2, 0), value=-1),
        padded[1],
    )[0]
    assert torch.allclose(left[:, 2:], both, atol=1e-6)


def test_a_head_without_a_question_is_refused():
    with pytest.raises(InputError, match="question"):
        head()(hidden(), torch.zeros_like(QUESTION), SENTENCES, EVENTS)
    with pytest.raises(ShapeError, match=r"sentence_ids must be \[2, 9\]"):
        head()(hidden(), QUESTION, SENTENCES[:, :3], EVENTS)
