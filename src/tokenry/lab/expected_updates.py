"""What a policy objective really optimises: its expected gradient, exactly, over all groups.

    G(y_1 .. y_n) = -grad loss of that group                    the update that one prompt leads to
    E G     = sum over groups of  prod_i pi_old(y_i)  G
    spread  = sqrt( E |G - E G|^2 ) / |E G|                     noise of one group to its signal

compared with the policy gradient proper, g = grad sum_y pi(y) R(y): the direction (the cosine of
the two) and the length (|E G| / |g|). A biased objective has a cosine below 1, and an objective
that learns nothing on average a length of 0.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tokenry.learn.objective import Objective
from tokenry.tasks.worlds.enumerable import EnumerableWorld


@dataclass(frozen=True)
class ExpectedUpdate:
    """The update of one group, on average: `mean` [contexts, V], and `variance` = E |G - E G|^2."""

    mean: Tensor
    variance: float

    @property
    def spread(self) -> float:
        length = float(self.mean.norm())
        return math.sqrt(self.variance) / length if length else math.inf

    def cosine(self, other: Tensor) -> float:
        """With another gradient, in [-1, 1]; 0 where one of the two is 0."""
        lengths = self.mean.norm() * other.norm()
        return float((self.mean * other).sum() / lengths) if lengths else 0.0


def policy_gradient(world: EnumerableWorld, table: Tensor) -> Tensor:
    """The gradient of the expected reward, [contexts, V]."""
    table = table.detach().requires_grad_()
    return torch.autograd.grad((world.probability(table) * world.reward).sum(), table)[0]


def expected_update(
    objective: Objective,
    world: EnumerableWorld,
    old: Tensor,
    table: Tensor | None = None,
    *,
    size: int = 4,
    frozen: Mapping[str, Tensor] | None = None,
) -> ExpectedUpdate:
    """An objective's update, summed over all groups of completions of one prompt.

    Args:
        objective: one that learns from rollouts, indifferent to the order of a group.
        world: whose completions and rewards.
        old: logits of the policy that wrote the completions, [contexts, V].
        table: of the policy that is updated; None: the same.
        size: completions of a group.
        frozen: logits of frozen models, by name ("reference", ...).

    Returns:
        Mean and variance over groups; each group is listed once, with how often it comes in any
        order.
    """
    table = (old if table is None else table).detach().requires_grad_()
    old, frozen = old.detach(), {name: logits.detach() for name, logits in (frozen or {}).items()}
    modules = objective.modules(None)
    chance = world.probability(old)
    mean, square = torch.zeros_like(table), 0.0
    for chosen in itertools.combinations_with_replacement(range(len(world.texts)), size):
        weight = float(_orders(chosen) * chance[list(chosen)].prod())
        loss = group_loss(objective, world, chosen, old, table, frozen, modules)
        if not loss.requires_grad:
            continue  # the objective has nothing to learn from this group
        update = -torch.autograd.grad(loss, table)[0]
        mean += weight * update
        square += weight * float(update.square().sum())
    return ExpectedUpdate(mean, max(square - float(mean.square().sum()), 0.0))


def group_loss(
    objective: Objective,
    world: EnumerableWorld,
    chosen: tuple[int, ...],
    old: Tensor,
    table: Tensor,
    frozen: Mapping[str, Tensor],
    modules: Any = None,
    **columns: Tensor,
) -> Tensor:
    """The loss of one group of texts that `old` wrote, under `table`.

    columns: of the texts beside those of the world, or instead of them.
    """
    batch = world.batch(chosen).with_columns(**columns)
    others: dict[str, Any] = {name: world.scores(t, chosen) for name, t in frozen.items()}
    if modules is not None:
        others["modules"] = modules
    reference = others.pop("reference", None)
    ready = objective.prepare(batch, world.scores(old, chosen), reference, **others)
    own = world.scores(table, chosen[: len(ready.ids)])  # fewer when nothing was kept
    return objective(ready, own, reference, **others).loss


def _orders(chosen: tuple[int, ...]) -> int:
    """In how many orders a group can come."""
    counts = Counter(chosen).values()
    return math.factorial(len(chosen)) // math.prod(math.factorial(count) for count in counts)
