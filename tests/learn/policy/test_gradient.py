"""Policy gradients by composition: exact expectations, TRL's values, what each axis promises."""

import copy
import math

import pytest
import torch

from tokenry.core.batch import TokenBatch
from tokenry.core.errors import InputError, ShapeError, UnknownNameError
from tokenry.core.scores import Scores
from tokenry.learn.policy.axes import (
    GAE,
    KL,
    Clip,
    Critic,
    Divergence,
    GroupAdvantage,
    MixedRatio,
    RewardToGo,
    RolloutBatch,
    SequenceRatio,
    TokenRatio,
    TokenReward,
    Truncated,
    balanced_weights,
    group_advantage,
)
from tokenry.learn.policy.gradient import PolicyGradient
from tokenry.learn.policy.ppo import PPO
from tokenry.learn.policy.presets import CISPO, DAPO, GRPO, GSPO, DrGRPO


def scores(batch, logprob, **fields):
    return Scores(batch.ids, batch.target, logprob=logprob, **fields)


def rollouts(lengths, rewards, group, old=None):
    rows = [[9, *range(1, 1 + n)] for n in lengths]
    targets = [[False] + [True] * n for n in lengths]
    batch = TokenBatch.from_ids(rows, targets, group=group, pad_id=0)
    return batch.with_columns(reward=torch.tensor(rewards))


def test_group_advantages_worked():
    group = torch.tensor([0, 0, 1, 1])
    reward = torch.tensor([1.0, 0.0, 2.0, 2.0])
    half = 0.5 / (math.sqrt(0.5) + 1e-4)
    assert group_advantage(reward, group).tolist() == pytest.approx([half, -half, 0, 0])
    plain = group_advantage(reward, group, scale="none")
    assert plain.tolist() == [0.5, -0.5, 0, 0]
    assert group_advantage(reward, group, scale="none", leave_one_out=True).tolist() == [
        1,
        -1,
        0,
        0,
    ]
    biased = group_advantage(reward, group, unbiased=False, eps=0.0)[:2]
    assert biased.tolist() == pytest.approx([1, -1])
    spread = reward.std()
    batchwise = group_advantage(reward, group, scale="batch", eps=0.0)
    assert batchwise[0].item() == pytest.approx(0.5 / spread.item())
    assert group_advantage(torch.ones(1), torch.zeros(1).long()).tolist() == [0]


def test_groups_need_not_stand_together():
    reward, group = torch.tensor([1.0, 5.0, 0.0, 7.0]), torch.tensor([3, 8, 3, 8])
    order = torch.tensor([0, 2, 1, 3])
    mixed = group_advantage(reward, group)
    torch.testing.assert_close(mixed[order], group_advantage(reward[order], group[order]))


def test_balanced_aggregation_worked():
    """Four completions of 2, 4, 10, 4 tokens, two of each sign: the published example."""
    batch = rollouts([2, 4, 10, 4], [1.0, 1.0, -1.0, -1.0], [0, 0, 0, 0])
    advantage = batch.column("reward")[:, None].expand(batch.shape)
    weights = balanced_weights(advantage, batch.target, torch.zeros(4).long())
    assert weights[:, 0].tolist() == pytest.approx([0.5 / 6] * 2 + [0.5 / 14] * 2)
    assert (weights * batch.target).sum().item() == pytest.approx(1)
    goal = PolicyGradient(GroupAdvantage(center=False, scale="none"), aggregation="balanced")
    own = torch.zeros(batch.shape)
    prepared = goal.prepare(batch, scores(batch, own))
    assert goal(prepared, scores(batch, own)).loss.item() == pytest.approx(0, abs=1e-7)
    token_mean = PolicyGradient(GroupAdvantage(center=False, scale="none"))
    assert token_mean(prepared, scores(batch, own)).loss.item() == pytest.approx(0.4)


def test_equal_lengths_or_one_sign_make_balanced_a_known_mean():
    batch = rollouts([3, 3, 3], [1.0, -1.0, 2.0], [0, 0, 0])
    advantage = batch.column("reward")[:, None].expand(batch.shape)
    weights = balanced_weights(advantage, batch.target, torch.zeros(3).long())
    assert weights[:, 0].tolist() == pytest.approx([1 / 9] * 3)
    batch = rollouts([2, 4], [1.0, 2.0], [0, 0])
    advantage = batch.column("reward")[:, None].expand(batch.shape)
    weights = balanced_weights(advantage, batch.target, torch.zeros(2).long())
    assert weights[:, 0].tolist() == pytest.approx([1 / 6] * 2)


