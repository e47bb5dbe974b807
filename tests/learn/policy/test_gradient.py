"""Policy gradients by composition: exact expectations, TRL's values, what each axis promises."""

import copy
import math

import pytest
import torch

from tokenry.core.batch import TokenBatch
from tokenry.core.errors import InputError, ShapeError
from tokenry.core.scores import Scores
from tokenry.learn.policy.axes import (
    KL,
    Clip,
    GroupAdvantage,
    MixedRatio,
    RolloutBatch,
    SequenceRatio,
    TokenRatio,
    Truncated,
    balanced_weights,
    group_advantage,
)
from tokenry.learn.policy.gradient import PolicyGradient
from tokenry.learn.policy.presets import CISPO, DAPO, GRPO, GSPO, DrGRPO
from tokenry.tasks.worlds.enumerable import EnumerableWorld

WORLD = EnumerableWorld(vocabulary=3, length=2)
SIZE = 2


def scores(batch, logprob, **fields):
    return Scores(batch.ids, batch.target, logprob=logprob, **fields)


def loss_of(objective, chosen, table, old, reference=None):
    """The objective's loss of one group, sampled from `old`, under `table`."""
    batch = WORLD.batch(chosen)
    sampled = scores(batch, WORLD.logprob(old, chosen).detach())
    frozen = None if reference is None else scores(batch, WORLD.logprob(reference, chosen).detach())
    prepared = objective.prepare(batch, sampled, frozen)
    own = WORLD.logprob(table, chosen)[: len(prepared.ids)]  # fewer when nothing was kept
    return objective(prepared, scores(prepared, own)).loss


def expected_gradient(objective, table, old, reference=None):
    """sum over all groups of p_old(group) times the gradient of their loss."""
    chance = WORLD.probability(old).detach()
    total = sum(
        chance[list(chosen)].prod() * loss_of(objective, chosen, table, old, reference)
        for chosen in WORLD.groups(SIZE)
    )
    return torch.autograd.grad(total, table)[0]


def by_hand(token_loss, table, old, normal):
    """The same from plain numbers: token_loss(log-ratio, A, log pi, mean log-ratio) per token.

    normal(lengths) -> the weight of each completion's tokens.
    """
    chance = WORLD.probability(old).detach()
    total = 0.0
    for chosen in WORLD.groups(SIZE):
        rewards = [float(WORLD.reward[number]) for number in chosen]
        lengths = [len(WORLD.texts[number]) for number in chosen]
        now, before = WORLD.logprob(table, chosen), WORLD.logprob(old, chosen).detach()
        loss = 0.0
        for row, weight in enumerate(normal(lengths)):
            moved = [now[row, t] - before[row, t] for t in range(1, 1 + lengths[row])]
            mean = sum(moved) / lengths[row]
            for t, x in enumerate(moved, 1):
                loss = loss + weight * token_loss(x, rewards, row, now[row, t], mean)
        total = total + chance[list(chosen)].prod() * loss
    return torch.autograd.grad(total, table)[0]


def normalised(rewards, row, eps=1e-4):
    mean = sum(rewards) / len(rewards)
    spread = math.sqrt(sum((r - mean) ** 2 for r in rewards) / (len(rewards) - 1))
    return (rewards[row] - mean) / (spread + eps)


def pessimistic(ratio, advantage, low, high):
    bounded = ratio.clamp(1 - low, 1 + high)
    return torch.minimum(ratio * advantage, bounded * advantage)


HAND = {
    "grpo": (
        GRPO(),
        lambda x, r, row, now, mean: -pessimistic(x.exp(), normalised(r, row), 0.2, 0.2),
        lambda lengths: [1 / (len(lengths) * n) for n in lengths],
    ),
    "dr-grpo": (
        DrGRPO(length=7.0),
        lambda x, r, row, now, mean: -pessimistic(x.exp(), r[row] - sum(r) / len(r), 0.2, 0.2),
        lambda lengths: [1 / (len(lengths) * 7.0)] * len(lengths),
    ),
    "dapo": (
        DAPO(),
        lambda x, r, row, now, mean: -pessimistic(x.exp(), normalised(r, row), 0.2, 0.28),
        lambda lengths: [1 / sum(lengths)] * len(lengths),
    ),
    "gspo": (
        GSPO(clip=0.1, clip_high=0.15),
        lambda x, r, row, now, mean: -pessimistic(mean.exp(), normalised(r, row), 0.1, 0.15),
        lambda lengths: [1 / (len(lengths) * n) for n in lengths],
    ),
    "cispo": (
        CISPO(most=1.3),
        lambda x, r, row, now, mean: -x.detach().exp().clamp(max=1.3) * normalised(r, row) * now,
        lambda lengths: [1 / sum(lengths)] * len(lengths),
    ),
}


