"""f-DPG: a policy gradient towards an explicit target distribution, in any f-divergence.

    p(x)      = P(x) / Z,      P(x) = a(x) b(x)  or  a(x) exp( sum_i w_i phi_i(x) )
    gradient  of D(p || pi)  =  E_{x ~ pi}[ g'(t) grad log pi(x) ],       t = pi(x) / p(x)
    R(x)      = -g'(t)                                   pseudo-reward, a constant
    loss      = - mean_i  [ pi(x_i) / q(x_i) ] ( R(x_i) - B ),            x_i ~ q

a is the frozen reference, b a constraint (0 or 1), phi features or rewards with weights w, pi the
policy, q the distribution that the samples come from (the policy itself before the update), g' the
derivative of the divergence. log Z is the running mean of P / q over every sample ever drawn for a
prompt; the baseline B is the mean of the last 1,024 pseudo-rewards before this batch, so that it
biases nothing. With

    forward_kl          R = P / (Z pi) - 1        DPG, GDC: cover the target, collapse little
    reverse_kl          R = log P / (Z pi)        RL with a KL penalty (w = 1 / beta): seek a mode
    jensen_shannon_sum  R = softplus(log P / (Z pi)) - ln 2        between the two, bounded below
    total_variation     R = +1/2 below the target, -1/2 above

    tokenry train --objective f-dpg --reward rules.py:polite ...

Source: Aligning Language Models with Preferences through f-divergence Minimization (arXiv
2302.08215). The importance ratio is kept within exp(+-20), and its gradient is that of
w log pi with a constant w.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from tokenry.core.aggregate import full_precision
from tokenry.core.batch import TokenBatch
from tokenry.core.checks import in_range, within
from tokenry.core.divergences import divergence_named
from tokenry.core.errors import InputError
from tokenry.core.f_divergence import FDivergence
from tokenry.core.scores import Scores
from tokenry.learn.objective import Loss, Objective, Unit, objective
from tokenry.learn.policy.advantages import masked
from tokenry.learn.policy.rollout_batch import finite_rewards
from tokenry.learn.policy.surrogate import LARGEST_LOG_RATIO, importance_ratio
from tokenry.learn.policy.target import RunningTarget, prompt_keys

WATCHED = ("forward_kl", "reverse_kl", "total_variation", "jensen_shannon")


def f_dpg_loss(policy_logprob: Tensor, proposal_logprob: Tensor, advantage: Tensor) -> Tensor:
    """Loss of each sample, [B], from log pi(x), log q(x) and the constant R - B, [B] each."""
    return -advantage.detach() * importance_ratio(policy_logprob, proposal_logprob)


@torch.no_grad()
def pseudo_reward(policy_logprob: Tensor, log_target: Tensor, divergence: FDivergence) -> Tensor:
    """R, [B], from log pi(x) and log p(x) = log P(x) - log Z, -inf where p is 0."""
    return -divergence.derivative(full_precision(policy_logprob) - full_precision(log_target))


@objective("f-dpg", paper=171)
@dataclass(frozen=True)
class FDPG(Objective):
    """f-divergence Distributional Policy Gradient. On-policy; the rewards define the target.

    Z belongs to a prompt and is a mean over its samples: draw many of each (or use one prompt).

    f_divergence: a name of `core.divergences` or an `FDivergence`: D(target || policy).
    weights: one per reward function, for the target a exp(weights . rewards); (1 / beta,) is RL
        with a KL penalty of beta, and `target.fit_weights` finds those that give the rewards
        wanted means. Empty (the default): the one reward is a constraint, met where it is positive.
    slack: what a text that violates the constraint keeps of its probability, before normalisation;
        in [0, 1), and positive under divergences that are infinite otherwise, such as reverse_kl.
    window: samples that the baseline remembers, whole, in [1, inf).
    prompts: how many prompts' Z are remembered, whole, in [1, inf).
    """

    f_divergence: FDivergence | str = "jensen_shannon_sum"
    weights: tuple[float, ...] = ()
    slack: float = 0.0
    window: int = 1024
    prompts: int = 4096

    needs: ClassVar[tuple[str, ...]] = ("policy.logprob", "token.old_logprob", "row.advantage")
    rollout_needs: ClassVar[tuple[str, ...]] = ("policy.logprob", "reference.logprob")
    unit: ClassVar[Unit] = "row"

    def __post_init__(self) -> None:
        object.__setattr__(self, "weights", tuple(self.weights))
        for weight in self.weights:
            in_range("each of the weights", weight, "(-inf, inf)")
        within(self, "[0, 1)", "slack")
        within(self, "[1, inf)", "window", "prompts", integer=True)
        nowhere = torch.full((1,), -math.inf), torch.zeros(1)
        if not self.weights and not self.slack and self.divergence_to.slope(*nowhere).isinf():
            raise InputError(
                f"{self.divergence_to.name} to a constraint is infinite as long as the policy can "
                "violate it: give slack > 0 (1e-4), or another f_divergence"
            )

    @property
    def divergence_to(self) -> FDivergence:
        kind = self.f_divergence
        return divergence_named(kind) if isinstance(kind, str) else kind

    def modules(self, model: Any) -> RunningTarget:
        """Running state beside the policy: no weights."""
        return RunningTarget(self.window, self.prompts)

    @torch.no_grad()
    def prepare(
        self,
        batch: TokenBatch,
        policy: Scores,
        reference: Scores | None,
        modules: RunningTarget | None = None,
        **_: object,
    ) -> TokenBatch:
        """The batch with advantages, and each sample's share of the divergences to the target."""
        if reference is None or modules is None:
            raise InputError("f-DPG needs a reference, the target's base, and its own `modules`")
        old = masked(policy.need("logprob"), batch.target)
        base = masked(reference.need("logprob"), batch.target)
        given = finite_rewards(batch.column("reward"))
        log_q, log_target = old.sum(-1), base.sum(-1) + self.log_score(given)
        log_z = modules.log_z(prompt_keys(batch), log_target - log_q)
        known = log_z > -math.inf  # no update before the first sample that the target allows
        log_target = log_target - log_z.masked_fill(~known, 0.0)
        reward = pseudo_reward(log_q, log_target, self.divergence_to)
        advantage = (reward - modules.baseline(reward)).masked_fill(~known, 0.0)
        modules.remember(reward[known])
        log_u = (log_target - log_q).clamp_max(LARGEST_LOG_RATIO)
        columns = {
            f"to_target/{name}": divergence_named(name).f(log_u)
            for name in WATCHED
            if name != "reverse_kl" or self.weights or self.slack
        }
        return batch.with_columns(old_logprob=old, advantage=advantage, **columns)

    def log_score(self, reward: Tensor) -> Tensor:
        """log of the target's factor on the reference, [B], from rewards [B] or [B, n]."""
        if self.weights:
            columns = reward[:, None] if reward.ndim == 1 else reward
            if columns.shape[1] != len(self.weights):
                raise InputError(
                    f"{len(self.weights)} weights for {columns.shape[1]} reward functions: give "
                    "one each"
                )
            return columns.float() @ columns.new_tensor(self.weights).float()
        if reward.ndim > 1:
            raise InputError(
                f"a constraint is one reward function, there are {reward.shape[1]}; give weights"
            )
        floor = math.log(self.slack) if self.slack else -math.inf
        return torch.where(reward > 0, 0.0, floor)

    def __call__(
        self, batch: TokenBatch, policy: Scores, reference: Scores | None = None, **_: object
    ) -> Loss:
        own = masked(policy.need("logprob"), batch.target).sum(-1)
        old = masked(batch.column("old_logprob"), batch.target).sum(-1)
        advantage = batch.column("advantage")
        losses = f_dpg_loss(own, old, advantage)
        metrics = {"loss": losses.detach(), "advantage": advantage.float()}
        metrics |= {k: v for k, v in batch.columns.items() if k.startswith("to_target/")}
        return Loss(losses.mean(), metrics)