def moved(log_ratio, group=None):
    """A batch whose policy has moved by these log-ratios since it wrote it."""
    log_ratio = torch.tensor(log_ratio, dtype=torch.float64)
    batch = rollouts([log_ratio.shape[1]] * len(log_ratio), [0.0] * len(log_ratio), group)
    old = torch.zeros(batch.shape, dtype=torch.float64)
    now = torch.cat([torch.zeros(len(old), 1, dtype=torch.float64), log_ratio], 1)
    return batch.with_columns(old_logprob=old), now


def test_ratios_worked():
    probabilities = torch.tensor([[0.6, 0.1, 0.8]]), torch.tensor([[0.5, 0.2, 0.8]])
    batch, now = moved((probabilities[0] / probabilities[1]).log().tolist())
    view = RolloutBatch(batch)
    assert TokenRatio()(now, view)[0, 1:].tolist() == pytest.approx([1.2, 0.5, 1.0])
    sequence = SequenceRatio()(now, view)
    assert sequence[0, 1:].tolist() == pytest.approx([0.6 ** (1 / 3)] * 3)
    mixed = MixedRatio(0.5)(now, view)[0, 1:]
    assert mixed.tolist() == pytest.approx([1.02172, 0.67172, 0.92172], abs=1e-5)


@pytest.mark.parametrize(
    ("advantage", "ratio", "value", "slope"),
    [
        (1.0, 1.1, 1.1, 1.0),
        (1.0, 1.5, 1.28, 0.0),  # beyond 1 + high
        (1.0, 0.5, 0.5, 1.0),  # a good token may always come back
        (-1.0, 0.5, -0.8, 0.0),  # beyond 1 - low
        (-1.0, 2.5, -2.5, -1.0),
        (-1.0, 3.5, -3.0, 0.0),  # beyond the dual bound
    ],
)
def test_the_clip_and_its_gradient_worked(advantage, ratio, value, slope):
    u = torch.tensor([[ratio]], requires_grad=True)
    found = Clip(0.2, 0.28, dual=3.0)(u, torch.tensor([[advantage]]), u, None)
    found.sum().backward()
    assert (found.item(), u.grad.item()) == pytest.approx((value, slope))


def test_an_open_side_of_the_clip_lets_everything_through():
    u = torch.tensor([[9.0, 0.01]])
    found = Clip(None, None)(u, torch.tensor([[1.0, -1.0]]), u, None)
    assert found.tolist() == [[9.0, pytest.approx(-0.01)]]


def test_a_truncated_weight_bounds_the_gradient_and_never_stops_it():
    batch, now = moved([[2.0, 0.0]])
    now = now.requires_grad_()
    prepared = batch.with_columns(advantage=torch.ones(batch.shape))
    goal = PolicyGradient(clip=Truncated(5.0), aggregation="sequence-sum")
    goal(prepared, scores(batch, now)).loss.backward()
    assert now.grad[0, 1:].tolist() == pytest.approx([-5.0, -1.0])


def test_selecting_groups_drops_their_rows_and_denominators():
    batch = rollouts([2, 3, 4, 4], [1.0, 0.0, 1.0, 1.0], [0, 0, 1, 1])
    own = scores(batch, torch.zeros(batch.shape))
    assert DAPO().prepare(batch, own).group.tolist() == [0, 0]
    assert len(DAPO(dynamic=False).prepare(batch, own).ids) == 4
    flat = rollouts([2, 3], [1.0, 1.0], [0, 0])
    nothing = DAPO().prepare(flat, scores(flat, torch.zeros(flat.shape)))
    assert not nothing.target.any()
    assert DAPO()(nothing, scores(nothing, torch.zeros(nothing.shape))).loss == 0


