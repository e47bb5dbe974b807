"""Rates belong to their answers, groups to their prompts."""

import pytest
import torch

from tokenry.core.scores import Scores
from tokenry.lab.rated_answers import RatedAnswers, answered
from tokenry.learn.objective import Loss, Objective
from tokenry.tasks.worlds.entity_typing import END, EntityTyping


@pytest.fixture
def bench(tmp_path, monkeypatch):
    monkeypatch.setenv("TOKENRY_HOME", str(tmp_path))
    small = {"prompts": 10, "samples": 3, "batch_size": 4, "held_out": 12}
    return RatedAnswers(EntityTyping(4), tune_steps=2, steps=1, every=1, **small)


def test_every_answer_has_its_rate_and_shuffled_ones_are_the_same_numbers(bench):
    batch, rates, shuffled = bench.answers
    assert len(batch.ids) == 30
    own = [ids[target].tolist() for ids, target in zip(batch.ids, batch.target, strict=True)]
    assert torch.equal(bench.task.csr(own), rates)
    assert all(END not in answer[:-1] for answer in own)
    assert torch.equal(rates.sort().values, shuffled.sort().values)
    assert torch.equal(batch.ids[:10, :7], batch.ids[10:20, :7])


@pytest.mark.parametrize("shuffled", [False, True])
def test_a_batch_has_all_answers_of_its_prompts(bench, shuffled):
    seen = []

    class Watching(Objective):
        needs = ("policy.logprob",)
        unit = "row"

        def __call__(self, batch, policy: Scores, reference=None, **_):
            seen.append(batch)
            return Loss(policy.logprob.sum())

    points = bench.train(Watching(), shuffled=shuffled, learning_rate=1e-9)
    whole, *rates = bench.answers
    rows = torch.randint(10, (4,), generator=torch.Generator().manual_seed(4))
    rows = torch.cat([rows, 10 + rows, 20 + rows])
    assert torch.equal(seen[0].ids, whole.ids[rows])
    assert torch.equal(seen[0].column("csr"), rates[shuffled][rows])
    assert seen[0].group.tolist() == [0, 1, 2, 3] * 3
    assert [point.step for point in points] == [0, 1]


def test_a_point_is_of_sampled_answers_to_held_out_prompts(bench):
    point = bench.measure(7, bench.tuned)
    prompts, truth = bench._data[2]
    drawn = answered(bench.tuned, prompts, torch.Generator().manual_seed(1))
    right = sum(len({*a} & {*b} - {END}) for a, b in zip(drawn, truth, strict=True))
    given = sum(len({*a} - {END}) for a in drawn)
    assert point.step == 7
    assert point.csr == pytest.approx(float(bench.task.csr(drawn).mean()))
    assert point.f1 == pytest.approx(2 * right / (given + 24))
