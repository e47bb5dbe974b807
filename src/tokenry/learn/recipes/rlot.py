"""Training RLoT's navigator: a double DQN on reasonings side by side.

    y    = r + gamma (1 - done) Q_target(s', argmax over allowed a of Q_online(s', a))
    loss = mean over a batch from the replay of huber( Q_online(s, a) - y )

Each update takes every running reasoning one action further, epsilon-greedily, keeps what happened,
and learns from a batch of what is kept. The target network is a copy that is renewed now and then.

Source: RL of Thoughts: Navigating LLM Reasoning with Inference-time Reinforcement Learning (arXiv
2505.14140). Reconstructed: gamma, the replay, epsilon, the batches, and when the copy is renewed.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import smooth_l1_loss

from tokenry.core.checks import within
from tokenry.decode.routing.rlot import Constraints, DuelingQNetwork, Navigator
from tokenry.learn.fit import fit
from tokenry.learn.replay import Replay
from tokenry.tasks.reasoning_blocks import Environment, Observation


class Transitions(NamedTuple):
    """N steps. grades, next_grades: [N, 7]. action: [N] long. reward: [N]. done: [N] bool. allowed:
    [N, 5] bool, of the next action."""

    grades: Tensor
    action: Tensor
    reward: Tensor
    next_grades: Tensor
    done: Tensor
    allowed: Tensor


def double_dqn_target(
    online: nn.Module, target: nn.Module, seen: Transitions, gamma: float
) -> Tensor:
    """y [N], a constant: the online network chooses, the target network values."""
    with torch.no_grad():
        chosen = online(seen.next_grades).masked_fill(~seen.allowed, -torch.inf).argmax(-1)
        value = target(seen.next_grades).gather(-1, chosen[:, None])[:, 0]
        return seen.reward + gamma * torch.where(seen.done, 0.0, value)


def double_dqn_loss(
    online: nn.Module, target: nn.Module, seen: Transitions, gamma: float
) -> Tensor:
    """Scalar; see the module. gamma: in [0, 1]."""
    values = online(seen.grades).gather(-1, seen.action[:, None])[:, 0]
    return smooth_l1_loss(values, double_dqn_target(online, target, seen, gamma))


@dataclass(frozen=True)
class NavigatorTraining:
    """How a navigator is trained.

    Args:
        updates: of the network, in [1, inf).
        parallel: reasonings side by side, in [1, inf).
        gamma: discount, in [0, 1].
        learning_rate: of Adam, in (0, inf).
        batch_size: transitions of an update, in [1, inf).
        replay: transitions that are kept, the newest, in [1, inf).
        renew: updates between copies to the target network, in [1, inf).
        epsilon: share of random actions in the end, in [0, 1]; it falls from 1 over the first half.
        seed: of all.
    """

    updates: int = 2000
    parallel: int = 8
    gamma: float = 0.95
    learning_rate: float = 1e-3
    batch_size: int = 64
    replay: int = 10_000
    renew: int = 100
    epsilon: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        sizes = ("updates", "parallel", "batch_size", "replay", "renew")
        within(self, "[1, inf)", *sizes, integer=True)
        within(self, "[0, 1]", "gamma", "epsilon")
        within(self, "(0, inf)", "learning_rate")

    def __call__(self, environment: Environment, constraints: Constraints) -> Navigator:
        """A navigator trained on an environment, of which only the rewards are seen."""
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)  # torch initialises layers from the global generator
            online = DuelingQNetwork()
        target = copy.deepcopy(online)
        navigator = Navigator(online, constraints)
        running: list[Observation] = []
        ended = torch.zeros(self.parallel, dtype=torch.bool)
        replay = Replay(self.replay)

        def loss(update: int, generator: torch.Generator) -> Tensor:
            if update % self.renew == 0:
                target.load_state_dict(online.state_dict())
            if not running:
                running.append(environment.reset(self.parallel, generator))
                ended.fill_(False)
            seen = running.pop()
            epsilon = max(self.epsilon, 1 - 2 * update / self.updates * (1 - self.epsilon))
            actions = navigator.act(seen, epsilon, generator)
            after, reward, done = environment.step(actions, generator)
            step = Transitions(
                seen.grades, actions, reward, after.grades, done, constraints.allowed(after)
            )
            replay.add([column[~ended] for column in step])
            ended.logical_or_(done)
            if not bool(ended.all()):
                running.append(after)
            batch = Transitions(*replay.draw(self.batch_size, generator))
            return double_dqn_loss(online, target, batch, self.gamma)

        fit(
            loss,
            online,
            steps=self.updates,
            learning_rate=self.learning_rate,
            optimizer=torch.optim.Adam,
            clip=None,
            seed=self.seed,
        )
        return Navigator(online.eval().requires_grad_(False), constraints)