def test_weights_gates_and_reshaping_apply_where_they_say():
    batch, now = moved([[0.1, 0.4]])
    now = now.requires_grad_()
    prepared = batch.with_columns(advantage=torch.ones(batch.shape))
    goal = PolicyGradient(
        clip=Clip(None, None),
        gate=lambda x, view: x * 0.5,
        weights=(lambda view, advantage: torch.tensor([[9.0, 1.0, 3.0]]),),
        reshape=(lambda advantage, ratio, view: advantage * 2,),
        aggregation="sequence-sum",
    )
    loss = goal(prepared, scores(batch, now)).loss
    assert loss.item() == pytest.approx(-2 * (math.exp(0.05) + 3 * math.exp(0.2)))
    loss.backward()
    assert now.grad[0, 2].item() == pytest.approx(-2 * 3 * math.exp(0.2) * 0.5)


def test_selecting_tokens_narrows_what_is_scored_and_every_denominator():
    """Only odd tokens: they are the targets of the updates, a row without any is gone."""
    batch = rollouts([1, 3, 4], [1.0, 0.0, 2.0], [0, 0, 0])
    later = torch.arange(5) >= 2

    def from_the_second(view, advantage):
        return later.expand(advantage.shape)

    for mode, means in (("token-mean", [1 / 5] * 5), ("sequence-mean", [1 / 4] * 2 + [1 / 6] * 3)):
        goal = PolicyGradient(GroupAdvantage(), select=(from_the_second,), aggregation=mode)
        ready = goal.prepare(batch, scores(batch, torch.zeros(batch.shape)))
        assert ready.target.sum(-1).tolist() == [2, 3]
        assert not ready.target[:, :2].any()
        own = torch.zeros(ready.shape, requires_grad=True)
        goal(ready, scores(ready, own)).loss.backward()
        weights = -own.grad[ready.target] / ready.column("advantage")[ready.target]
        assert weights.tolist() == pytest.approx(means)
        assert (own.grad[~ready.target] == 0).all()


def test_bounds_may_be_functions_of_the_rollouts():
    """Wider where the sampling policy was uncertain, token by token."""
    batch, now = moved([[math.log(1.3), math.log(1.3), math.log(0.6)]])
    width = torch.tensor([[0.0, 0.2, 0.4, 0.5]], dtype=torch.float64)
    seen = []

    def wide(view):
        seen.append(view.batch is not None)
        return width

    ready = batch.with_columns(advantage=torch.tensor([[0.0, 1.0, 1.0, -1.0]]).double())
    leaf = now.clone().requires_grad_()
    goal = PolicyGradient(clip=Clip(low=wide, high=wide), aggregation="sequence-sum")
    result = goal(ready, scores(batch, leaf))
    result.loss.backward()
    assert (leaf.grad[0, 1:] != 0).tolist() == [False, True, True]  # 1.3 in [, 1.4], 0.6 in [0.5, ]
    assert result.metrics["clip_fraction"].item() == pytest.approx(1 / 3)
    assert seen


def test_the_clip_fraction_is_the_clips_whatever_the_weights():
    batch, now = moved([[0.5, 0.0, 0.0, 0.0]])
    ready = batch.with_columns(advantage=torch.ones(batch.shape))
    heavy = (lambda view, advantage: torch.full(advantage.shape, 7.0),)
    for goal, fraction in (
        (PolicyGradient(weights=heavy), 1 / 4),
        (PolicyGradient(clip=Truncated(1.2)), 1 / 4),
        (PolicyGradient(clip=Truncated(2.0)), 0.0),
        (PolicyGradient(clip=lambda u, a, x, view: u.clamp(max=1.1) * a), 1 / 4),
    ):
        assert goal(ready, scores(batch, now)).metrics["clip_fraction"] == pytest.approx(fraction)


def test_reshaping_knows_the_ratio_the_entropy_and_the_group_of_each_token():
    """An advantage that is raised where the sampling policy was uncertain and has not moved."""

    class Uncertain:
        rollout_needs = ("policy.entropy",)

        def __call__(self, advantage, ratio, view):
            assert view.group.tolist() == [4, 4]
            return advantage + view.old_entropy * (ratio == 1)

    batch = rollouts([2, 2], [1.0, -1.0], [4, 4])
    goal = PolicyGradient(
        GroupAdvantage(scale="none"), reshape=(Uncertain(),), aggregation="sequence-sum"
    )
    assert {"policy.entropy", "policy.logprob"} == set(goal.rollout_needs)
    assert "token.old_entropy" in goal.needs
    entropy = torch.tensor([[0.0, 0.5, 0.25], [0.0, 2.0, 1.0]])
    own = torch.zeros(batch.shape)
    ready = goal.prepare(batch, scores(batch, own, entropy=entropy))
    leaf = torch.tensor([[0.0, 0.0, 0.1], [0.0, 0.0, 0.0]], requires_grad=True)
    goal(ready, scores(batch, leaf)).loss.backward()
    wanted = torch.tensor([[1.0 + 0.5, math.exp(0.1)], [-1.0 + 2.0, -1.0 + 1.0]])
    torch.testing.assert_close(-2 * leaf.grad[:, 1:], wanted)


