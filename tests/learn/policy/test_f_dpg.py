"""f-DPG against enumeration: gradients of exact divergences, and the state that it keeps."""

import math

import pytest
import torch

from tokenry.core.batch import TokenBatch
from tokenry.core.divergences import (
    CHI_SQUARED,
    FORWARD_KL,
    JENSEN_SHANNON_SUM,
    REVERSE_CHI_SQUARED,
    REVERSE_KL,
    TOTAL_VARIATION,
)
from tokenry.core.errors import InputError
from tokenry.core.scores import Scores
from tokenry.learn.objective import objective
from tokenry.learn.policy.f_dpg import FDPG, f_dpg_loss, pseudo_reward
from tokenry.learn.policy.target import RunningTarget, fit_weights, prompt_keys

KINDS = [
    FORWARD_KL,
    REVERSE_KL,
    TOTAL_VARIATION,
    JENSEN_SHANNON_SUM,
    CHI_SQUARED,
    REVERSE_CHI_SQUARED,
]
kinds = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)


def random_logprobs(count, K=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, K, generator=generator, dtype=torch.float64).log_softmax(-1)


def expected_gradient(policy, target, kind, proposal=None, baseline=0.0):
    """Gradient of the loss's expectation over all outcomes, drawn from the proposal."""
    leaf = policy.clone().requires_grad_()
    own = leaf.log_softmax(-1)
    proposal = own.detach() if proposal is None else proposal
    reward = pseudo_reward(own, target, kind)
    loss = (proposal.exp() * f_dpg_loss(own, proposal, reward - baseline)).sum()
    return torch.autograd.grad(loss, leaf)[0]


def exact_gradient(policy, target, kind):
    leaf = policy.clone().requires_grad_()
    value = kind.terms(target, leaf.log_softmax(-1)).sum()
    return torch.autograd.grad(value, leaf)[0]


def test_derivatives_of_the_papers_table_at_t_2():
    """-0.5, 1.693147, 0.5 and 0.287682 up to each one's constant, its value at t = 1."""
    table = {
        FORWARD_KL: (-0.5, -1.0),
        REVERSE_KL: (1.693147, 1.0),
        TOTAL_VARIATION: (0.5, 0.0),
        JENSEN_SHANNON_SUM: (0.287682, 0.0),
        CHI_SQUARED: (1 - math.exp(-2 * math.log(2)), 0.0),
        REVERSE_CHI_SQUARED: (2.0, 0.0),
    }
    log_t = torch.tensor([math.log(2)], dtype=torch.float64)
    for kind, (value, constant) in table.items():
        reward = pseudo_reward(log_t, torch.zeros(1), kind)
        assert -float(reward) == pytest.approx(value - constant, abs=1e-6)


@kinds
def test_expected_gradient_is_that_of_the_exact_divergence(kind):
    policy, target = random_logprobs(2)
    found = expected_gradient(policy, target, kind)
    torch.testing.assert_close(found, exact_gradient(policy, target, kind), rtol=0, atol=1e-10)
    assert found.abs().max() > 1e-3


@kinds
def test_a_baseline_leaves_the_expected_gradient_alone(kind):
    policy, target = random_logprobs(2, seed=1)
    with_baseline = expected_gradient(policy, target, kind, baseline=3.7)
    torch.testing.assert_close(with_baseline, expected_gradient(policy, target, kind))


@kinds
def test_samples_of_another_proposal_give_the_same_expected_gradient(kind):
    policy, target, proposal = random_logprobs(3, seed=2)
    torch.testing.assert_close(
        expected_gradient(policy, target, kind, proposal), exact_gradient(policy, target, kind)
    )


@kinds
def test_at_the_target_the_gradient_vanishes(kind):
    (target,) = random_logprobs(1, seed=3)
    assert expected_gradient(target, target, kind).abs().max() < 1e-12


def test_reverse_kl_to_a_tilted_reference_is_rl_with_a_kl_penalty():
    policy, base = random_logprobs(2, seed=4)
    reward, beta = torch.tensor([1.0, -0.5, 0.3, 2.0, 0.0], dtype=torch.float64), 0.7
    found = expected_gradient(policy, (base + reward / beta).log_softmax(-1), REVERSE_KL)
    leaf = policy.clone().requires_grad_()
    own = leaf.log_softmax(-1)
    surrogate = (own.exp() * reward).sum() - beta * (own.exp() * (own - base)).sum()
    torch.testing.assert_close(found, -torch.autograd.grad(surrogate, leaf)[0] / beta)


def test_forward_kl_is_dpg_with_its_exact_baseline():
    policy, target = random_logprobs(2, seed=5)
    reward = pseudo_reward(policy, target, FORWARD_KL)
    torch.testing.assert_close(reward, (target - policy).exp() - 1)
    assert float((policy.exp() * reward).sum()) == pytest.approx(0.0, abs=1e-12)


