"""MAH-DPO: one trunk, one output head per objective, mixed by the user's weights at inference.

    z_d   = W_d h                                               logits of head d
    R_d(y) = sum_t log softmax(z_d)_{y_t} - log pi_ref(y_t|s_t)
    L_d   = mean over the pairs of objective d of  -log sigmoid( beta * [R_d(y_w) - R_d(y_l)] )
    loss  = mean of L_d over the objectives that the batch has
    use:    softmax( sum_d alpha_d z_d ),  alpha on the simplex;  the merged head sum_d alpha_d W_d

h is the trunk's last hidden state, y_w the chosen and y_l the rejected completion of a pair, d the
pair's objective; the model's own scale and soft cap, if it has any, act on z_d. The trunk learns
from every pair, a head from its own objective's pairs only. All heads start as copies of the
model's output layer (which is not trained itself, so tied input embeddings are never touched
through a head) and are held to the one reference.

Source: Simultaneous Multi-objective Alignment Across Verifiable and Non-verifiable Rewards
(arXiv 2510.01167). The released code can add normal noise of 0.001 to the heads, and to the
reference's heads alike; here `noise` is on the policy's only, and 0 by default.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tokenry.core.batch import TokenBatch
from tokenry.core.checks import within
from tokenry.core.errors import InputError, ModelError
from tokenry.core.fused import fused_scores
from tokenry.core.scores import Scores
from tokenry.learn.objective import Example, Loss, Objective, Unit, objective
from tokenry.learn.preference.pairs import (
    check_pairs,
    halves,
    pair_metrics,
    sequence_sum,
    token_log_ratios,
)
from tokenry.learn.preference.weighted import pair_loss
from tokenry.model.output import required_head
from tokenry.model.score import unwrap


@objective(
    "mah-dpo",
    paper=137,
    examples=lambda: [
        Example(MAHDPO(), {"objective": lambda batch, _: (batch.group % 2).double()})
    ],
)
@dataclass(frozen=True)
class MAHDPO(Objective):
    """Multi-Action-Head DPO. Every data row names its objective: "objective": 0, 1, ...

    beta: strength of the pull towards the reference, in (0, inf); the paper's default is 0.1.
    objectives: how many there are, whole, in [1, inf), which is how many heads are made. Shuffle
        the data, so that most batches hold all of them: each present objective counts the same,
        whatever its pairs.
    label_smoothing: probability that a label is wrong, in [0, 1].
    noise: standard deviation of normal noise on the heads at the start, in [0, inf); 0 (none) by
        default.

    After training, `mixed_model(model, heads, alpha)` is an ordinary causal model.
    """

    beta: float = 0.1
    objectives: int = 2
    label_smoothing: float = 0.0
    noise: float = 0.0

    needs: ClassVar[tuple[str, ...]] = ("policy.hidden", "reference.logprob", "row.objective")
    unit: ClassVar[Unit] = "pair"
    at_reference: ClassVar[float] = math.log(2)  # without noise
    separable: ClassVar[bool] = False  # a mean over the objectives that the batch holds

    def __post_init__(self) -> None:
        within(self, "(0, inf)", "beta")
        within(self, "[1, inf)", "objectives", integer=True)
        within(self, "[0, 1]", "label_smoothing")
        within(self, "[0, inf)", "noise")

    def precompute(self, rows: list[dict[str, Any]], context: Any) -> list[dict[str, Any]]:
        """The row's own "objective" on both of its sides."""
        for number, row in enumerate(rows):
            if "chosen_objective" not in row:
                if row.get("objective") is None:
                    raise InputError(
                        f'{row.get("place", f"row {number}")}: the field "objective" is missing: '
                        f"say which of the objectives 0 to {self.objectives - 1} the pair is about"
                    )
                row["chosen_objective"] = row["rejected_objective"] = row["objective"]
        return rows

    def modules(self, model: Any) -> ObjectiveHeads:
        required_head(model)
        return ObjectiveHeads(model.get_output_embeddings(), self.objectives, self.noise)

    def __call__(
        self,
        batch: TokenBatch,
        policy: Scores,
        reference: Scores | None,
        *,
        modules: ObjectiveHeads | None = None,
        **_: object,
    ) -> Loss:
        check_pairs(batch)
        if modules is None:
            raise InputError("MAH-DPO needs its heads: pass modules=MAHDPO().modules(model)")
        chosen_objective, rejected_objective = halves(self._objectives(batch))
        if not torch.equal(chosen_objective, rejected_objective):
            raise InputError("the chosen and the rejected side of a pair have other objectives")
        own = replace(policy, logprob=modules.logprob(batch, policy, self._objectives(batch)))
        chosen, rejected = halves(sequence_sum(token_log_ratios(batch, own, reference), batch))
        losses = pair_loss(self.beta * (chosen - rejected), self.label_smoothing)
        # Each pair's share in the mean of means, times B: their mean over the batch is the loss.
        counts = chosen_objective.bincount(minlength=self.objectives)
        share = len(losses) / (counts[chosen_objective] * (counts > 0).sum())
        losses = losses * share.to(losses.dtype)
        metrics = pair_metrics(batch, losses, self.beta * chosen, self.beta * rejected)
        return Loss(losses.mean(), metrics)

    def _objectives(self, batch: TokenBatch) -> Tensor:
        given = batch.column("objective")
        found = given.round().long()
        wrong = (given != found) | (found < 0) | (found >= self.objectives)
        if bool(wrong.any()):
            raise InputError(
                f"objectives are numbered 0 to {self.objectives - 1}, got "
                f"{float(given[wrong][0]):g}; set objectives= to how many there are"
            )
        return found