def test_columns_that_only_the_advantage_looks_at_are_not_kept():
    batch = rollouts([2, 2], [1.0, -1.0], [0, 0])
    own = scores(batch, torch.zeros(batch.shape))
    ready = PPO().prepare(batch, own, own)
    assert "reference_logprob" not in ready.columns
    assert "reference_logprob" in GRPO(beta=0.1).prepare(batch, own, own).columns


def test_a_whole_vocabulary_divergence_is_asked_for_and_added():
    pull = Divergence(0.5, "reverse_kl", exact=True)
    goal = PolicyGradient(GroupAdvantage(), regularizer=pull, aggregation="token-mean")
    assert "policy.divergence" in goal.needs
    assert goal.rollout_needs == ("policy.logprob",)
    assert goal.divergence.name == "reverse_kl"
    batch = rollouts([2, 1], [0.0, 0.0], [0, 0])
    gap = torch.tensor([[9.0, 1.0, 3.0], [9.0, 2.0, 9.0]])
    own = scores(batch, torch.zeros(batch.shape), divergence=gap)
    ready = goal.prepare(batch, own)
    assert goal(ready, own).loss.item() == pytest.approx(0.5 * (1 + 3 + 2) / 3)


def test_what_is_needed_is_what_the_axes_ask_for():
    assert GRPO().rollout_needs == ("policy.logprob",)
    assert GRPO(beta=0.1).rollout_needs == ("policy.logprob", "reference.logprob")
    assert "token.reference_logprob" in GRPO(beta=0.1).needs
    assert [GRPO().unit, DAPO().unit, PolicyGradient(aggregation="balanced").unit] == [
        "row",
        "token",
        "pair",
    ]


@pytest.mark.parametrize(
    "make",
    [
        lambda: GRPO(clip=0.0),
        lambda: GRPO(beta=math.inf),
        lambda: DAPO(clip_high=math.nan),
        lambda: CISPO(most=-1.0),
        lambda: Clip(dual=1.0),
        lambda: KL(0.1, "k4"),
        lambda: Divergence(0.0),
        lambda: Divergence(0.1, "no_such"),
        lambda: Critic(heads=0),
        lambda: GAE(lam=1.1),
        lambda: RewardToGo(baseline="row"),
        lambda: TokenReward(kl=-1.0),
        lambda: GroupAdvantage(scale="sum"),
        lambda: MixedRatio(1.5),
        lambda: PolicyGradient(aggregation="constant-length"),
        lambda: PolicyGradient(aggregation="median"),
    ],
)
def test_impossible_settings_are_refused(make):
    with pytest.raises((InputError, UnknownNameError)):
        make()


def test_an_advantage_of_another_shape_is_refused():
    batch = rollouts([2], [1.0], [0])
    with pytest.raises(ShapeError, match=r"must give \[B\]"):
        PolicyGradient(lambda view: torch.zeros(3)).prepare(
            batch, scores(batch, torch.zeros(batch.shape))
        )


TRL = {
    "grpo": (GRPO(beta=0.04), {"loss_type": "grpo", "use_bias_correction_kl": False}),
    "grpo, corrected": (GRPO(beta=0.04, corrected=True), {"loss_type": "grpo"}),
    "dr-grpo": (DrGRPO(length=6.0), {"loss_type": "dr_grpo", "scale_rewards": "none"}),
    "dapo": (DAPO(dynamic=False), {"loss_type": "dapo", "epsilon_high": 0.28}),
    "gspo": (
        GSPO(clip=0.1, clip_high=0.12),
        {
            "loss_type": "grpo",
            "importance_sampling_level": "sequence",
            "epsilon": 0.1,
            "epsilon_high": 0.12,
        },
    ),
    "cispo": (CISPO(most=1.1), {"loss_type": "cispo", "epsilon_high": 1.1}),
}


