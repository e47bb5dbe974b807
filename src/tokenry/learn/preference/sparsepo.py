"""SparsePO: a learned sparse mask says which tokens carry reward and which may not drift.

    rho_t = log pi(y_t|s_t) / pi_ref(y_t|s_t)          k_t = KL( pi_ref(.|s_t) || pi(.|s_t) )
    h     = [ sum_t m_u(t) rho_t + m_d(t) k_t ] of y_w  -  the same of y_l
    loss  = -log sigmoid( beta h ) + l_u (|m_u(y_w)| + |m_u(y_l)|) + l_d (|m_d(y_w)| + |m_d(y_l)|)
            with l_u / 2 and l_d / 2 where m_u and m_d are one mask

y_w is the chosen and y_l the rejected completion, pi the policy, pi_ref the frozen reference; m_u
and m_d >= 0 are one number per token, |m| their sum over a completion. Ones give TDPO1; the chosen
KL is not stopped. The masks are read off the reference's hidden states h^l_t of every block l,

    m(t) = relu( sum_l v_l relu( w_l . LayerNorm(h^l_t) + b_l ) )        learned with the policy

or, without anything learned (MAPO), off their activations: the mean over features, rescaled to
[0, 1] within each completion, averaged over blocks.

Source: SparsePO: Controlling Preference Alignment of LLMs via Sparse Token Masks (arXiv
2410.05102). Reconstructed: masks begin near 1 (v = 1/L, b = 1), as two rectifiers in a row can
otherwise begin dead, and without a mask there is no gradient; MAPO reads block outputs only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

from torch import nn

from tokenry.core.batch import TokenBatch
from tokenry.core.checks import within
from tokenry.core.divergences import FORWARD_KL
from tokenry.core.errors import UnknownNameError
from tokenry.core.f_divergence import FDivergence
from tokenry.core.scores import Scores
from tokenry.learn.objective import Loss, Objective, Unit, objective
from tokenry.learn.preference.pairs import halves, sequence_sum
from tokenry.learn.preference.token_masks import (
    ActivationMask,
    Layers,
    LearnedMask,
    mask_sparsity,
    masked_kl,
)
from tokenry.learn.preference.weighted import add_terms, preference_loss

Masks = Literal["independent", "common", "activation"]


@objective("sparsepo", paper=60)
@dataclass(frozen=True)
class SparsePO(Objective):
    """Sparse token-level preference optimisation. The mask network is trained beside the policy.

    beta: strength of the pull towards the reference, in (0, inf); the paper uses 0.1 for dialogue
        and 0.8 for sentiment and summaries. Larger beta gives sparser masks.
    masks: "independent" (two networks), "common" (m_d = m_u) or "activation" (MAPO).
    reward_l1, kl_l1: l_u and l_d, in [0, inf); the paper's are 0, or 0.001 each for common
        masks in dialogue. One mask in both roles is penalised once: by (l_u + l_d) / 2.
    layers: blocks that the masks read, "all" or "last". dropout: of the mask network, in [0, 1).
    modules_learning_rate: of the mask networks, which learn from nothing while the policy is being
        tuned, in (0, inf); None (the paper): the policy's own.
    """

    beta: float = 0.1
    masks: Masks = "independent"
    reward_l1: float = 0.0
    kl_l1: float = 0.0
    layers: Layers = "all"
    dropout: float = 0.01
    modules_learning_rate: float | None = None

    needs: ClassVar[tuple[str, ...]] = (
        "policy.logprob",
        "policy.divergence",
        "reference.logprob",
        "reference.hidden_states",
    )
    unit: ClassVar[Unit] = "pair"
    divergence: ClassVar[FDivergence] = FORWARD_KL
    at_reference: ClassVar[float] = math.log(2)  # without penalties
    modules_weight_decay: ClassVar[float] = 0.01

    def __post_init__(self) -> None:
        within(self, "(0, inf)", "beta")
        within(self, "[0, inf)", "reward_l1", "kl_l1")
        within(self, "[0, 1)", "dropout")
        if self.masks not in get_args(Masks):
            raise UnknownNameError("kind of masks", self.masks, get_args(Masks))
        if self.layers not in get_args(Layers):
            raise UnknownNameError("choice of layers", self.layers, get_args(Layers))
        within(self, "(0, inf)", "modules_learning_rate", optional=True)

    def modules(self, model: Any) -> nn.ModuleDict:
        names = {"independent": ("reward", "kl"), "common": ("reward",), "activation": ()}
        learned = LearnedMask(self.layers, self.dropout)
        return nn.ModuleDict({name: learned.modules(model) for name in names[self.masks]})

    def __call__(
        self,
        batch: TokenBatch,
        policy: Scores,
        reference: Scores | None,
        modules: Any = None,
        **_: object,
    ) -> Loss:
        def network(name: str) -> Any:
            return None if modules is None else modules[name]

        if self.masks == "activation":
            reward_mask = kl_mask = ActivationMask(self.layers)(batch, policy, reference)
        else:
            learned = LearnedMask(self.layers, self.dropout)
            reward_mask = learned(batch, policy, reference, modules=network("reward"))
            kl_mask = reward_mask
            if self.masks == "independent":
                kl_mask = learned(batch, policy, reference, modules=network("kl"))
        shared = reward_mask is kl_mask  # its norm stands in both sums
        margin = masked_kl(batch, policy, kl_mask)
        result = preference_loss(
            batch, policy, reference, beta=self.beta, weight=reward_mask, margin=margin
        )
        for name, mask, strength in (
            ("reward", reward_mask, self.reward_l1),
            ("kl", kl_mask, self.kl_l1),
        ):
            chosen, rejected = halves(sequence_sum(mask, batch))
            if strength:
                penalty = strength * (chosen + rejected) / (2 if shared else 1)
                result = add_terms(result, **{f"mask/{name}_l1": penalty})
            result.metrics[f"mask/{name}"] = mask.detach()[batch.target].mean()
            result.metrics[f"mask/{name}_sparsity"] = mask_sparsity(mask, batch.target)
            tokens = batch.target.sum()
            result.counts.update({f"mask/{name}": tokens, f"mask/{name}_sparsity": tokens})
        return result