class ObjectiveHeads(nn.Module):
    """An output layer for each objective, all copies of the model's own at the start."""

    def __init__(self, layer: Any, count: int, noise: float = 0.0):
        super().__init__()
        if type(layer) is not nn.Linear:
            raise ModelError(
                f"objective heads are copies of a linear output layer; this model has "
                f"{type(layer).__name__}"
            )
        self.heads = nn.ModuleList(_copy_of(layer) for _ in range(count))
        for number, head in enumerate(self.heads):
            generator = torch.Generator().manual_seed(number)
            with torch.no_grad():
                weight: Tensor = head.weight  # type: ignore[assignment]
                weight += noise * torch.randn(weight.shape, generator=generator).to(weight)

    def __len__(self) -> int:
        return len(self.heads)

    def logprob(self, batch: TokenBatch, policy: Scores, objectives: Tensor) -> Tensor:
        """log pi(y_t|s_t), [rows, T], each row under the head of its objective."""
        hidden, own = policy.need("hidden"), policy.head
        if own is None:
            raise InputError(
                "MAH-DPO needs the scores of a model whose logits are its output layer's, scaled "
                "or bounded at most: these come without a head"
            )
        found = hidden.new_zeros(batch.shape, dtype=torch.promote_types(hidden.dtype, torch.float))
        for number in objectives.unique().tolist():
            layer = self.heads[number]
            head = replace(own, weight=layer.weight, bias=layer.bias)
            places = (batch.target & (objectives == number)[:, None]).nonzero(as_tuple=True)
            scored = fused_scores(hidden[places].to(layer.weight.dtype), head, batch.ids[places])  # type: ignore[arg-type]
            found = found.index_put(places, scored.logprob.to(found.dtype))
        return found

    def merged(self, alpha: Sequence[float]) -> nn.Linear:
        """The head of the mixture: sum_d alpha_d W_d, with alpha normalised to sum 1."""
        if len(alpha) != len(self.heads) or min(alpha) < 0 or not math.fsum(alpha) > 0:
            raise InputError(
                f"alpha must hold {len(self.heads)} weights >= 0, not all of them 0; got "
                f"{list(alpha)}"
            )
        merged = _copy_of(self.heads[0]).requires_grad_(False)
        for name in ("weight", "bias"):
            target = getattr(merged, name)
            if target is not None:
                shares = [
                    weight / math.fsum(alpha) * getattr(head, name).detach().float()
                    for weight, head in zip(alpha, self.heads, strict=True)
                ]
                target.copy_(torch.stack(shares).sum(0))
        return merged


def mixed_model(model: Any, heads: ObjectiveHeads, alpha: Sequence[float]) -> Any:
    """A causal model with the merged head on the same trunk, whose weights it shares.

    alpha: a weight >= 0 for each objective; one-hot gives a single objective's head. `generate`,
    `save_pretrained` and all of decoding work. (A soft cap on logits acts on the merged ones.)
    """
    plain = unwrap(model)
    mixed = copy.copy(plain)
    mixed._modules = dict(plain._modules)
    mixed.config = copy.deepcopy(plain.config)
    mixed.config.get_text_config().tie_word_embeddings = False
    mixed.config.tie_word_embeddings = False
    mixed.set_output_embeddings(heads.merged(alpha))
    return mixed.eval()


def _copy_of(layer: Any) -> nn.Linear:
    """Weights of its own, also when the layer's are the input embeddings'."""
    made = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
    made = made.to(layer.weight.device, layer.weight.dtype)
    with torch.no_grad():
        made.weight.copy_(layer.weight)
        if layer.bias is not None:
            made.bias.copy_(layer.bias)
    return made
