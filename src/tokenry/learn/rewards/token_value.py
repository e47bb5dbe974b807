"""TVM: a verifier that says at every token how likely the solution so far ends up correct.

    Vhat(y_1..y_t) = correct sampled solutions that begin with y_1..y_t
                     / all sampled solutions that do
    loss           = mean over tokens of ( f(x, y_1..y_t) - Vhat(y_1..y_t) )^2

x is a prompt, y its sampled solutions (with multiplicity: every sample counts), f a language
model's trunk with a scalar head. Solutions that share a prefix share its target, the pass rate of
that prefix; where a path is its own the target is its outcome. Given the prefix, the outcome's mean
is the value, so that these targets are unbiased and vary less than outcomes do.

Source: Token-Supervised Value Models for Enhancing Mathematical Reasoning Capabilities of Large
Language Models (arXiv 2407.12863). In training, f is read at the state that predicts the next
token: token t of the batch teaches the value of what stands before it, from the empty solution
(the prompt's pass rate) to the whole one (before its end token).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from tokenry.core.aggregate import aggregate, full_precision
from tokenry.core.batch import TokenBatch
from tokenry.core.errors import InputError, UnknownNameError
from tokenry.core.scores import Scores
from tokenry.learn.objective import Loss, Objective, Unit, objective
from tokenry.model import compat
from tokenry.text.prefix_trie import PrefixTrie

Kind = Literal["mse", "bce"]


def prefix_values(
    solutions: Sequence[Sequence[int]], correct: Sequence[bool | float]
) -> list[list[float]]:
    """Vhat of every non-empty prefix of every solution of one prompt, as token ids."""
    trie = PrefixTrie.of(solutions, [float(value) for value in correct])
    return [trie.means(solution) for solution in solutions]


def token_value_loss(predicted: Tensor, target: Tensor, mask: Tensor, kind: Kind = "mse") -> Tensor:
    """Mean over the masked tokens of the squared error, or of the cross-entropy ("bce"), [B, T].

    With "bce" the predictions are logits. Both have the same minimiser, the mean target.
    """
    if kind not in get_args(Kind):
        raise UnknownNameError("value loss", kind, get_args(Kind))
    predicted = torch.where(mask, full_precision(predicted), 0.0)
    target = torch.where(mask, target.to(predicted), 0.0)
    if kind == "mse":
        errors = (predicted - target).square()
    else:
        errors = binary_cross_entropy_with_logits(predicted, target, reduction="none")
    return aggregate(errors, mask, "token-mean")


@objective("tvm", paper=46)
@dataclass(frozen=True)
class TVM(Objective):
    """Trains a token value model on preference rows: chosen solutions are correct, rejected wrong.

    kind: "mse" (the paper's) or "bce", whose values are always within 0 and 1.

    All rows with the same prompt are its sample; each occurrence of a solution counts. The head is
    one of the model's `modules`: `TokenValueModel(model, head)` reads values afterwards.
    """

    kind: Kind = "mse"

    needs: ClassVar[tuple[str, ...]] = ("policy.hidden", "token.value")
    unit: ClassVar[Unit] = "token"

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise UnknownNameError("value loss", self.kind, get_args(Kind))

    def precompute(self, rows: list[dict[str, Any]], context: Any) -> list[dict[str, Any]]:
        """Column "value": the value of what stands before each completion token."""
        tries: dict[tuple[int, ...], PrefixTrie] = {}
        sides = (("chosen", 1.0), ("rejected", 0.0))
        for row in rows:
            trie = tries.setdefault(tuple(row["prompt_ids"]), PrefixTrie())
            for side, outcome in sides:
                trie.insert(row[f"{side}_ids"], outcome)
        for row in rows:
            trie = tries[tuple(row["prompt_ids"])]
            for side, _ in sides:
                if row.get(f"{side}_value") is None:
                    values = [trie.mean(), *trie.means(row[f"{side}_ids"])]
                    row[f"{side}_value"] = values[:-1]
        return rows

    def modules(self, model: Any) -> ValueHead:
        return ValueHead(model.config.hidden_size, self.kind)

    def __call__(
        self,
        batch: TokenBatch,
        policy: Scores,
        reference: Scores | None,
        *,
        modules: ValueHead | None = None,
        **_: object,
    ) -> Loss:
        if modules is None:
            raise InputError("TVM needs its value head: pass modules=TVM().modules(model)")
        hidden = torch.where(batch.target[..., None], policy.need("hidden"), 0.0)
        predicted, target = modules(hidden), batch.column("value")
        loss = token_value_loss(predicted, target, batch.target, self.kind)
        values = modules.value(predicted.detach())
        error = (values - target.to(values)).abs()
        metrics = {
            "value/mean": aggregate(values, batch.target, "token-mean"),
            "value/error": aggregate(error, batch.target, "token-mean"),
        }
        return Loss(loss, metrics)


class ValueHead(nn.Linear):
    """From hidden states [..., D] to one number each."""

    def __init__(self, width: int, kind: Kind = "mse"):
        super().__init__(width, 1)
        self.kind = kind

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.to(self.weight.dtype))[..., 0]

    def value(self, output: Tensor) -> Tensor:
        """The output as a value: itself, or its sigmoid when trained with "bce"."""
        return output.float().sigmoid() if self.kind == "bce" else output.float()


class TokenValueModel(nn.Module):
    """A causal model with a value head: the value of each prefix of a text."""

    def __init__(self, model: Any, head: ValueHead):
        super().__init__()
        self.model, self.head = model, head

    def forward(self, ids: Tensor, attention: Tensor) -> Tensor:
        """Values [B, T]: position t has read the tokens up to and with t. 0 on padding."""
        compat.require_left_padding(self.model, attention)
        output = compat.decoder_of(self.model)(
            input_ids=ids,
            attention_mask=attention.long(),
            position_ids=(attention.long().cumsum(1) - 1).clamp_min(0),
            use_cache=False,
        )
        return torch.where(attention, self.head.value(self.head(output[0])), 0.0)

    def scorer(
        self, ends: Collection[int] = (), rows_per_batch: int = 64
    ) -> Callable[[list[int], list[list[int]]], list[float]]:
        """A scorer for `decode.search`: the value at each completion's last token.

        ends: end tokens, such as the tokenizer's. Training ends before them, so a completion that
        ends in one is read at the token before.
        """

        @torch.no_grad()
        def values(prompt: list[int], completions: list[list[int]]) -> list[float]:
            found: list[float] = []
            for start in range(0, len(completions), rows_per_batch):
                part = [
                    ids[:-1] if ids and ids[-1] in ends else ids
                    for ids in completions[start : start + rows_per_batch]
                ]
                batch = TokenBatch.from_ids([[*prompt, *completion] for completion in part])
                batch = batch.to(self.head.weight.device)
                last = batch.lengths[:, None] - 1
                found += self(batch.ids, batch.attention).gather(1, last)[:, 0].tolist()
            return found

        return values
