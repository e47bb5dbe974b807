"""The reference stops when it knows which values are in the evidence; errors are counted."""

import pytest
import torch

from tokenry.lab.lookup import LookupBench, wrong
from tokenry.tasks.worlds import lookup


class Answering:
    """Always answers with one token."""

    def __init__(self, token):
        self.token = token

    def __call__(self, prompts):
        logits = torch.zeros(*prompts.shape, len(lookup.WORDS))
        logits[..., self.token] = 1.0
        return type("Output", (), {"logits": logits})


@pytest.fixture
def bench(tmp_path, monkeypatch):
    monkeypatch.setenv("TOKENRY_HOME", str(tmp_path))
    return LookupBench(3, fitted=80, fit_steps=10, pairs=8, tests=40, steps=2, every=1)


def test_an_answer_is_wrong_when_it_is_not_the_evidences(bench):
    test = bench.data[1]["filler says nothing"]
    shares = [wrong(Answering(lookup.FIRST_VALUE + value), test) for value in range(6)]
    assert sum(1 - share for share in shares) == pytest.approx(1.0)
    assert wrong(Answering(0), test) == 1.0


def test_the_filler_is_a_shortcut_in_training_and_in_one_test_only(bench):
    rows, tests = bench.data

    def named(prompts, answers):  # the filler's number is the value's
        return (
            (prompts[:, 8] - answers == lookup.WORDS.index("f0") - lookup.FIRST_VALUE)
            .float()
            .mean()
        )

    assert named(*tests["filler as in training"]) > 0.8
    assert named(*tests["filler says nothing"]) < 0.4
    assert len(rows) == 8


def test_the_reference_stops_once_it_is_wrong_less_often(bench, monkeypatch):
    import tokenry.lab.lookup as module

    asked = []
    monkeypatch.setattr(module, "wrong", lambda model, test: asked.append(1) or 0.53)
    LookupBench(3, fitted=80, fit_steps=10, tests=5).reference  # noqa: B018
    assert len(asked) == 2  # after 5 and 10 steps: 0.53 is not below 0.53
    monkeypatch.setattr(module, "wrong", lambda model, test: asked.append(1) or 0.529)
    LookupBench(3, fitted=80, fit_steps=20, tests=5).reference  # noqa: B018
    assert len(asked) == 3
