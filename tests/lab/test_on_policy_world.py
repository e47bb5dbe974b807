"""The toy loop: what it samples, what it hands over, and that learning learns."""

import pytest
import torch

from tokenry.core.errors import InputError
from tokenry.lab.on_policy_world import roll_out, samples_until, train_on_policy
from tokenry.learn.policy.gradient import PolicyGradient
from tokenry.learn.policy.groups import GroupAdvantage
from tokenry.learn.policy.pama import PAMA
from tokenry.learn.policy.ppo import PPO
from tokenry.learn.policy.pro import PRO
from tokenry.learn.policy.rto import RTO
from tokenry.learn.preference.dpo import DPO

PROMPTS = torch.tensor([[5, 9], [5, 11], [6, 9]])
EOS = 1


def count_of(token):
    return lambda batch: ((batch.ids == token) & batch.target).sum(-1).float()


def train(objective, model, reward, steps=2, **options):
    given = {"steps": steps, "batch_size": 8, "max_new_tokens": 5, "eos": EOS, **options}
    return train_on_policy(objective, model, PROMPTS, reward, model, **given)


def test_rollouts_end_with_the_end_token_and_keep_it(tiny_llama):
    batch = roll_out(tiny_llama, PROMPTS.repeat(40, 1), max_new_tokens=8, eos=EOS)
    assert torch.equal(batch.ids[:, :2], PROMPTS.repeat(40, 1))
    for ids, target in zip(batch.ids, batch.target, strict=True):
        drawn = ids[target].tolist()
        assert EOS not in drawn[:-1]
        assert drawn[-1] == EOS or len(drawn) == 8
    assert (batch.attention == batch.target | (torch.arange(batch.shape[1]) < 2)).all()


def test_rollouts_come_from_the_policys_own_distribution(tiny_llama):
    batch = roll_out(tiny_llama, PROMPTS[:1].repeat(3000, 1), max_new_tokens=1, seed=3)
    with torch.no_grad():
        truth = tiny_llama(PROMPTS[:1]).logits[0, -1].softmax(-1)
    drawn = torch.bincount(batch.ids[:, 2], minlength=len(truth)) / 3000
    assert 0.5 * float((drawn - truth).abs().sum()) < 0.1


def test_the_same_seed_gives_the_same_rollouts_and_leaves_the_global_generator_alone(tiny_llama):
    torch.manual_seed(4)
    before = torch.get_rng_state()
    one, two, other = (roll_out(tiny_llama, PROMPTS, seed=seed) for seed in (7, 7, 8))
    assert torch.equal(one.ids, two.ids)
    assert not torch.equal(one.ids, other.ids)
    assert torch.equal(torch.get_rng_state(), before)


def test_samples_of_a_prompt_share_a_group(tiny_llama):
    batch = roll_out(tiny_llama, PROMPTS, samples=2)
    assert batch.group.tolist() == [0, 1, 2, 0, 1, 2]


def test_what_is_rewarded_becomes_more_frequent(tiny_llama):
    start = {name: value.clone() for name, value in tiny_llama.state_dict().items()}
    policy, points = train(
        PPO(kl=0.0),
        tiny_llama,
        lambda batch: ((batch.ids >= 32) & batch.target).sum(-1).float(),
        steps=8,
        batch_size=16,
        learning_rate=1e-2,
        updates=2,
    )
    assert points[-1].reward[0] > points[0].reward[0] + 1
    assert [p.samples for p in points[:2]] == [16, 32]
    assert points[0].kl == pytest.approx(0, abs=1e-5)
    assert points[-1].kl > 0.1
    assert all(torch.equal(value, start[name]) for name, value in tiny_llama.state_dict().items())
    assert not policy.training


def test_other_frozen_models_and_observations_reach_their_places(tiny_llama):
    seen = []
    _, points = train(
        RTO(),
        tiny_llama,
        count_of(7),
        frozen={"dpo": tiny_llama},
        observe=lambda batch: seen.append(batch) or {"length": float(batch.target.sum())},
    )
    assert len(seen) == 2
    assert points[1].observed["length"] == float(seen[1].target.sum())
    assert points[1].length == pytest.approx(float(seen[1].target.sum()) / 8)
    with pytest.raises(InputError, match="dpo"):
        train(RTO(), tiny_llama, count_of(7))


@pytest.mark.parametrize("objective", [PAMA(), PAMA(critic=True), PAMA(scope="token"), PRO()])
def test_several_rewards(objective, tiny_llama):
    def reward(batch):
        return torch.stack([count_of(7)(batch), batch.target.sum(-1).float()], -1)

    _, points = train(objective, tiny_llama, reward)
    assert len(points[0].reward) == 2
    assert points[0].reward[1] == pytest.approx(points[0].length)


def test_a_critic_learns_what_to_expect(tiny_llama):
    """Every completion gets 2: a critic that begins at 0 has half of 2 squared to lose."""
    objective = PPO(critic=True, kl=0.0, value_weight=1.0, value_clip=10.0)
    modules = objective.modules(tiny_llama)
    _, points = train(
        objective,
        tiny_llama,
        lambda batch: torch.full((len(batch.ids),), 2.0),
        steps=4,
        modules=modules,
        updates=4,
        learning_rate=1e-2,
    )
    losses = [point.metrics["value/loss"] for point in points]
    assert losses[-1] < 0.5 * losses[0] < 1.0
    assert modules["critic"].weight.abs().sum() > 0


def test_an_objective_of_pairs_is_refused(tiny_llama):
    with pytest.raises(InputError, match="DPO does not learn from rollouts"):
        train(DPO(), tiny_llama, count_of(7))
    with pytest.raises(InputError, match="multiple"):
        train(PPO(), tiny_llama, count_of(7), samples=3)


def test_the_policy_is_measured_before_on_the_way_and_at_the_end(tiny_llama):
    seen = []
    policy, points = train(
        PPO(), tiny_llama, count_of(7), steps=3, updates=2, every=2,
        measure=lambda step, policy: seen.append((step, policy)),
    )  # fmt: skip
    assert [step for step, _ in seen] == [0, 2, 3]
    assert all(one is policy for _, one in seen)
    assert [point.samples for point in points] == [8, 16, 24]


def test_samples_until_a_reward_is_first_reached():
    path = [(0, 1.0), (64, 2.0), (128, 1.5), (192, 4.0)]
    assert samples_until(path, 1.5) == 32
    assert samples_until(path, 2.0) == 64
    assert samples_until(path, 3.0) == pytest.approx(128 + 64 * 1.5 / 2.5)
    assert samples_until(path, 0.5) == 0
    assert samples_until(path, 9.0) == 192  # never: all there were


def test_axes_know_how_far_the_training_is(tiny_llama):
    seen = []

    def cooling(rollouts, advantage):
        seen.append(rollouts.progress)
        return torch.ones_like(advantage)

    objective = PolicyGradient(GroupAdvantage(), weights=(cooling,))
    train(objective, tiny_llama, count_of(7), updates=2, samples=4)
    assert seen == [0.0, 0.25, 0.5, 0.75]
