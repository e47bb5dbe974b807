"""The extractive head of event posterior regularisation: what its equations say, row by row."""

import math

import pytest
import torch
from torch.nn import functional as F

from tokenry.core.errors import InputError, ShapeError
from tokenry.model.heads.event_posterior import EventPosteriorHead

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
            attend = made.question_attention[k]
            attended, _ = attend(H[None], question[None], question[None])
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
    assert all(attend.in_proj_weight.grad.abs().sum() > 0 for attend in made.question_attention)
    release = head(detach_auxiliary=True)
    auxiliary = release(states, QUESTION, SENTENCES, EVENTS, ANSWERS)[1]
    assert not auxiliary.requires_grad
    assert torch.equal(auxiliary, made(states, QUESTION, SENTENCES, EVENTS, ANSWERS)[1].detach())


def test_the_class_that_is_taught_plus_one_can_be_chosen():
    states = hidden()
    arguments = (states, QUESTION, SENTENCES, EVENTS, ANSWERS)
    zero, one = head(), head(positive_class=1)
    for left, right in ((0, 1), (1, 0)):  # exchange what the classes are read with
        one.question_attention[left].load_state_dict(zero.question_attention[right].state_dict())
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


def test_a_class_that_there_is_not_is_refused():
    with pytest.raises(InputError, match="positive_class"):
        EventPosteriorHead(8, positive_class=2)