# ---- the objective: a policy over the 27 texts of three tokens behind one prompt token


def texts(V=3, length=3):
    every = torch.cartesian_prod(*[torch.arange(V)] * length).tolist()
    return TokenBatch.from_ids([[0, *text] for text in every], group=[0] * len(every))


def scored(batch, logits):
    """Scores of a policy whose next token depends on the position and the token before."""
    previous = batch.ids.roll(1, dims=1)
    places = torch.arange(batch.shape[1])
    logprob = logits.log_softmax(-1)[places, previous].gather(-1, batch.ids[..., None])[..., 0]
    return Scores(batch.ids, batch.target, logprob=torch.where(batch.target, logprob, torch.nan))


def tables(seed=0, count=2):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 4, 3, 3, generator=generator, dtype=torch.float64)


def drawn(batch, scores, count, seed=0):
    probability = torch.where(batch.target, scores.logprob, 0.0).sum(-1).exp()
    generator = torch.Generator().manual_seed(seed)
    return torch.multinomial(probability, count, replacement=True, generator=generator)


def constraint(batch):
    return (batch.ids[:, 1:] == 2).any(-1).double()


def test_one_update_on_every_text_is_the_exact_gradient_for_the_constraint():
    """Each text as often as the policy draws it, so that Z and the gradient are exact."""
    policy, reference = tables()
    every = texts()
    rows = drawn(every, scored(every, policy), 60_000)
    batch = every.select(rows).with_columns(reward=constraint(every)[rows])
    objective = FDPG()
    modules = objective.modules(None)
    batch = objective.prepare(
        batch, scored(batch, policy), scored(batch, reference), modules=modules
    )

    base = torch.where(every.target, scored(every, reference).logprob, 0.0).sum(-1)
    log_p = base.masked_fill(constraint(every) == 0, -math.inf).log_softmax(0)
    log_z = float(base.masked_fill(constraint(every) == 0, -math.inf).logsumexp(0))
    known = modules.log_z(prompt_keys(every)[:1], torch.tensor([-math.inf], dtype=torch.float64))
    assert float(known) == pytest.approx(log_z, abs=0.02)

    leaf = policy.clone().requires_grad_()
    result = objective(batch, scored(batch, leaf))
    (found,) = torch.autograd.grad(result.loss, leaf)
    leaf = policy.clone().requires_grad_()
    own = torch.where(every.target, scored(every, leaf).logprob, 0.0).sum(-1)
    exact = JENSEN_SHANNON_SUM.terms(log_p, own).sum()
    (wanted,) = torch.autograd.grad(exact, leaf)
    assert (found - wanted).abs().max() < 0.03 * wanted.abs().max()
    for name, kind in (("total_variation", TOTAL_VARIATION), ("forward_kl", FORWARD_KL)):
        estimate = float(result.metrics[f"to_target/{name}"].mean())
        assert estimate == pytest.approx(float(kind.term(log_p, own.detach()).sum()), rel=0.05)


def test_the_baseline_is_the_mean_of_earlier_rewards_only():
    policy, reference = tables()
    every = texts().with_columns(reward=torch.linspace(-1, 1, 27))
    objective = FDPG(weights=(2.0,), window=20)
    modules = objective.modules(None)
    scores = [scored(every, table) for table in (policy, reference)]
    first = objective.prepare(every, *scores, modules=modules).column("advantage")
    log_q, log_a = (torch.where(every.target, one.logprob, 0.0).sum(-1) for one in scores)
    log_p = log_a + 2.0 * every.column("reward").double()
    log_z = (log_p - log_q).logsumexp(0) - math.log(27)
    plain = pseudo_reward(log_q, log_p - log_z, JENSEN_SHANNON_SUM)
    torch.testing.assert_close(first.double(), plain, rtol=1e-5, atol=1e-6)  # no baseline yet
    assert abs(float(plain[-20:].mean())) > 0.01
    second = objective.prepare(every, *scores, modules=modules).column("advantage")
    # the same samples leave Z as it was; the last 20 of the first round are the baseline
    torch.testing.assert_close(second, first - first[-20:].mean(), rtol=1e-5, atol=1e-6)


def test_nothing_is_learnt_before_the_first_text_that_the_target_allows():
    policy, reference = tables()
    every = texts().with_columns(reward=torch.zeros(27))
    objective, modules = FDPG(), RunningTarget()
    batch = objective.prepare(
        every, scored(every, policy), scored(every, reference), modules=modules
    )
    assert (batch.column("advantage") == 0).all()
    assert int(modules.seen) == 0
    leaf = policy.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(objective(batch, scored(batch, leaf)).loss, leaf)
    assert (gradient == 0).all()


