"""A token tree that can be enumerated: the soft Q-function of language, exactly.

Texts are all `depth` tokens long, over a vocabulary of A tokens, so the states of the token-level
decision process are the nodes of a full tree. With the reward r(s, a) of each token and the
reference policy, the maximiser of E[sum r] - beta KL(pi || pi_ref) is found from the leaves up:

    Q(s, a) = r(s, a) + beta log pi_ref(a | s) + V(s')          V = 0 after the last token
    V(s)    = beta log sum_a exp(Q(s, a) / beta)
    pi(a | s) = exp((Q(s, a) - V(s)) / beta)

so that beta log(pi / pi_ref) = r(s, a) + V(s') - V(s): every token's advantage, the credit that a
preference-trained policy gives it. Summed over a text it is R(y) - V(start), and pi(y) is
pi_ref(y) exp(R(y) / beta), normalised.

Source: From r to Q*: Your Language Model is Secretly a Q-Function (arXiv 2404.12358).

A quantity of every token of the tree is a `Levels`: one tensor [A^d, A] for each depth d, whose
row is the node (its tokens read as a number in base A) and whose column is the next token.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tokenry.core.errors import InputError, ShapeError

Levels = list[Tensor]


@dataclass(frozen=True)
class RewardTree:
    """All texts of `depth` tokens with the reference's log-probabilities and the tokens' rewards.

    reference, reward: `Levels`. Build a random one with `random`.
    """

    reference: Levels
    reward: Levels

    def __post_init__(self) -> None:
        size = self.reference[0].shape[-1]
        for name in ("reference", "reward"):
            shapes = [list(level.shape) for level in getattr(self, name)]
            wanted = [[size**depth, size] for depth in range(len(self.reference))]
            if shapes != wanted:
                raise ShapeError(f"{name} must have levels of shape {wanted}, got {shapes}")

    @classmethod
    def random(
        cls, seed: int = 0, vocabulary: int = 3, depth: int = 4, terminal: bool = False
    ) -> RewardTree:
        """Normal rewards and logits; `terminal` leaves only the last token's reward."""
        generator = torch.Generator().manual_seed(seed)

        def level(depth: int) -> Tensor:
            shape = (vocabulary**depth, vocabulary)
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        reward = [level(d) for d in range(depth)]
        if terminal:
            reward = [torch.zeros_like(values) for values in reward[:-1]] + reward[-1:]
        return cls([level(d).log_softmax(-1) for d in range(depth)], reward)

    @property
    def vocabulary(self) -> int:
        return self.reference[0].shape[-1]

    @property
    def depth(self) -> int:
        return len(self.reference)

    @property
    def leaves(self) -> Tensor:
        """Every text, [A^depth, depth]."""
        tokens = torch.arange(self.vocabulary)
        texts = torch.cartesian_prod(*[tokens] * self.depth)
        return texts.view(-1, self.depth)

    def along(self, levels: Levels, texts: Tensor | None = None) -> Tensor:
        """The values of each text's tokens, [N, depth]; by default of all leaves."""
        texts = self.leaves if texts is None else texts
        node = torch.zeros(len(texts), dtype=torch.long)
        values = []
        for depth, level in enumerate(levels):
            values.append(level[node, texts[:, depth]])
            node = node * self.vocabulary + texts[:, depth]
        return torch.stack(values, 1)


@dataclass(frozen=True)
class SoftOptimum:
    """q, policy (log-probabilities), advantage: `Levels`. v: [A^d] for each depth d = 0 .. depth.

    advantage: beta log(policy / reference), the credit of each token.
    """

    q: Levels
    v: list[Tensor]
    policy: Levels
    advantage: Levels


def soft_backup(tree: RewardTree, beta: float) -> SoftOptimum:
    """The optimum of E[reward] - beta KL(pi || reference) on the tree, exactly."""
    if beta <= 0:
        raise InputError(f"beta must be positive, got {beta}")
    value = tree.reward[-1].new_zeros(tree.vocabulary**tree.depth)
    q, v, policy = [], [value], []
    for reward, reference in zip(tree.reward[::-1], tree.reference[::-1], strict=True):
        after = value.view(-1, tree.vocabulary)  # the children of each node
        level = reward + beta * reference + after
        value = beta * (level / beta).logsumexp(-1)
        q.append(level)
        v.append(value)
        policy.append((level - value[:, None]) / beta)
    q, v, policy = q[::-1], v[::-1], policy[::-1]
    advantage = [beta * (p - r) for p, r in zip(policy, tree.reference, strict=True)]
    return SoftOptimum(q, v, policy, advantage)
