"""DecompX: a state, or a logit, as a sum of what each input token put into it.

The parts of `blocks` are carried through all layers, and through the head:

    x_i^L = Σ_k x_{i⇐k} + x_{i⇐bias}       logit_c = Σ_k w_c · x_{i⇐k} + (w_c · x_{i⇐bias} + b_c)

so the signed attributions of the tokens and the bias's sum to the logit. Without a logit to ask
about, a token's score is the length of its part, ‖x_{i⇐k}‖₂. Time is that of T forward passes,
memory T·T·D numbers: at most `max_tokens` tokens.

    parts = decomposed_logits(model, ids, target=paris)
    parts.tokens            # [T]: how many logits each token of the prompt adds to " Paris"

Source: DecompX: Explaining Transformers Decisions by Propagating Token Decomposition (arXiv
2306.02873), as used in FrugalPrompt (arXiv 2510.16439). Softmax attention, norms and gates are held
at their values, as there; the version for decoders is ours.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tokenry.core.checks import within
from tokenry.core.errors import InputError, ModelError
from tokenry.model.attribution.base import attribution
from tokenry.model.attribution.blocks import (
    MAX_TOKENS,
    Observation,
    activated,
    affine,
    blocks_of,
    normed,
    observe,
)
from tokenry.model.output import required_head
from tokenry.model.score import unwrap


class Parts(NamedTuple):
    """What tokens [T] and the biases (one number) add to a logit; together they are the logit."""

    tokens: Tensor
    bias: float


@attribution("decompx", paper=27)
@dataclass(frozen=True)
class DecompX:
    """Scores of a text's tokens: the lengths of their parts in the state at one position."""

    max_tokens: int = MAX_TOKENS

    def __post_init__(self) -> None:
        within(self, "[1, inf)", "max_tokens", integer=True)

    def __call__(self, model: Any, ids: Tensor, position: int = -1) -> Tensor:
        """[T], not negative: ‖x_{position⇐k}‖₂ behind the last layer (a decoder's norm included).

        model: a causal language model, or an encoder, where `position` is that of [CLS].
        """
        return decomposed_states(model, ids, self.max_tokens)[:-1, position].norm(dim=-1)


@torch.no_grad()
def decomposed_states(model: Any, ids: Tensor, max_tokens: int = MAX_TOKENS) -> Tensor:
    """The parts [T + 1, T, D] of the last layer's states; those of a decoder behind its norm."""
    seen = observe(model, ids, max_tokens)
    *_, parts = layer_parts(model, seen)
    return parts


@torch.no_grad()
def decomposed_logits(
    model: Any,
    ids: Tensor,
    position: int = -1,
    target: int | None = None,
    max_tokens: int = MAX_TOKENS,
) -> Parts:
    """What each token of `ids` [T] adds to one logit.

    A causal language model: the logit of the token `target` (default: the likeliest one) as the
    continuation of `position`. A sequence classifier: the logit of the class `target`; `position`
    is not used.
    """
    plain = unwrap(model)
    seen = observe(model, ids, max_tokens)
    if getattr(seen.output, "logits", None) is None:
        raise ModelError(f"{type(plain).__name__} has no logits: load the model with its head")
    whole = seen.output.logits[0].float()  # [T, V], or [C] of a classifier
    classifies = whole.ndim == 1
    logits = whole if classifies else whole[position]
    target = int(logits.argmax()) if target is None else target
    if not 0 <= target < len(logits):
        raise InputError(f"there is no logit {target}: the model has {len(logits)}")
    *_, parts = layer_parts(model, seen)
    if classifies:
        of_logit = classified(plain, parts[:, :1])[:, target]
    else:
        of_logit = headed(plain, parts[:, position], target)
    _check_sum(of_logit.sum(), logits[target], _precision(plain), "the logit")
    return Parts(of_logit[:-1], float(of_logit[-1]))


@torch.no_grad()
def layer_parts(model: Any, seen: Observation) -> Iterator[Tensor]:
    """The parts [T + 1, T, D] of the states before each layer and, last, behind the final one
    (normed
    in a decoder).

    Raises:
        ModelError: their sum is not the model's own state.
    """
    plain = unwrap(model)
    blocks = blocks_of(model)
    start = seen.states[0]
    parts = torch.cat([torch.diag_embed(start.T).permute(1, 2, 0), torch.zeros_like(start)[None]])
    precision = _precision(plain)
    final = getattr(plain.get_decoder(), "norm", None) if hasattr(plain, "get_decoder") else None
    for number, (block, weights) in enumerate(zip(blocks, seen.attention, strict=True)):
        yield parts
        parts = block.feed_forward(block.attend(parts, weights))
        if number + 1 == len(blocks) and final is not None:
            parts = normed(final, parts)
        _check_sum(parts.sum(0), seen.states[number + 1], precision, f"layer {number}")
    yield parts


def headed(plain: Any, parts: Tensor, target: int) -> Tensor:
    """Parts [K + 1, D] of a state -> parts [K + 1] of a token's logit, the soft cap included."""
    head = required_head(plain)
    logits = parts @ head.weight[target].float()
    if head.bias is not None:
        logits[-1] += head.bias[target].float()
    return logits / head.temperature if head.softcap is None else activated(head.shaped, logits)


def classified(plain: Any, first: Tensor) -> Tensor:
    """Parts [K + 1, 1, D] of the first state -> parts [K + 1, C] of the logits of the classes,
    through BERT's pooler and the classifier."""
    pooler = getattr(plain.base_model, "pooler", None)
    classifier = getattr(plain, "classifier", None)
    if pooler is None or not isinstance(classifier, nn.Linear):
        raise ModelError(f"{type(plain).__name__}: only a head of BERT's kind can be taken apart")
    pooled = activated(pooler.activation, affine(pooler.dense, first))
    return affine(classifier, pooled)[:, 0]


def _precision(plain: Any) -> float:
    dtype = plain.get_input_embeddings().weight.dtype
    return 1e-3 if dtype in (torch.float32, torch.float64) else 0.1


def _check_sum(total: Tensor, wanted: Tensor, precision: float, where: str) -> None:
    wanted = wanted.to(total.device)
    off = float((total - wanted).norm() / wanted.norm().clamp_min(1e-6))
    if not off < precision:
        raise ModelError(
            f"the parts of {where} sum to something else than the model's own value (off by "
            f"{off:.1%}): this architecture computes more than attribution knows"
        )
