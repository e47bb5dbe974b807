"""Token masks: which tokens of a completion count, read off a reference model's hidden states.

    LearnedMask     m(t) = relu( sum_l v_l relu( w_l . LayerNorm(h^l_t) + b_l ) ) >= 0, learned
    ActivationMask  the mean activation of a token, rescaled to [0, 1] within its completion

h^l_t is the output of block l at the position that predicts token t. Both are weights for any
objective that takes token weights; `MaskedKL` makes a margin of one.

Source: SparsePO: Controlling Preference Alignment of LLMs via Sparse Token Masks (arXiv
2410.05102).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from tokenry.core.aggregate import full_precision
from tokenry.core.batch import TokenBatch
from tokenry.core.checks import within
from tokenry.core.errors import InputError, UnknownNameError
from tokenry.core.scores import Scores
from tokenry.learn.preference.pairs import sequence_sum

Layers = Literal["all", "last"]


@dataclass(frozen=True)
class LearnedMask:
    """A token weight [2B, T] from a `TokenMask` of its own, for any objective of weights.

    layers: "all" or "last". dropout: of the mask network, in [0, 1).
    """

    layers: Layers = "all"
    dropout: float = 0.01

    needs: ClassVar[tuple[str, ...]] = ("reference.hidden_states",)

    def __post_init__(self) -> None:
        within(self, "[0, 1)", "dropout")

    def modules(self, model: Any) -> TokenMask:
        config = model.config.get_text_config()
        size, count = config.hidden_size, config.num_hidden_layers
        return TokenMask(size, count, self.layers, self.dropout)

    def __call__(
        self,
        batch: TokenBatch,
        policy: Scores,
        reference: Scores | None,
        modules: Any = None,
        **_: object,
    ) -> Tensor:
        if modules is None:
            raise InputError(
                "a learned mask needs its network: pass modules=objective.modules(model)"
            )
        return modules(_states(reference), batch.target)


@dataclass(frozen=True)
class ActivationMask:
    """MAPO's token weight [2B, T], in [0, 1]; nothing is learned and no gradient flows."""

    layers: Layers = "all"

    needs: ClassVar[tuple[str, ...]] = ("reference.hidden_states",)

    def __call__(
        self, batch: TokenBatch, policy: Scores, reference: Scores | None, **_: object
    ) -> Tensor:
        states = _states(reference)
        return activation_mask(states if self.layers == "all" else states[-1:], batch.target)


@dataclass(frozen=True)
class MaskedKL:
    """The margin sum_t m(t) k_t, [2B], with a mask that is itself a weight.

    PreferenceObjective(weight=LearnedMask(), margin=MaskedKL(LearnedMask())) is SparsePO with
    independent masks.
    """

    mask: Any

    @property
    def needs(self) -> tuple[str, ...]:
        return ("policy.divergence", *self.mask.needs)

    def modules(self, model: Any) -> nn.Module | None:
        return self.mask.modules(model) if hasattr(self.mask, "modules") else None

    def __call__(
        self, batch: TokenBatch, policy: Scores, reference: Scores | None, **others: Any
    ) -> Tensor:
        mask = self.mask(batch, policy, reference, **others)
        return masked_kl(batch, policy, mask)


class TokenMask(nn.Module):
    """The mask network: one number >= 0 for each token from its predicting hidden states."""

    def __init__(
        self, hidden_size: int, num_layers: int, layers: Layers = "all", dropout: float = 0.01
    ):
        super().__init__()
        if layers not in get_args(Layers):
            raise UnknownNameError("choice of layers", layers, get_args(Layers))
        count = num_layers if layers == "all" else 1
        self.layers = layers
        self.norm = nn.LayerNorm(hidden_size)
        self.readers = nn.ModuleList(nn.Linear(hidden_size, 1) for _ in range(count))
        self.mixer = nn.Linear(count, 1, bias=False)
        self.dropout = nn.Dropout(dropout)
        for reader in self.readers:
            nn.init.ones_(reader.bias)  # pyright: ignore[reportArgumentType]
        nn.init.constant_(self.mixer.weight, 1 / count)

    def forward(self, hidden_states: Sequence[Tensor], mask: Tensor) -> Tensor:
        """[B, T]; 0 outside the mask. No gradient flows into the hidden states."""
        states = hidden_states if self.layers == "all" else hidden_states[-1:]
        if len(states) != len(self.readers):
            raise InputError(f"a mask of {len(self.readers)} blocks got {len(states)}")
        dtype = self.mixer.weight.dtype
        # Evaluation runs without gradient, whatever the module's mode.
        drop = self.dropout if torch.is_grad_enabled() else nn.Identity()
        scores = [
            drop(torch.relu(reader(self.norm(state.detach()[mask].to(dtype)))))
            for state, reader in zip(states, self.readers, strict=True)
        ]
        values = drop(torch.relu(self.mixer(torch.cat(scores, -1))))[:, 0]  # [n]
        return values.new_zeros(mask.shape).masked_scatter(mask, values)


@torch.no_grad()
def activation_mask(activations: Sequence[Tensor], mask: Tensor) -> Tensor:
    """MAPO's mask, [B, T], from activations [B, T, D] of any places in a model; 0 outside `mask`.

    The paper's standardisation before the rescaling to [0, 1] cancels in it. A completion whose
    tokens all have the same activation, such as one of a single token, gets ones.
    """
    masks = []
    for activation in activations:
        level = full_precision(activation).mean(-1)  # [B, T]
        low = level.masked_fill(~mask, math.inf).amin(-1, keepdim=True)
        high = level.masked_fill(~mask, -math.inf).amax(-1, keepdim=True)
        spread = high - low
        scaled = (level - low) / torch.where(spread > 0, spread, 1.0)
        masks.append(torch.where(mask, torch.where(spread > 0, scaled, 1.0), 0.0))
    return torch.stack(masks).mean(0)


def mask_sparsity(values: Tensor, mask: Tensor) -> Tensor:
    """The share of exact zeros among the tokens of `mask`, a scalar."""
    return (values.detach()[mask] == 0).float().mean()


def masked_kl(batch: TokenBatch, policy: Scores, mask: Tensor) -> Tensor:
    """sum_t m(t) KL(pi_ref || pi), [2B]."""
    kl = torch.where(batch.target, full_precision(policy.need("divergence")), 0.0)
    return sequence_sum(mask * kl, batch)


def _states(reference: Scores | None) -> tuple[Tensor, ...]:
    if reference is None:
        raise InputError("a token mask reads the hidden states of a reference model")
    return reference.need("hidden_states")