def test_z_is_kept_for_each_prompt_over_all_batches():
    modules = RunningTarget(prompts=2)

    def told(keys, weights):
        weight = torch.tensor(weights, dtype=torch.float64)
        return modules.log_z(keys, weight.log()).exp().tolist()

    assert told([7, 8, 7], [1.0, 5.0, 3.0]) == pytest.approx([2.0, 5.0, 2.0])
    assert told([7, 8], [2.0, 0.0]) == pytest.approx([2.0, 2.5])
    assert told([9], [4.0]) == pytest.approx([4.0])  # takes the place of 7
    assert told([8], [0.5]) == pytest.approx([5.5 / 3])
    assert told([7], [6.0]) == pytest.approx([6.0])


def test_state_survives_saving():
    modules = RunningTarget(window=4)
    modules.log_z([3, 3], torch.tensor([0.0, 1.0]))
    modules.remember(torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]))
    copy = RunningTarget(window=4)
    copy.load_state_dict(modules.state_dict())
    assert float(copy.baseline(torch.zeros(1))) == pytest.approx(3.5)
    nothing = torch.tensor([-math.inf])
    torch.testing.assert_close(copy.log_z([3], nothing), modules.log_z([3], nothing))


def test_prompts_are_told_apart_whatever_their_padding():
    rows, targets = [[5, 6, 1], [5, 6, 2, 2], [6, 5, 1]], [[False, False, True]] * 3
    targets[1] = [False, False, True, True]
    left = TokenBatch.from_ids(rows, targets, padding_side="left")
    right = TokenBatch.from_ids(rows, targets)
    first, second, third = prompt_keys(left)
    assert prompt_keys(right) == [first, second, third]
    assert first == second != third


def test_several_rewards_are_weighed_and_a_constraint_is_one_reward():
    rewards = torch.tensor([[1.0, 2.0], [0.0, -1.0]])
    torch.testing.assert_close(
        FDPG(weights=(0.5, 3.0)).log_score(rewards), torch.tensor([6.5, -3.0])
    )
    found = FDPG(slack=0.01).log_score(torch.tensor([1.0, 0.0]))
    torch.testing.assert_close(found, torch.tensor([0.0, math.log(0.01)]))
    with pytest.raises(InputError, match="2 reward functions"):
        FDPG(weights=(1.0,)).log_score(rewards)
    with pytest.raises(InputError, match="one reward function"):
        FDPG().log_score(rewards)


def test_fitted_weights_give_the_wanted_means():
    generator = torch.Generator().manual_seed(0)
    features = (torch.rand(2000, 2, generator=generator) < torch.tensor([0.1, 0.4])).double()
    wanted = torch.tensor([0.5, 0.3], dtype=torch.float64)
    weights = fit_weights(features, wanted)
    share = (features @ weights).softmax(0)
    torch.testing.assert_close(share @ features, wanted, rtol=0, atol=1e-4)
    # one binary feature has the closed form log odds(wanted) - log odds(mean)
    one = fit_weights(features[:, :1], wanted[:1])
    mean = float(features[:, 0].mean())
    assert float(one) == pytest.approx(math.log(mean / (1 - mean)) * -1, abs=1e-3)
    with pytest.raises(InputError, match="range"):
        fit_weights(features, torch.tensor([1.5, 0.3]))


def test_samples_far_from_the_proposal_stay_finite():
    own = torch.tensor([-1e4, 0.0, -3.0], requires_grad=True)
    losses = f_dpg_loss(own, torch.tensor([0.0, -1e4, -3.0]), torch.tensor([1.0, -1.0, 2.0]))
    losses.sum().backward()
    assert losses.isfinite().all()
    assert own.grad.isfinite().all()
    assert own.grad[2] == -2.0


def test_an_infinite_divergence_is_refused_and_slack_makes_it_finite():
    for name in ("reverse_kl", "reverse_chi_squared", "jeffreys"):
        with pytest.raises(InputError, match="slack"):
            FDPG(f_divergence=name)
        assert FDPG(f_divergence=name, slack=1e-3).slack == 1e-3
        assert FDPG(f_divergence=name, weights=[1]).weights == (1,)
    with pytest.raises(InputError, match="slack"):
        FDPG(slack=1.0)
    with pytest.raises(InputError, match="window"):
        FDPG(window=0)


def test_a_missing_reference_is_an_error_that_speaks():
    policy, _ = tables()
    every = texts().with_columns(reward=torch.zeros(27))
    with pytest.raises(InputError, match="reference"):
        FDPG().prepare(every, scored(every, policy), None, modules=RunningTarget())


def test_is_filed_under_its_paper():
    assert objective["f-dpg"] is FDPG
    assert {entry.key: entry.paper for entry in objective}["f-dpg"] == 171
