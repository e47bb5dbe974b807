"""Positions of texts: a prefix, thinking, a guess; and the text without the guessed token."""

import pytest
import torch

from tokenry.core.batch import TokenBatch
from tokenry.core.errors import InputError
from tokenry.lab.toy_model import toy_model
from tokenry.learn.policy.rollouts import RolloutSettings
from tokenry.learn.policy.sources.base import Prompts
from tokenry.learn.policy.sources.positions import Positions

STOP, END, ASK = 4, 0, 5
TEXTS = [([3], [1, 2, 1, 2]), ([3, 3], [2, 1, 1]), ([3], [1])]


def prompts(progress=0.0, texts=TEXTS):
    asked = TokenBatch.from_ids([p for p, _ in texts], padding_side="left")
    given = TokenBatch.from_ids(
        [p + c for p, c in texts], [[False] * len(p) + [True] * len(c) for p, c in texts]
    )
    return Prompts(asked.ids, asked.attention, (END,), 0, given, progress)


@pytest.fixture(scope="module")
def model():
    return toy_model(6, 20, seed=1, width=16).eval()


def drawn(model, source, samples=40, length=9, seed=0, **given):
    torch.manual_seed(seed)
    return source(model, prompts(**given), RolloutSettings(samples, length))


def test_responses_and_texts_part_the_tokens(model):
    source = Positions(STOP, lambda budget: [ASK] * (budget > 2), start=3)
    batch = drawn(model, source)
    sampled = batch.column("sampled") > 0
    assert int(sampled.sum()) == 120
    assert batch.group[~sampled].tolist() == [0, 1, 2]
    assert (batch.column("budget") == 3).all()
    guessed = matched = 0
    for number, (prompt, text) in enumerate(TEXTS):
        row = int((~sampled).nonzero()[number])
        assert batch.ids[row][batch.attention[row]].tolist()[-len(text) :] == text
        read = batch.target[row][batch.attention[row]].tolist()[-len(text) :]
        assert read.count(False) == (len(text) > 1)
        at = read.index(False) if len(text) > 1 else 0
        for response in (sampled & (batch.group == number)).nonzero()[:, 0]:
            real = batch.attention[response]
            ids = batch.ids[response][real].tolist()
            own = batch.target[response][real].tolist()
            first = own.index(True)
            assert all(own[first:])
            assert ids[:first] == [*prompt, *text[:at], ASK]
            assert len(ids) - len(prompt) <= 9
            said = ids[first:]
            thought = said.index(STOP) if STOP in said[:-1] else len(said)
            if STOP in said[:-1]:
                guessed += 1
                assert said.index(STOP) == len(said) - 2  # one guess and no more
                right = said[-1] == text[at]
            else:
                right = False
                assert said[-1] == END or len(ids) - len(prompt) == 8
            matched += right
            assert batch.column("thinking")[response] == thought
            assert batch.column("match")[response] == right
    assert guessed > 30
    assert 0 < matched < guessed
    assert (batch.column("match")[~sampled] == 0).all()


def test_guesses_follow_the_policy(model):
    """Behind "3 [end of thinking]", whatever was thought before it is known (6 errors)."""
    batch = drawn(model, Positions(STOP), samples=4000, length=5, texts=[([3], [1, 2])], seed=2)
    behind = (batch.column("thinking") == 0) & (batch.target.sum(-1) == 2)
    behind &= (batch.column("sampled") > 0) & (batch.ids[:, 1] == STOP)
    guesses = batch.ids[behind, 2]
    with torch.no_grad():
        p = model(torch.tensor([[3, STOP]])).logits[0, -1].softmax(-1)
    share = torch.bincount(guesses, minlength=6) / len(guesses)
    assert len(guesses) > 300
    assert ((share - p).abs() < 6 * (p * (1 - p) / len(guesses)).sqrt() + 1e-3).all()


def test_the_budget_shrinks_with_the_progress_and_late_positions_want_space(model):
    source = Positions(STOP, start=100)
    assert drawn(model, source, 2, progress=0.5).column("budget").unique().tolist() == [44]
    long = [([3], [1, 2] * 10)]
    for seed in range(5):
        batch = drawn(model, source, 1, 6, seed, texts=long)
        read = batch.target[1][batch.attention[1]].tolist()[1:]
        assert len(read) == 6
        assert read.index(False) <= 4  # a thought's end and a guess have to fit
    with pytest.raises(InputError, match="no space"):
        drawn(model, source, 1, 1)


def test_texts_and_settings_that_are_none_are_refused(model):
    bare = Prompts(torch.ones(1, 1).long(), torch.ones(1, 1).bool())
    with pytest.raises(InputError, match="completion"):
        Positions(STOP)(model, bare, RolloutSettings(1, 4))
    for wrong in ({"start": 0}, {"gamma": 0.0}, {"first": (1.0, 1.0, 0.0)}, {"t1": 0.9}):
        with pytest.raises(InputError):
            Positions(STOP, **wrong)