@pytest.mark.parametrize("name", TRL)
def test_values_and_gradients_equal_trls(name, tiny_llama_text, tiny_tokenizer, tmp_path):
    trl = pytest.importorskip("trl")
    goal, settings = TRL[name]
    generator = torch.Generator().manual_seed(7)
    lengths, samples = [3, 6, 2, 5], 2
    prompt, width = 3, 6
    ids = torch.randint(5, 60, (4, prompt + width), generator=generator)
    target = torch.zeros_like(ids, dtype=torch.bool)
    for row, length in enumerate(lengths):
        target[row, prompt : prompt + length] = True
    attention = target.clone()
    attention[:, :prompt] = True
    reward = torch.tensor([1.0, 0.3, 0.2, 0.9])
    batch = TokenBatch(ids, attention, target, torch.tensor([0, 0, 1, 1]), {"reward": reward})
    old = torch.where(target, -torch.rand(ids.shape, generator=generator) - 3.5, 0.0)
    reference = torch.where(target, -torch.rand(ids.shape, generator=generator) - 3.5, 0.0)

    from tokenry.model.score import score

    ours = copy.deepcopy(tiny_llama_text).train()
    with torch.no_grad():  # so that ratios lie on both sides of the bounds
        own = score(ours, batch, ("logprob",)).need("logprob")
        old = own + torch.where(target, 0.3 * torch.randn(ids.shape, generator=generator), 0.0)
    prepared = goal.prepare(batch, scores(batch, old), scores(batch, reference))
    loss = goal(prepared, score(ours, prepared, ("logprob",), grad=True)).loss
    loss.backward()

    config = trl.GRPOConfig(
        output_dir=str(tmp_path),
        per_device_train_batch_size=4,
        num_generations=samples,
        max_completion_length=width,
        report_to="none",
        bf16=False,
        use_cpu=True,
        gradient_checkpointing=False,
        **settings,
    )
    import datasets

    trainer = trl.GRPOTrainer(
        model=copy.deepcopy(tiny_llama_text),
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=config,
        train_dataset=datasets.Dataset.from_list([{"prompt": "the cat"}] * 4),
        processing_class=copy.deepcopy(tiny_tokenizer),
    )
    trainer.current_gradient_accumulation_steps = 1
    trainer.beta = getattr(goal, "beta", 0.0)  # the reference is given below, not loaded
    trainer.model.train()
    grouped = reward.view(-1, samples)
    advantages = reward - grouped.mean(1).repeat_interleave(samples)
    if settings.get("scale_rewards") != "none":
        advantages = advantages / (grouped.std(1).repeat_interleave(samples) + 1e-4)
    expected = trainer._compute_loss(
        trainer.model,
        {
            "prompt_ids": ids[:, :prompt],
            "prompt_mask": attention[:, :prompt].long(),
            "completion_ids": ids[:, prompt:],
            "completion_mask": target[:, prompt:].long(),
            "advantages": advantages,
            "old_per_token_logps": old[:, prompt:],
            "ref_per_token_logps": reference[:, prompt:],
            "num_items_in_batch": target.sum(),
        },
    )
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    for (place, mine), (_, peer) in zip(
        ours.named_parameters(), trainer.model.named_parameters(), strict=True
    ):
        torch.testing.assert_close(
            mine.grad, peer.grad, rtol=1e-4, atol=1e-6, msg=lambda m, p=place: f"{p}: {m}"
        )


def test_the_published_bounds_of_gspo_and_cispo():
    """GSPO's clip is 3e-4 below and 4e-4 above; CISPO cuts the weight off at 5."""

    def slope(goal, log_ratio, advantage):
        batch, now = moved([[log_ratio] * 2])
        now = now.requires_grad_()
        prepared = batch.with_columns(advantage=torch.full(batch.shape, advantage))
        goal(prepared, scores(batch, now)).loss.backward()
        return now.grad[0, 1].item()

    for ratio, advantage, free in (
        (1.00035, 1.0, True),
        (1.00045, 1.0, False),
        (0.99975, -1.0, True),
        (0.99965, -1.0, False),
    ):
        assert (slope(GSPO(), math.log(ratio), advantage) != 0) == free
    assert slope(CISPO(), math.log(4.9), 1.0) == pytest.approx(-4.9 / 2)
    assert slope(CISPO(), math.log(7.0), 1.0) == pytest.approx(-5.0 / 2)
