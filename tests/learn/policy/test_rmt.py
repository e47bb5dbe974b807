"""RMT: reward of guesses, likelihood of all other tokens, each with a mean of its own."""

import pytest
import torch

from policy_variants import assert_gradient, on, prepared, random_tokens, rollouts, step
from tokenry.core.errors import InputError
from tokenry.learn.policy.groups import group_advantage
from tokenry.learn.policy.rmt import RMT

T = torch.tensor
# text 4 and text 9: three responses and the text's own row each
LENGTHS, GROUPS = (3, 2, 4, 2, 5, 1, 4, 3), (4, 4, 4, 9, 9, 9, 4, 9)
SAMPLED = T([1.0] * 6 + [0.0] * 2).double()
MATCH = T([1.0, 0, 0, 0, 1, 1, 0, 0]).double()
THINKING, BUDGET = T([1.0, 0, 2, 0, 6, 1, 0, 0]).double(), torch.full((8,), 2.0).double()


def batch(**columns):
    own = {"sampled": SAMPLED, "match": MATCH, "thinking": THINKING, "budget": BUDGET}
    return rollouts(LENGTHS, [0.0] * 8, GROUPS).with_columns(**own | columns)


@pytest.mark.parametrize(("goal", "weight"), [(RMT(beta=0.0), 0.2), (RMT(0.5, 0.0, 0.0), 0.0)])
def test_advantages_and_the_two_means(goal, weight):
    ready = prepared(goal, batch())
    length = T([0.5, 0, 1, 0, 0, 0.5]).double()  # l / B up to B = 2, nothing from 2 B on
    reward = (1 - weight) * MATCH[:6] + weight * length
    group = T(GROUPS)[:6]
    wanted = torch.cat([group_advantage(reward, group), torch.zeros(2)])
    advantage = ready.column("advantage").double()
    torch.testing.assert_close(advantage[:, 1], wanted, atol=1e-6, rtol=0)
    assert (advantage[6:] == 0).all()
    old, mask = ready.column("old_logprob"), ready.target

    def by_hand(x):
        learned = -(x.exp() * wanted[:, None] * mask)[:6].sum() / 6
        read = -((old + x) * mask)[6:].sum(-1) / T([4.0, 3.0])
        return learned + goal.ntp_weight * read.mean()

    assert_gradient(by_hand, goal, ready, random_tokens(ready, 3, 0.3), atol=1e-6)


def test_the_guessed_token_is_not_read():
    """A target left out of the text's row has no gradient; the mean is over the rest."""
    whole = batch()
    target = whole.target.clone()
    target[6, 2] = False
    part = whole.__class__(whole.ids, whole.attention, target, whole.group, whole.columns)
    ready = prepared(RMT(beta=0.0), part)
    gradient = step(RMT(beta=0.0), ready, torch.zeros(part.shape).double())[1]
    assert (gradient[6][~target[6]] == 0).all()
    torch.testing.assert_close(gradient[6][target[6]], torch.full((3,), -0.1 / 3 / 2).double())


def test_texts_alone_are_a_language_model_and_equal_rewards_teach_nothing():
    alone = batch().select([6, 7])
    ready = prepared(RMT(beta=0.0), alone)
    loss, _, _ = step(RMT(beta=0.0), ready, torch.zeros(alone.shape).double())
    mean = (ready.column("old_logprob") * alone.target).sum(-1) / alone.target.sum(-1)
    assert loss.item() == pytest.approx(-0.1 * mean.mean().item())
    same = batch(match=torch.ones(8).double(), thinking=torch.ones(8).double())
    goal = RMT(0.0, beta=0.0)
    gradient = step(goal, prepared(goal, same), torch.zeros(same.shape).double())[1]
    assert (gradient == 0).all()


def test_the_kl_is_of_the_responses_alone():
    from tokenry.core.scores import Scores

    goal, given = RMT(0.0, 0.0, 0.5), batch(match=torch.zeros(8).double())
    old = random_tokens(given, 1) - 2
    own = Scores(given.ids, given.target, logprob=old)
    other = Scores(given.ids, given.target, logprob=old + on(given, [[0.3] * n for n in LENGTHS]))
    ready = goal.prepare(given, own, other)
    loss, gradient, _ = step(goal, ready, torch.zeros(given.shape).double())
    each = torch.expm1(T(0.3).double()) - 0.3
    assert loss.item() == pytest.approx(0.5 * each.item() * sum(LENGTHS[:6]) / 6)
    assert (gradient[6:] == 0).all()


def test_defaults_and_refusals():
    assert (RMT().ntp_weight, RMT().length_weight, RMT().beta) == (0.1, 0.2, 0.01)
    assert RMT().num_rewards == 0
    for wrong in ({"ntp_weight": -1.0}, {"length_weight": 1.5}, {"beta": -0.1}):
        with pytest.raises(InputError):
            RMT(**wrong)
    with pytest.raises(InputError, match="sampled"):
        prepared(RMT(beta=0.0), rollouts())
