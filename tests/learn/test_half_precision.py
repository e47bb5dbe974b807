"""The plain functions of the objectives read half precision and compute in float32.

Log-ratios of a hundred nats have bfloat16 steps of half a nat: a difference taken there loses the
verdict.
"""

import math

import pytest
import torch

from tokenry.core.batch import TokenBatch
from tokenry.core.divergences import FORWARD_KL, JENSEN_SHANNON_SUM
from tokenry.learn.policy.f_dpg import f_dpg_loss, pseudo_reward
from tokenry.learn.policy.orchestrator import orchestrator_loss, reward_profile_targets
from tokenry.learn.policy.pro import weighted_reward
from tokenry.learn.policy.surrogate import clipped_surrogate
from tokenry.learn.preference.act import rank_loss
from tokenry.learn.preference.cdpo import positionwise_loss
from tokenry.learn.preference.d2o import d2o_loss
from tokenry.learn.preference.dpo import dpo_loss
from tokenry.learn.preference.f_dpo import f_dpo_loss
from tokenry.learn.preference.t_reg import contrastive_prompt_reward
from tokenry.learn.preference.tars import spectral_preference_loss
from tokenry.learn.preference.tdpo import tdpo_loss
from tokenry.learn.preference.unlearning import forget_loss
from tokenry.learn.preference.weighted import pair_loss
from tokenry.learn.rewards.token_value import token_value_loss

PAIRS = TokenBatch.from_ids([[0, 1, 2, 3]] * 6, group=[0, 1, 2] * 2)
MASK = torch.ones(6, 4, dtype=torch.bool)

FUNCTIONS = {
    "dpo": ((3,), (3,), lambda a, b: dpo_loss(a, b, beta=0.1)),
    "tdpo": (*[(3,)] * 4, lambda *sides: tdpo_loss(*sides, beta=0.1)),
    "tdpo1": (*[(3,)] * 4, lambda *sides: tdpo_loss(*sides, beta=0.1, variant="tdpo1")),
    "f-dpo": ((3,), (3,), lambda a, b: f_dpo_loss(a, b, beta=0.1, divergence=JENSEN_SHANNON_SUM)),
    "d2o": ((11, 3), (3,), lambda a, b: d2o_loss(a, b)),
    "pair": ((3,), lambda margin: pair_loss(margin, 0.1)),
    "rank": ((6,), (6,), lambda p, csr: rank_loss(p, csr, torch.arange(6) // 3, margin=0.2)),
    "spectral": ((6,), (6,), lambda a, b: spectral_preference_loss(a, b, beta=1.0)),
    "positionwise": ((6, 4), lambda rewards: positionwise_loss(PAIRS, rewards)),
    "forget": ((6,), (6,), lambda p, q: forget_loss(-p.abs(), -q.abs())),
    "npo": ((6,), (6,), lambda p, q: forget_loss(-p.abs(), -q.abs(), "npo")),
    "contrastive reward": ((6,), (6,), contrastive_prompt_reward),
    "token values": ((6, 4), (6, 4), lambda a, b: token_value_loss(a, b, MASK)),
    "surrogate": ((6, 4), (6, 4), (6, 4), lambda p, q, a: clipped_surrogate(p, q, a, mask=MASK)),
    "f-dpg": ((6,), (6,), (6,), f_dpg_loss),
    "pseudo-reward": ((6,), (6,), lambda p, q: pseudo_reward(p, q, FORWARD_KL)),
    "weighted reward": ((6, 2), (6, 2), weighted_reward),
    "orchestrator": ((6, 2), (6, 2), lambda z, t: orchestrator_loss(z, t.abs())),
    "reward profile": ((6, 2), lambda scores: reward_profile_targets(scores)[0]),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_half_precision_inputs_are_computed_with_in_float32(name):
    *shapes, function = FUNCTIONS[name]
    generator = torch.Generator().manual_seed(0)
    inputs = [(torch.randn(s, generator=generator) * 30 - 100).bfloat16() for s in shapes]
    found = function(*inputs)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, function(*(value.float() for value in inputs)))


def test_the_verdicts_of_close_log_ratios_survive_half_precision():
    """Half a step apart at 100 nats: bfloat16 arithmetic calls both sides equal."""
    chosen, rejected = (torch.tensor([x]).bfloat16() for x in (-100.0, -100.5))
    expected = -math.log(1 / (1 + math.exp(-0.1 * 0.5)))
    assert float(dpo_loss(chosen, rejected, beta=0.1)) == pytest.approx(expected)
    anchors = torch.tensor([[-100.0], [-101.0], [-100.5]]).bfloat16()  # their mean is no bfloat16
    assert float(d2o_loss(anchors, rejected)) == pytest.approx(math.log(2))
    scores, rates = torch.tensor([-100.0, -100.5]).bfloat16(), torch.tensor([0.501, 0.5])
    assert float(rank_loss(scores, rates, ft_weight=0.0)) == 0.0  # the better one is ahead
    assert float(rank_loss(scores, rates.flip(0), ft_weight=0.0)) == pytest.approx(0.5)
