"""The baseline of several rewards: the mixture of their gradients, and what it costs."""

import pytest
import torch

from tokenry.lab.on_policy_world import train_on_policy
from tokenry.lab.two_rewards import ExactMGDA
from tokenry.learn.policy.pama import PAMA

PROMPTS = torch.tensor([[5, 9], [5, 11], [6, 9]])


@pytest.mark.parametrize(("objective", "passes"), [(ExactMGDA(kl=0.0), 3), (PAMA(kl=0.0), 1)])
def test_mgda_takes_a_backward_pass_for_each_reward_and_one_more(objective, passes, tiny_llama):
    seen = []

    def watch(step, policy):
        if step == 0:
            next(policy.parameters()).register_hook(seen.append)

    def opposed(batch):
        count = ((batch.ids >= 32) & batch.target).sum(-1).float()
        return torch.stack([count, -count], -1)

    train_on_policy(
        objective, tiny_llama, PROMPTS, opposed, tiny_llama, steps=1, batch_size=8,
        max_new_tokens=4, measure=watch,
    )  # fmt: skip
    assert len(seen) == passes
    if passes == 3:  # gradients that are opposed leave nothing: the shortest mixture is 0
        assert float(seen[-1].abs().max()) < 1e-6 < float(seen[0].abs().max())
