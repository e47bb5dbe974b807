"""A chain of judged states: where they stand, what continues them, and that the mean is right."""

import pytest
import torch

from tokenry.core.errors import InputError
from tokenry.lab.toy_model import toy_model
from tokenry.learn.policy.rollouts import RolloutSettings
from tokenry.learn.policy.segments import cutpoints
from tokenry.learn.policy.sources.base import Prompts
from tokenry.learn.policy.sources.chain import Chain
from tokenry.model.score import score

END = 0


def prompts(count, ends=(END,)):
    ids = torch.tensor([[3, 1 + n % 3] for n in range(count)])
    return Prompts(ids, torch.ones_like(ids, dtype=torch.bool), ends)


def drawn(source, model, count, samples, length, ends=(END,), seed=0):
    torch.manual_seed(seed)
    return source(model, prompts(count, ends), RolloutSettings(samples, length))


@pytest.fixture(scope="module")
def model():
    return toy_model(4, 14, seed=1, width=16).eval()


def test_states_stand_at_the_cutpoints_and_their_judges_go_on_from_there(model):
    batch = drawn(Chain(judges=3, threshold=0.6, interval=2), model, 4, 5, 8)
    state, boundary = batch.column("state"), batch.column("boundary")
    own = state < 0
    assert int(own.sum()) == 20
    assert batch.group[own].tolist() == [0, 1, 2, 3] * 5
    probability = score(model, batch).need("logprob").exp()
    wanted = cutpoints(probability, batch.target, 0.6, 2)
    assert torch.equal(boundary[own] >= 0, wanted[own])
    assert (boundary[~own] == -1).all()
    known = boundary[boundary >= 0].unique()
    assert torch.equal(known, torch.arange(len(known)))
    assert torch.bincount(state[~own]).tolist() == [3] * len(known)
    inner = 0
    for number in known.tolist():
        rows, places = (boundary == number).nonzero(as_tuple=True)
        first = batch.ids[rows[0], : places[0] + 1]
        if places[0] == 1:  # the prompt's own state, shared by its completions
            assert len({int(batch.group[row]) for row in rows}) == 1
        else:
            assert len(rows) == 1
            inner += 1
        for judge in (state == number).nonzero()[:, 0]:
            assert torch.equal(batch.ids[judge, : len(first)], first)
            assert batch.group[judge] == batch.group[rows[0]]
            assert batch.target[judge, len(first) : len(first) + 1].all()
            assert batch.target[judge].sum() <= 8
    assert inner > 10
    assert int((boundary[:, 1] >= 0).sum()) > len(boundary[:, 1].unique()) - 1  # shared


def test_nodes_tell_what_was_drawn_once(model):
    """The prefix of a judge is its completion's; with ends off, lengths are known."""
    batch = drawn(Chain(judges=2, segment=3), model, 1, 2, 7, ends=())
    nodes, place = batch.column("node")[batch.target], batch.target.nonzero()[:, 1]
    draws = torch.stack([nodes, place], 1).unique(dim=0)
    # 2 completions of 7; two judges of 7 from the prompt, and for each completion of 4 and of 1
    assert len(draws) == 2 * 7 + 2 * 7 + 2 * 2 * (4 + 1)
    assert (batch.column("node")[~batch.target] == -1).all()
    for row, _, shared in ((2, 0, 0), (4, 0, 3)):
        alike = batch.column("node")[row] == batch.column("node")[0]
        assert int((alike & batch.target[row]).sum()) == shared


@pytest.mark.parametrize("inner", [False, True])
def test_the_mean_of_the_judges_is_the_value_of_the_state(model, inner):
    """P(the next token is the end) behind the prompt, and behind a first token; false alarms
    < 1e-6."""
    batch = drawn(Chain(judges=50, segment=1), model, 2, 40, 2, seed=4)
    state, boundary, place = batch.column("state"), batch.column("boundary"), 2 if inner else 1
    for text in ([3, 1], [3, 2]):
        text = [*text, 2] if inner else text
        alike = (batch.ids[:, : len(text)] == torch.tensor(text)).all(-1)
        numbers = boundary[alike, place]
        judges = torch.isin(state, numbers[numbers >= 0].unique())
        ended = (batch.ids[judges, place + 1] == END).double()
        with torch.no_grad():
            truth = float(model(torch.tensor([text])).logits[0, -1].softmax(-1)[END])
        assert len(ended) >= 50
        bound = 6 * (truth * (1 - truth) / len(ended)) ** 0.5
        assert abs(float(ended.mean()) - truth) < bound


def test_a_sure_policy_has_no_states(model):
    batch = drawn(Chain(threshold=1e-9), model, 2, 2, 4)
    assert (batch.column("state") == -1).all()
    assert (batch.column("boundary") == -1).all()
    assert len(batch.ids) == 4


def test_bad_settings_are_refused():
    assert (Chain().judges, Chain().threshold, Chain().interval) == (9, 0.9, 5)
    for wrong in ({"judges": 0}, {"threshold": 0.0}, {"interval": 0}, {"segment": 0}):
        with pytest.raises(InputError):
            Chain(**wrong)
