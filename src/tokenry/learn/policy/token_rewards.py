"""Token rewards: a sequence's reward as one number per token, with the pull to the reference.

    r_t = dense_t  -  kl (log pi_old(y_t|s_t) - log pi_ref(y_t|s_t))  +  [t = last] R(x, y)

pi_old is the policy that wrote y, pi_ref the reference, `last` the last target token (the end of
the text when it was written). Summed over a text and averaged over samples this is
E[dense + R] - kl KL(pi_old || pi_ref): the log-ratio of the token that came is the unbiased
estimate of the KL from one sample. Everything here is a constant: no gradient flows into rewards.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokenry.core.aggregate import full_precision
from tokenry.core.errors import ShapeError
from tokenry.learn.policy.advantages import masked


@torch.no_grad()
def token_rewards(
    mask: Tensor,
    reward: Tensor | None = None,
    *,
    old_logprob: Tensor | None = None,
    reference_logprob: Tensor | None = None,
    kl: float = 0.0,
    dense: Tensor | None = None,
    reward_clamp: float | None = None,
) -> Tensor:
    """Rewards of the tokens in `mask` [B, T], 0 elsewhere.

    reward: [B], R. old_logprob, reference_logprob: [B, T], needed when kl is not 0. kl: weight of
    the KL penalty, >= 0. dense: [B, T], rewards of single tokens. reward_clamp: R is kept within
    +- this. A row without targets has nowhere to put its reward.
    """
    total = torch.zeros(mask.shape, device=mask.device)
    if dense is not None:
        total = total + masked(dense, mask)
    if kl != 0:
        if old_logprob is None or reference_logprob is None:
            raise ShapeError("a KL penalty needs old_logprob and reference_logprob, [B, T] each")
        total = total - kl * (masked(old_logprob, mask) - masked(reference_logprob, mask))
    if reward is not None:
        if reward_clamp is not None:
            reward = reward.clamp(-reward_clamp, reward_clamp)
        total = total + at_last(reward, mask)
    return total


def at_last(reward: Tensor, mask: Tensor) -> Tensor:
    """Each row's reward [B] on its last target token, 0 elsewhere, [B, T]."""
    if reward.shape != mask.shape[:1]:
        raise ShapeError(
            f"a sequence reward is one number per row, [{len(mask)}]; got {[*reward.shape]}"
        )
    reward = full_precision(reward).to(mask.device)
    return torch.where(last_target(mask), reward[:, None], 0.0)


def last_target(mask: Tensor) -> Tensor:
    """True on the last target token of each row, [B, T]."""
    return mask & (mask.flip(-1).cumsum(-1).flip(-1) == 1)
