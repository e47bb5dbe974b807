"""The axes of a policy gradient that are at hand, by what they decide.

rollouts        RolloutBatch: what an axis sees
advantage       GroupAdvantage, GAE, RewardToGo; their rewards: TokenReward; values: Critic
ratio           TokenRatio, SequenceRatio, MixedRatio
clip            Clip (symmetric, asymmetric, dual, bounds [B, T]), Truncated
select          some_spread
regularizer     KL (k1, k2, k3), Divergence (any f)
aggregation     "sequence-mean", "token-mean", "constant-length", "sequence-sum", "balanced"
terms           Auxiliary: another objective, on the same rollouts or on another view of them
"""

from tokenry.learn.policy.critic import Critic
from tokenry.learn.policy.groups import (
    GroupAdvantage,
    balanced_weights,
    group_advantage,
    some_spread,
)
from tokenry.learn.policy.regularizers import KL, Divergence
from tokenry.learn.policy.returns import GAE, RewardToGo, TokenReward
from tokenry.learn.policy.rollout_batch import RolloutBatch
from tokenry.learn.policy.surrogate import (
    Clip,
    MixedRatio,
    SequenceRatio,
    TokenRatio,
    Truncated,
)
from tokenry.learn.policy.terms import Auxiliary

__all__ = [
    "GAE",
    "KL",
    "Auxiliary",
    "Clip",
    "Critic",
    "Divergence",
    "GroupAdvantage",
    "MixedRatio",
    "RewardToGo",
    "RolloutBatch",
    "SequenceRatio",
    "TokenRatio",
    "TokenReward",
    "Truncated",
    "balanced_weights",
    "group_advantage",
    "some_spread",
]