@pytest.mark.parametrize("moved", [False, True], ids=["on-policy", "off-policy"])
@pytest.mark.parametrize("name", HAND)
def test_expected_gradients_of_presets_are_those_of_the_enumerated_objective(name, moved):
    objective, token_loss, normal = HAND[name]
    old = WORLD.table(1).detach()
    table = (old + (0.5 * WORLD.table(2).detach() if moved else 0)).requires_grad_()
    found = expected_gradient(objective, table, old)
    wanted = by_hand(token_loss, table, old, normal)
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-9)
    assert found.abs().max() > 1e-3  # a zero on-policy gradient would be a fault


def test_without_bias_the_expected_gradient_is_that_of_the_expected_reward():
    """Others' mean as baseline, no scale, sums: REINFORCE with leave-one-out is unbiased."""
    table = WORLD.table(3)
    objective = PolicyGradient(
        GroupAdvantage(scale="none", leave_one_out=True), aggregation="sequence-sum"
    )
    found = expected_gradient(objective, table, table.detach())
    value = (WORLD.probability(table) * WORLD.reward).sum()
    torch.testing.assert_close(found, -torch.autograd.grad(value, table)[0], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("pull", "divergence"),
    [
        (KL(1.0, "k2"), "reverse"),
        (KL(1.0, "k3"), "forward"),
        (KL(1.0, "k3", corrected=True), "reverse"),
        (KL(1.0, "k1", corrected=True), "reverse"),
    ],
)
def test_the_regularisers_gradient_is_the_divergences(pull, divergence):
    """On own samples, at the contexts that the policy visits."""
    table, reference = WORLD.table(4), WORLD.table(5).detach()
    objective = PolicyGradient(
        lambda rollouts: torch.zeros(len(rollouts.batch.ids)),
        regularizer=pull,
        aggregation="sequence-sum",
    )
    found = expected_gradient(objective, table, table.detach(), reference)
    own, its = table.log_softmax(-1), reference.log_softmax(-1)
    per_context = {
        "reverse": (own.exp() * (own - its)).sum(-1),
        "forward": (its.exp() * (its - own)).sum(-1),
    }[divergence]
    visits = {(): torch.ones((), dtype=torch.float64)}
    for context in sorted(WORLD.contexts, key=len)[1:]:
        step = own[WORLD.contexts[context[:-1]], context[-1]].exp().detach()
        visits[context] = visits[context[:-1]] * step
    weights = torch.stack([visits[context] for context in WORLD.contexts])
    wanted = torch.autograd.grad((weights * per_context).sum(), table)[0]
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-9)


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
    objective = PolicyGradient(GroupAdvantage(center=False, scale="none"), aggregation="balanced")
    own = torch.zeros(batch.shape)
    prepared = objective.prepare(batch, scores(batch, own))
    assert objective(prepared, scores(batch, own)).loss.item() == pytest.approx(0, abs=1e-7)
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
    objective = PolicyGradient(clip=Truncated(5.0), aggregation="sequence-sum")
    objective(prepared, scores(batch, now)).loss.backward()
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
    objective = PolicyGradient(
        clip=Clip(None, None),
        gate=lambda x, view: x * 0.5,
        weights=(lambda view, advantage: torch.tensor([[9.0, 1.0, 3.0]]),),
        reshape=(lambda advantage, ratio, view: advantage * 2,),
        aggregation="sequence-sum",
    )
    loss = objective(prepared, scores(batch, now)).loss
    assert loss.item() == pytest.approx(-2 * (math.exp(0.05) + 3 * math.exp(0.2)))
    loss.backward()
    assert now.grad[0, 2].item() == pytest.approx(-2 * 3 * math.exp(0.2) * 0.5)


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
        lambda: GroupAdvantage(scale="sum"),
        lambda: MixedRatio(1.5),
        lambda: PolicyGradient(aggregation="constant-length"),
        lambda: PolicyGradient(aggregation="median"),
    ],
)
def test_impossible_settings_are_refused(make):
    with pytest.raises(InputError):
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
    objective, settings = TRL[name]
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
    prepared = objective.prepare(batch, scores(batch, old), scores(batch, reference))
    loss = objective(prepared, score(ours, prepared, ("logprob",), grad=True)).loss
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
    trainer.beta = getattr(objective, "beta", 0.0)  # the reference is given below, not loaded
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


def test_every_group_of_the_world_is_listed_and_its_chances_sum_to_one():
    table = WORLD.table(0)
    assert WORLD.probability(table).sum().item() == pytest.approx(1)
    assert len(list(WORLD.groups(2))) == len(WORLD.texts) ** 2
    assert len(WORLD.texts) == len(set(WORLD.texts)) == 1 + 2 * 3
    # a text ends at its first 0, or has the full length
    assert all(0 not in t[:-1] and (t[-1] == 0 or len(t) == WORLD.length) for t in WORLD.texts)


def test_the_published_bounds_of_gspo_and_cispo():
    """GSPO's clip is 3e-4 below and 4e-4 above; CISPO cuts the weight off at 5."""

    def slope(objective, log_ratio, advantage):
        batch, now = moved([[log_ratio] * 2])
        now = now.requires_grad_()
        prepared = batch.with_columns(advantage=torch.full(batch.shape, advantage))
        objective(prepared, scores(batch, now)).loss.backward()
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
