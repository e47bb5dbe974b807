"""Trouble 1: a batch that is split must give the update of the whole (verl#5625, trl#3021)."""

import copy

import pytest
import torch

from policy_trainer import PROMPTS, Given, rewarded, run
from tokenry.learn.compute import compute_loss
from tokenry.learn.data import batch_of
from tokenry.learn.policy.d3s import D3S
from tokenry.learn.policy.gradient import AGGREGATIONS, PolicyGradient
from tokenry.learn.policy.groups import GroupAdvantage
from tokenry.learn.policy.ppo import PPO
from tokenry.learn.trainer import ObjectiveTrainer

LENGTHS = (2, 8, 3, 5)
ALONE = [[[*range(10 + n, 9 + n + length), 1]] for n, length in enumerate(LENGTHS)]
REWARDS = {tuple(own[0]): reward for own, reward in zip(ALONE, (1.0, -0.5, 2.0, 0.25), strict=True)}
PAIRS = [[*own, [40 + n, 1]] for n, own in enumerate(ALONE)]
OF_PAIRS = REWARDS | {(40 + n, 1): 0.1 * n for n in range(4)}
SPLITS = [(4, 1), (2, 2), (1, 4), (3, 2)]  # prompts of a micro-batch, micro-batches of a step


@pytest.fixture(scope="module")
def loaded(tiny_llama_text, tiny_tokenizer):
    return copy.deepcopy(tiny_llama_text).double(), tiny_tokenizer


def plain(mode):
    length = 7.0 if mode == "constant-length" else None
    return PolicyGradient(
        GroupAdvantage(center=False, scale="none"), aggregation=mode, length=length
    )


def gradients(goal, loaded, output, size, count, completions=ALONE, table=REWARDS, **settings):
    return run(
        goal,
        loaded,
        output,
        PROMPTS[:4],
        rewards=[rewarded(table)],
        source=Given(loaded[1], completions),
        samples=len(completions[0]),
        per_device_train_batch_size=size,
        gradient_accumulation_steps=count,
        **settings,
    )[1]


def assert_alike(found, wanted):
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        largest = max(float(g.abs().max()) for g in other.values())
        assert largest > 1e-3
        for name in other:
            torch.testing.assert_close(one[name], other[name], rtol=0, atol=1e-6 * largest)


GOALS = {mode: (plain(mode), ALONE, REWARDS) for mode in AGGREGATIONS} | {
    # what rows are compared with is the whole draw, not the micro-batch
    "spread of the batch": (PolicyGradient(GroupAdvantage(scale="batch")), PAIRS, OF_PAIRS),
    "whitened over the batch": (PPO(kl=0.0), PAIRS, OF_PAIRS),
    "chosen among the batch": (D3S(count_start=3, count_end=3), PAIRS, OF_PAIRS),
}


@pytest.mark.parametrize("name", GOALS)
def test_one_two_or_four_micro_batches_are_the_same_updates(name, loaded, tmp_path):
    """Two epochs, so two updates, the second from other weights; 3 + 1 prompts are uneven."""
    goal, completions, table = GOALS[name]
    found = [
        gradients(goal, loaded, tmp_path / f"{n}", *split, completions, table, num_train_epochs=2)
        for n, split in enumerate(SPLITS)
    ]
    for other in found[1:]:
        assert_alike(other, found[0])


@pytest.mark.parametrize("mode", AGGREGATIONS)
def test_more_steps_on_a_draw_than_micro_batches(mode, loaded, tmp_path):
    """Three updates on each draw of two micro-batches: each from weights that have moved."""
    whole, split = (
        gradients(plain(mode), loaded, tmp_path / f"{size}", size, count, updates=3)
        for size, count in ((4, 1), (2, 2))
    )
    assert len(whole) == 3
    assert_alike(split, whole)


@pytest.mark.parametrize("mode", AGGREGATIONS)
def test_a_minibatch_of_several_micro_batches_is_that_of_its_rows_at_once(
    mode, loaded, tmp_path, monkeypatch
):
    """Two minibatches of a draw, two micro-batches each, against the loss of all their rows."""
    goal, steps, wanted = plain(mode), [], []
    real = ObjectiveTrainer.get_batch_samples

    def watched(self, *given):
        samples, units = real(self, *given)
        steps.append(len(samples))
        batches = [batch_of(sample) for sample in samples]
        whole = batches[0]
        for other in batches[1:]:
            whole = whole.concat(other)
        loss = compute_loss(goal, whole, self.model).loss
        names, weights = zip(*self.model.named_parameters(), strict=True)
        wanted.append(dict(zip(names, torch.autograd.grad(loss, weights), strict=True)))
        return samples, units

    monkeypatch.setattr(ObjectiveTrainer, "get_batch_samples", watched)
    found = gradients(goal, loaded, tmp_path, 2, 2, minibatches=2, updates=2)
    assert steps == [2, 2, 2, 2]
    assert_alike(found, wanted)
