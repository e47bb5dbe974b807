"""The bench of the preference world: the same data for all, measured as it says."""

import pytest
import torch

from tokenry.lab.preference_world import (
    PreferenceBench,
    WorldPoint,
    frontier_gap,
    mean_rewards,
    searched,
    train_in_world,
    world_model,
)
from tokenry.lab.toy_training import NegativeLogLikelihood
from tokenry.learn.preference.dpo import DPO
from tokenry.model.score import score
from tokenry.tasks.worlds.preference import Pairs, PreferenceWorld, opposed

WORLD = PreferenceWorld(seed=1, vocabulary=8, length=4)
SIZE = {"fit_steps": 1, "drawn": 32, "steps": 2, "batch_size": 8, "measure_every": 1, "samples": 16}


@pytest.fixture
def bench(tmp_path, monkeypatch):
    monkeypatch.setenv("TOKENRY_HOME", str(tmp_path))
    return PreferenceBench(WORLD, **SIZE)


def test_kl_is_that_of_neutral_tokens_and_of_the_others(bench):
    policy, points = bench.train(DPO(0.1), learning_rate=1e-2)
    assert [point.step for point in points] == [0, 1, 2]
    assert points[0].kl == pytest.approx(0, abs=1e-6)
    drawn = bench.draw(policy, seed=12345)
    batch = WORLD.sequences_batch(drawn)
    with torch.no_grad():
        own, other = (
            m(batch.ids[:, :-1]).logits.log_softmax(-1) for m in (policy, bench.reference)
        )
    kl = (own.exp() * (own - other)).sum(-1)
    assert points[-1].kl == pytest.approx(float(kl.sum(-1).mean()), rel=1e-4)
    neutral = (kl * (WORLD.token_reward[drawn] == 0)).sum(-1).mean()
    assert points[-1].neutral_kl == pytest.approx(float(neutral), rel=1e-4)
    assert points[-1].reward == pytest.approx(float(WORLD.reward(drawn).mean()))


def test_log_ratios_are_of_the_tokens(bench):
    policy = world_model(WORLD, seed=9)
    drawn = bench.held_out(5)
    batch = WORLD.sequences_batch(drawn)
    expected = score(policy, batch).logprob - score(bench.reference, batch).logprob
    torch.testing.assert_close(bench.log_ratio(policy, drawn), expected[:, 1:])


def test_chosen_only_does_not_see_the_rejected():
    reference = world_model(WORLD, seed=2)
    pairs = WORLD.pairs(16, torch.Generator().manual_seed(0))
    runs = [
        train_in_world(
            NegativeLogLikelihood(), WORLD, reference, given, steps=2, batch_size=8, samples=4,
            learning_rate=1e-2, chosen_only=True,
        )[0]
        for given in (pairs, Pairs(pairs.chosen, pairs.rejected.flip(0)), pairs)
    ]  # fmt: skip
    weights = [run.lm_head.weight for run in runs]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], reference.lm_head.weight)


def test_the_same_samples_are_judged_by_each_world():
    taste = opposed(PreferenceWorld(seed=3))
    model = world_model(taste, seed=0)
    one, two = mean_rewards(model, [taste, taste], 8, seed=4)
    assert one == two == mean_rewards(model, [taste], 8, seed=4)[0]


def test_frontiers_are_of_reward_over_kl():
    def way(*points):
        return [WorldPoint(0, reward, kl, 0, 0, 0, 0) for kl, reward in points]

    gap = frontier_gap([way((0, 0), (2, 4))], [way((0, 0), (2, 2))])
    assert gap == pytest.approx(1.0)


def test_search_completes_the_starts(bench):
    starts = torch.tensor([[0, 3], [5, 1], [7, 7]])
    texts = searched(WORLD, bench.reference, starts, (1, 3), copies=4)
    assert {name: rows.shape for name, rows in texts.items()} == {
        "sampling": (12, 2), "greedy": (3, 2), "beam of 3": (3, 2),
    }  # fmt: skip
    with torch.no_grad():
        for start, text in zip(starts, texts["greedy"], strict=True):
            ids = torch.cat([torch.tensor([WORLD.start]), start])[None]
            assert bench.reference(ids).logits[0, -1].argmax() == text[0]


def test_another_start_is_the_reference_too(bench):
    start = world_model(WORLD, seed=5)
    policy, points = bench.train(DPO(0.1), start=start)
    assert points[0].kl == pytest.approx(0, abs=1e-6)
    drawn = bench.draw(policy, seed=1)
    batch = WORLD.sequences_batch(drawn)
    expected = (score(policy, batch).logprob - score(start, batch).logprob)[:, 1:]
    torch.testing.assert_close(bench.log_ratio(policy, drawn, start), expected)
