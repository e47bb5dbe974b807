"""Policies of a bench crossed: their own answers at both ends, and the same prompts for all."""

import math

import pytest
import torch

from tokenry.lab.crossed_answers import CrossedPolicies
from tokenry.lab.policy_bench import PolicyBench
from tokenry.measure.cross_sampling import Above
from tokenry.tasks.worlds.written_addition import END


@pytest.fixture(scope="module")
def policies():
    bench = PolicyBench(0, tokens=600, prompts=2, judged=12, fit_steps=30)
    return CrossedPolicies(bench, samples=3, taught_steps=4)


def test_swapping_everything_is_the_other_policy(policies):
    base, rl = policies.bench.base, policies.rl
    alone, texts = policies.crossed(rl, rl, Above(math.inf))
    other, all_swapped = policies.crossed(base, rl, Above(-1.0))
    assert texts.ids == all_swapped.ids
    assert alone == other
    assert len(texts.ids) == 36
    assert all(END not in ids[:-1] for ids in texts.ids)


def test_accuracy_is_of_the_answers_themselves(policies):
    right, texts = policies.crossed(policies.bench.base, policies.rl, Above(0.01))
    world = policies.bench.world
    prompts = world.prompts(12, torch.Generator().manual_seed(10**6)).repeat(3, 1)
    sums = world.sums(prompts).tolist()
    expected = [ids[-4:] == [*digits, END] for ids, digits in zip(texts.ids, sums, strict=True)]
    whole = [ids for ids in texts.ids if ids[-1] == END]
    assert right <= len(whole) / 36
    assert right <= sum(expected) / 36  # a working before the sum must be closed as well
    assert 0 <= policies.accuracy(policies.bench.base) <= 1


def test_the_shift_is_along_the_policys_own_answers(policies):
    found = policies.shift(policies.rl)
    answers, _ = policies.bench.answers(policies.rl, 12, 3)
    assert torch.equal(found.ids, answers.ids[answers.target])
    assert float(policies.shift(policies.bench.base).divergence.max()) < 1e-6


def test_the_taught_policy_has_changed_and_the_base_has_not(policies):
    before = [weight.clone() for weight in policies.bench.base.parameters()]
    taught = policies.taught
    assert all(map(torch.equal, before, policies.bench.base.parameters()))
    assert not all(map(torch.equal, before, taught.parameters()))
