"""PPO for language models: KL-penalised rewards, advantages, a clipped surrogate.

    r_t   = -kl (log pi_old(y_t|s_t) - log pi_ref(y_t|s_t)) + [t = last] R(x, y)
    A     = whitened gae(r, V; gamma, lam)
    loss  = - mean_t min( u_t A_t, clip(u_t, 1 - clip, 1 + clip) A_t ),    u_t = pi(y_t)/pi_old(y_t)

over the target tokens t of the batch. The texts y are sampled from pi_old, the policy before this
round of updates; R is the reward of a whole text, pi_ref the frozen reference. V is a critic, a
linear head on the policy's own last hidden state that is trained along, or without one
(`critic=False`) the mean reward-to-go of all texts of the batch at the same position.

Sources: Proximal Policy Optimization Algorithms (arXiv 1707.06347); its use on language models,
Training Language Models to Follow Instructions with Human Feedback (arXiv 2203.02155). The
baseline of the family; methods that differ from it in the reward only replace `reward`.
"""

from __future__ import annotations

from dataclasses import dataclass

from tokenry.core.checks import within
from tokenry.learn.objective import objective
from tokenry.learn.policy.critic import Critic
from tokenry.learn.policy.gradient import PolicyGradient, Preset
from tokenry.learn.policy.returns import GAE, Reward, TokenReward
from tokenry.learn.policy.surrogate import Clip, TokenRatio


@objective("ppo", paper=None)
@dataclass(frozen=True)
class PPO(Preset):
    """Proximal Policy Optimization, the baseline of the on-policy family.

    kl: weight of the penalty on leaving the reference, per nat, in [0, inf).
    clip: how far the ratio to the sampling policy may move before its gradient stops, in (0, 1).
    gamma, lam: discount, and the bias-variance trade of the advantages, in [0, 1].
    reward_clamp: bound on the size of R, in (0, inf); None leaves it alone.
    critic: learn V with a linear head; False takes the batch's mean at each position.
    value_weight: of the critic's loss, whose gradient also reaches the policy's hidden states, in
        [0, inf). value_clip: how far a value may move in it, in (0, inf).
    """

    kl: float = 0.05
    clip: float = 0.2
    gamma: float = 1.0
    lam: float = 0.95
    reward_clamp: float | None = None
    critic: bool = False
    value_weight: float = 0.1
    value_clip: float = 0.2

    def __post_init__(self) -> None:
        within(self, "[0, inf)", "kl", "value_weight")
        within(self, "(0, 1)", "clip")
        within(self, "[0, 1]", "gamma", "lam")
        within(self, "(0, inf)", "value_clip")
        within(self, "(0, inf)", "reward_clamp", optional=True)

    @property
    def reward(self) -> Reward:
        """The tokens' rewards, an axis."""
        return TokenReward(self.kl, self.reward_clamp)

    def composed(self) -> PolicyGradient:
        critic = Critic(1, self.value_weight, self.value_clip) if self.critic else None
        return PolicyGradient(
            GAE(self.reward, self.gamma, self.lam, critic),
            TokenRatio(),
            Clip(self.clip, self.clip),
            aggregation="token-mean",
        )
