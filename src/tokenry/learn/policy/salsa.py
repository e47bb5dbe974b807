"""SALSA: PPO held to the average of two fine-tuned models instead of to one of them.

    theta_soup = alpha theta_1 + (1 - alpha) theta_2          every weight tensor, alpha = 1/2
    maximise    E_{y ~ pi_theta}[ R(x, y) ] - kl KL( pi_theta(.|x) || pi_soup(.|x) )

theta_1 and theta_2 come from one pretrained model by two fine-tuning runs with different seeds; the
policy begins at theta_1 and the soup is frozen. Both lie in one basin of the loss, whose middle is
better than either end, so the ball of allowed divergence sits at a better place, and the policy
begins at its edge: its first KL penalty is positive where PPO's is 0.

There is no new loss: the objective is PPO's, the soup is its reference. A run's settings name the
two models, which are averaged when it begins; `model.averaging.soup_models` does it by hand.

    objective: salsa
    model: runs/sft-1
    reference: [runs/sft-1, runs/sft-2]

Source: SALSA: Soup-based Alignment Learning for Stronger Adaptation in RLHF (arXiv 2411.01798).
The token-level form (penalty per token, terminal reward, then PPO) is the usual one, reconstructed.
"""

from __future__ import annotations

from dataclasses import dataclass

from tokenry.learn.objective import objective
from tokenry.learn.policy.ppo import PPO


@objective("salsa", paper=48)
@dataclass(frozen=True)
class SALSA(PPO):
    """KL-regularised PPO whose reference is the average of fine-tuned models.

    kl: strength of the pull towards the soup, in [0, inf); it may be larger than with PPO, whose
        reference is the policy's own start. Everything else as in PPO.
    """
