"""What one draw of rollouts says, for the log: sums and numbers, which add up over processes.

    completions/length        tokens that the policy chose; .../right and .../wrong, apart
    completions/cut           share that ended at max_new_tokens, without an end token
    completions/left_out      share that no update learns from, whatever the reason
    rewards/left_out          share without a reward, because functions failed or had no opinion
    rewards/mean              of a completion; of several functions the sum
    rewards/spread            standard deviation (n - 1) in a group of two or more, mean over groups
    rewards/NAME/mean, rewards/NAME/spread        the same of one of several functions
    groups/without_spread     share of groups whose rewards are equal (`groups.has_spread`)
    pass@k                    mean over groups of 1 - C(n - c, k) / C(n, k): the chance that k of
                              the n completions of a group hold one of its c right ones
    entropy                   of the policy at its tokens, nats
    kl/reference              KL(policy || reference), nats a token, by k3 on the policy's tokens

Right is a completion whose reward is at least `RolloutSettings.pass_reward`; where that is None
there are no right ones to speak of. Source of pass@k: Evaluating Large Language Models Trained on
Code (arXiv 2107.03374), eq. 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from tokenry.core.batch import TokenBatch
from tokenry.core.kl_estimators import k3
from tokenry.learn.policy.groups import has_spread, over_group
from tokenry.learn.policy.rollout_batch import RolloutBatch
from tokenry.learn.policy.rollouts import REWARD_GIVEN
from tokenry.measure.probes.critical_tokens import pass_at_k


def draw_metrics(
    drawn: TokenBatch,
    scored: TokenBatch,
    learned: TokenBatch,
    names: Sequence[str] = (),
    *,
    samples: int = 1,
    cut: Tensor | None = None,
    pass_reward: float | None = None,
    policy: Any = None,
    reference: Any = None,
) -> dict[str, Tensor]:
    """{name: [2] float64, the sum of what is measured and its number, which is not 0}.

    Args:
        drawn: all completions. scored: those that have a reward, with it. learned: those that the
            objective keeps. A single row without targets stands for none.
        names: of the reward functions; without any there are no metrics of rewards.
        samples: of a prompt, the largest k.
        cut: [rows of drawn] bool, None where nothing can be cut.
        pass_reward: the reward of a right completion, at least; None: no metrics of right ones.
        policy: scores of the policy, of `scored`, where there are any.
        reference: scores of the reference, of `scored`, where there are any.
    """
    measured: dict[str, Tensor] = {}

    def note(name: str, values: Tensor) -> None:
        if values.numel():
            total = values.detach().double().sum().cpu()
            measured[name] = torch.stack([total, total.new_tensor(values.numel())])

    note("completions/length", drawn.target.sum(-1))
    if cut is not None:
        note("completions/cut", cut)
    kept = int(learned.target.any(-1).sum())
    note("completions/left_out", torch.arange(len(drawn.ids)) >= kept)
    if names:
        rewarded = scored.target.any(-1)
        note("rewards/left_out", torch.arange(len(drawn.ids)) >= int(rewarded.sum()))
        rollouts = RolloutBatch(scored.select(rewarded))
        if len(rollouts.mask):
            for name, values in _of_rewards(rollouts, names):
                note(name, values)
            if pass_reward is not None:
                for name, values in _of_right(rollouts, pass_reward, samples):
                    note(name, values)
    if policy is not None and policy.entropy is not None:
        note("entropy", policy.entropy[scored.target])
    if policy is not None and reference is not None and reference.logprob is not None:
        shift = policy.logprob[scored.target] - reference.logprob[scored.target]
        note("kl/reference", k3(shift))
    return measured


def _of_rewards(rollouts: RolloutBatch, names: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
    total, group = rollouts.total_reward, rollouts.group
    yield "rewards/mean", total
    yield "rewards/spread", _spread(total, group)
    yield "groups/without_spread", ~has_spread(total, group)[_first(group)]
    if len(names) < 2:
        return
    given = rollouts.batch.columns.get(
        REWARD_GIVEN, torch.ones_like(rollouts.reward, dtype=torch.bool)
    )
    for number, name in enumerate(names):
        # two functions of one name are told apart by their place
        label = f"{name} {number + 1}" if list(names).count(name) > 1 else name
        has = given[:, number]
        yield f"rewards/{label}/mean", rollouts.reward[has, number]
        yield f"rewards/{label}/spread", _spread(rollouts.reward[has, number], group[has])


def _of_right(rollouts: RolloutBatch, least: float, samples: int) -> Iterator[tuple[str, Tensor]]:
    right, group = rollouts.total_reward >= least, rollouts.group
    length = rollouts.mask.sum(-1)
    yield "completions/length/right", length[right]
    yield "completions/length/wrong", length[~right]
    first = _first(group)
    sizes = over_group(torch.ones_like(group), group)[first].tolist()
    counts = over_group(right.long(), group)[first].tolist()
    for k in sorted({2**n for n in range(samples.bit_length())} | {samples}):
        rates = [pass_at_k(n, c, k) for n, c in zip(sizes, counts, strict=True) if n >= k]
        yield f"pass@{k}", torch.tensor(rates, dtype=torch.float64)


def _spread(values: Tensor, group: Tensor) -> Tensor:
    """The standard deviation (n - 1) of each group of two or more."""
    if not len(values):
        return values
    size = over_group(torch.ones_like(values), group)
    centred = values - over_group(values, group) / size
    first = _first(group)
    first = first[size[first] > 1]
    return (over_group(centred.square(), group)[first] / (size[first] - 1)).sqrt()


def _first(group: Tensor) -> Tensor:
    """The place of one row of each group."""
    peers = group.unique(return_inverse=True)[1]
    place = torch.arange(len(group), device=group.device)
    return place.new_zeros(int(peers.max()) + 1).scatter(0, peers, place)
