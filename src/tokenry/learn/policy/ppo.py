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
baseline of the family; methods that differ from it in the reward only replace `rewards`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from tokenry.core.aggregate import aggregate
from tokenry.core.batch import TokenBatch
from tokenry.core.checks import within
from tokenry.core.errors import InputError
from tokenry.core.scores import Scores
from tokenry.learn.objective import Loss, Objective, Unit, objective
from tokenry.learn.policy.advantages import gae, positional_baseline, reward_to_go, whiten
from tokenry.learn.policy.surrogate import (
    clip_surrogate,
    clipped_value_loss,
    importance_ratio,
    unclipped,
)
from tokenry.learn.policy.token_rewards import token_rewards


@objective("ppo", paper=None)
@dataclass(frozen=True)
class PPO(Objective):
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

    unit: ClassVar[Unit] = "token"

    def __post_init__(self) -> None:
        within(self, "[0, inf)", "kl", "value_weight")
        within(self, "(0, 1)", "clip")
        within(self, "[0, 1]", "gamma", "lam")
        within(self, "(0, inf)", "value_clip")
        within(self, "(0, inf)", "reward_clamp", optional=True)

    @property
    def needs(self) -> tuple[str, ...]:
        plain = ("policy.logprob", "token.advantage", "token.old_logprob")
        return (*plain, *CRITIC_NEEDS) if self.critic else plain

    @property
    def rollout_needs(self) -> tuple[str, ...]:
        plain = ("policy.logprob", "reference.logprob")
        return (*plain, "policy.hidden") if self.critic else plain

    def modules(self, model: Any) -> nn.ModuleDict:
        """The critic's head, one value per state; without a critic nothing."""
        return nn.ModuleDict({"critic": value_head(model, 1)} if self.critic else {})

    def rewards(
        self, batch: TokenBatch, policy: Scores, reference: Scores | None, **others: Any
    ) -> Tensor:
        """Each token's reward, [B, T]; `policy` is the one that wrote the batch."""
        return token_rewards(
            batch.target,
            batch.column("reward"),
            old_logprob=policy.need("logprob"),
            reference_logprob=logprob_of("reference", reference),
            kl=self.kl,
            reward_clamp=self.reward_clamp,
        )

    def prepare(
        self,
        batch: TokenBatch,
        policy: Scores,
        reference: Scores | None,
        modules: nn.ModuleDict | None = None,
        **others: Any,
    ) -> TokenBatch:
        """The batch with advantages and the sampling policy's log-probabilities."""
        rewards = self.rewards(batch, policy, reference, **others)
        value = values_of(modules, policy)[..., 0] if self.critic else None
        advantage, baseline, returns = estimate(rewards, batch.target, self.gamma, self.lam, value)
        columns = {
            "advantage": whiten(advantage, batch.target).float(),
            "old_logprob": policy.need("logprob").detach(),
        }
        if self.critic:
            columns |= {"value": baseline, "return": returns}
        return batch.with_columns(**columns)

    def __call__(
        self,
        batch: TokenBatch,
        policy: Scores,
        reference: Scores | None = None,
        modules: nn.ModuleDict | None = None,
        **others: Any,
    ) -> Loss:
        ratio = importance_ratio(policy.need("logprob"), batch.column("old_logprob"), batch.target)
        advantage = batch.column("advantage").masked_fill(~batch.target, 0.0)
        surrogate = clip_surrogate(ratio, advantage, self.clip, self.clip)
        loss = -aggregate(surrogate, batch.target, "token-mean")
        metrics = surrogate_metrics(ratio, advantage, self.clip, batch.target)
        if self.critic:
            value = values_of(modules, policy)[..., 0]
            errors = clipped_value_loss(
                value, batch.column("value"), batch.column("return"), self.value_clip
            )
            value_loss = aggregate(errors, batch.target, "token-mean")
            loss = loss + self.value_weight * value_loss
            metrics["value/loss"] = value_loss.detach()
        return Loss(loss, metrics)


CRITIC_NEEDS = ("policy.hidden", "token.value", "token.return")


def estimate(
    rewards: Tensor, mask: Tensor, gamma: float, lam: float, value: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Advantages (not whitened), values and returns; without values the positional baseline."""
    if value is None:
        value = positional_baseline(reward_to_go(rewards, mask, gamma), mask)
    value = value.detach().masked_fill(~mask, 0.0)
    advantage, returns = gae(rewards, value, mask, gamma, lam)
    return advantage, value, returns


def surrogate_metrics(
    ratio: Tensor, advantage: Tensor, clip: float, mask: Tensor
) -> dict[str, Tensor]:
    """How far the policy has moved since it wrote the batch: means over target tokens."""
    outside = ~unclipped(ratio, advantage, clip, clip)
    return {
        "clip_fraction": aggregate(outside.float(), mask, "token-mean"),
        "kl/old": aggregate(-ratio.detach().log(), mask, "token-mean"),
    }


def value_head(model: Any, values: int) -> nn.Linear:
    """A linear map from the last hidden state to `values` values that begins at 0."""
    head = nn.Linear(model.config.hidden_size, values)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head


def values_of(modules: nn.ModuleDict | None, policy: Scores) -> Tensor:
    """Values of every state, [B, T, n], float32."""
    if modules is None:
        raise InputError("a critic needs its head: pass objective.modules(model) as modules=")
    return modules["critic"](policy.need("hidden").float())


def logprob_of(name: str, scores: Scores | None) -> Tensor:
    """The log-probabilities of a frozen model that must be there."""
    if scores is None:
        raise InputError(f"this objective needs the scores of a frozen model, the {name}")
    return scores.need("logprob")
