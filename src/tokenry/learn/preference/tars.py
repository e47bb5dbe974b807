"""TARS: DPO on prompts whose evidence-irrelevant tokens are perturbed, with a spectral term.

    P_i   = -cos(evidence, q_i)                             how irrelevant prompt token i is
    n     = floor( omega / (P_(1) - P_(2)) ) + 1            the n most irrelevant ones make up A
    phi(q)= q with the tokens in A masked (or replaced)
    R(y)  = sum_t log [ pi / pi_ref ](y_t | phi(q), y_<t)
    F(z)  = || Re DFT_t(z) ||^2                             spectral energy of hidden states [L, D]
    G(y)  = log F(h_pi(phi(q), y)) - log F(h_ref(q, y))
    loss  = -log sigmoid( beta [R(y_w) - R(y_l)] )
            - lambda log sigmoid( beta_f [G(y_w) - G(y_l)] )

y_w is the chosen and y_l the rejected completion, P_(1) >= P_(2) the two largest P. Perturbing what
the evidence does not speak about keeps preference learning from leaning on it; the maximum over
perturbations is this closed form, no gradient search. The energy keeps hidden states close to those
of the clean prompt in frequency space without tying every token.

Source: TARS: MinMax Token-Adaptive Preference Strategy for MLLM Hallucination Reduction
(arXiv 2507.21584). The paper's cosine is between an image and a word in CLIP; here relevance is
pluggable, by default a cosine of the model's own input embeddings. h are the last hidden states
that predict the completion's tokens. The released code differs from the paper: `variant="triplet"`
is its hinge on amplitudes, with the reference's states of the same, perturbed, prompt.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from tokenry.core.aggregate import full_precision
from tokenry.core.batch import TokenBatch
from tokenry.core.checks import within
from tokenry.core.errors import InputError, UnknownNameError
from tokenry.core.scores import Scores
from tokenry.learn.data.precompute import PrecomputeContext, joined_batch
from tokenry.learn.objective import Loss, Objective, Unit, objective
from tokenry.learn.preference.pairs import halves
from tokenry.learn.preference.weighted import add_terms, pair_loss, preference_loss

Mode = Literal["mask", "replace", "none"]
Variant = Literal["energy", "triplet"]
Relevance = Callable[[dict[str, Any], PrecomputeContext], list[float | None]]
"""(row, context) -> relevance of each of the row's prompt_ids; None: must not be changed."""


@dataclass(frozen=True)
class EmbeddingRelevance:
    """Cosine between each prompt token's input embedding and the evidence's mean embedding.

    column: where a row carries its evidence, a text. Where the prompt contains it, those tokens are
    not changed. A row without evidence is compared with its whole prompt.
    """

    column: str = "evidence"

    def __call__(self, row: dict[str, Any], context: PrecomputeContext) -> list[float | None]:
        ids, special = row["prompt_ids"], set(context.tokenizer.all_special_ids)
        evidence = row.get(self.column)
        kept = [place for place, token in enumerate(ids) if token in special]
        about = [token for token in ids if token not in special] or ids
        if evidence:
            about = context.tokenizer(evidence, add_special_tokens=False)["input_ids"]
            kept += _covered(row, evidence, context)
        table = context.model.get_input_embeddings()
        device = table.weight.device
        with torch.no_grad():
            tokens = table(torch.tensor(ids, device=device)).float()
            pooled = table(torch.tensor(about, device=device)).float().mean(0, keepdim=True)
        found: list[float | None] = cosine_similarity(tokens, pooled).tolist()
        for place in kept:
            found[place] = None
        return found


@objective("tars", paper=1)
@dataclass(frozen=True)
class TARS(Objective):
    """Token-adaptive preference learning. Rows may carry their "evidence" (see the relevance).

    beta: of the DPO part, in (0, inf); 0.1 in the released code, 1 in the paper's list.
    frequency_weight: lambda, the spectral term's weight, in [0, inf); default 0.1.
    frequency_beta: beta_f, in (0, inf); default 1.
    omega: how many tokens are perturbed, in [0, inf); 0 perturbs one, default 1e-3.
    most: at most this share of the changeable tokens, in [0, 1], is perturbed. A repeated word ties
        with itself, and by the formula a tie at the top perturbs everything; 1 is the formula.
    perturbation: "mask" (mask, unknown or padding token), "replace" (a random token) or "none".
    variant: "energy" (the paper's) or "triplet" (the released code's, margin 0.5).
    relevance: a function (row, context) -> relevance of each prompt token.
    """

    beta: float = 0.1
    frequency_weight: float = 0.1
    frequency_beta: float = 1.0
    omega: float = 1e-3
    most: float = 0.25
    perturbation: Mode = "mask"
    variant: Variant = "energy"
    relevance: Relevance = field(default_factory=EmbeddingRelevance)

    unit: ClassVar[Unit] = "pair"

    def __post_init__(self) -> None:
        for name, value, known in (
            ("perturbation", self.perturbation, ("mask", "replace", "none")),
            ("variant", self.variant, ("energy", "triplet")),
        ):
            if value not in known:
                raise UnknownNameError(name, value, known)
        within(self, "(0, inf)", "beta", "frequency_beta")
        within(self, "[0, inf)", "frequency_weight", "omega")
        within(self, "[0, 1]", "most")

    @property
    def needs(self) -> tuple[str, ...]:
        ratios = ("policy.logprob", "reference.logprob", "policy.hidden")
        triplet = self.variant == "triplet"
        return (*ratios, "reference.hidden" if triplet else "row.reference_log_energy")

    def precompute(
        self, rows: list[dict[str, Any]], context: PrecomputeContext
    ) -> list[dict[str, Any]]:
        """The reference's log-energies on clean prompts; then perturbed prompts in their place."""
        if self.variant == "energy":
            for side in ("chosen", "rejected"):
                _add_log_energies(rows, side, context)
        if self.perturbation == "none":
            return rows
        generator = torch.Generator().manual_seed(context.seed)
        tokenizer = context.tokenizer
        mask_id = _first(tokenizer, "mask_token_id", "unk_token_id", "pad_token_id", "eos_token_id")
        for row in rows:
            given = self.relevance(row, context)
            allowed = torch.tensor([value is not None for value in given])
            relevance = torch.tensor([0.0 if value is None else value for value in given])
            places = agnostic_tokens(relevance, self.omega, allowed, most=self.most)
            row["prompt_ids"] = perturb_ids(
                row["prompt_ids"],
                places,
                self.perturbation,
                mask_id=mask_id,
                special=tokenizer.all_special_ids,
                vocabulary=len(tokenizer),
                generator=generator,
            )
        return rows

    def __call__(
        self, batch: TokenBatch, policy: Scores, reference: Scores | None, **_: object
    ) -> Loss:
        loss = preference_loss(batch, policy, reference, beta=self.beta)
        states = policy.need("hidden")
        if self.variant == "triplet":
            assert reference is not None  # preference_loss has asked for it
            term = spectral_triplet_loss(states, reference.need("hidden"), batch.target)
        else:
            term = spectral_preference_loss(
                log_energy(states, batch.target),
                full_precision(batch.column("reference_log_energy")),
                beta=self.frequency_beta,
            )
        return add_terms(loss, frequency=self.frequency_weight * term)


def agnostic_tokens(
    relevance: Tensor, omega: float, allowed: Tensor | None = None, most: float = 1.0
) -> Tensor:
    """Positions of the tokens to perturb, most irrelevant first, long [n].

    relevance: [m]. allowed: [m] bool, the tokens that may be changed. most: upper bound of n as a
    share of them (but at least one).
    """
    places = torch.arange(len(relevance))
    places = places if allowed is None else places[allowed]
    irrelevance, order = (-relevance[places].double()).sort(descending=True, stable=True)
    if len(places) < 2:
        return places
    gap = float(irrelevance[0] - irrelevance[1])
    count = int(min(omega / max(gap, 1e-8), len(places))) + 1
    return places[order[: min(count, max(1, int(most * len(places))))]]


def perturb_ids(
    ids: list[int],
    places: Tensor,
    mode: Mode,
    *,
    mask_id: int,
    vocabulary: int,
    generator: torch.Generator,
    special: list[int] | tuple[int, ...] = (),
) -> list[int]:
    """The ids with those at `places` masked, or replaced by random other non-special ids."""
    changed = list(ids)
    for place in places.tolist():
        if mode == "mask":
            changed[place] = mask_id
        elif mode == "replace":
            banned = {*special, ids[place]}
            while (drawn := int(torch.randint(vocabulary, (1,), generator=generator))) in banned:
                pass
            changed[place] = drawn
    return changed


def spectral_energy(states: Tensor, mask: Tensor) -> Tensor:
    """sum over frequencies and dimensions of Re(DFT)^2 along each row's masked positions, [B].

    states: [B, T, D], mask: [B, T]; the transform's length is each row's own count L. By
    sum_k Re(z_k)^2 = L/2 sum_l z_l (z_l + z_{-l mod L}), so that padded rows need no transform.
    """
    states = torch.where(mask[..., None], full_precision(states), 0.0)
    order = torch.argsort(~mask, dim=-1, stable=True)  # masked positions first
    packed = states.gather(1, order[..., None].expand_as(states))
    length = mask.sum(-1, keepdim=True)
    place = torch.arange(mask.shape[1], device=mask.device)
    mirror = torch.where(place < length, (-place) % length.clamp_min(1), place)
    mirrored = packed.gather(1, mirror[..., None].expand_as(packed))
    total = (packed * (packed + mirrored)).sum((-1, -2))
    return (length[:, 0] / 2 * total).clamp_min(0)


def log_energy(states: Tensor, mask: Tensor) -> Tensor:
    """log of `spectral_energy`, finite also where that is 0, [B]."""
    return spectral_energy(states, mask).clamp_min(1e-30).log()


def spectral_preference_loss(
    log_energies: Tensor, reference_log_energies: Tensor, *, beta: float
) -> Tensor:
    """-log sigmoid of the difference of log energy ratios of each pair: [2B], [2B] -> [B]."""
    growth = full_precision(log_energies) - full_precision(reference_log_energies)
    chosen, rejected = halves(growth)
    return pair_loss(beta * (chosen - rejected))


def spectral_triplet_loss(
    states: Tensor, reference_states: Tensor, mask: Tensor, margin: float = 0.5
) -> Tensor:
    """relu( MSE(|F w|, |F w_ref|) - MSE(|F w|, |F l_ref|) + margin ) of each pair, [B].

    The anchor is the policy's chosen row, near the reference's chosen and far from its rejected.
    Rows of different lengths are compared over the shorter one's.
    """

    def amplitude(states: Tensor) -> Tensor:
        return torch.view_as_real(torch.fft.fft(states, dim=0)).square().sum(-1).add(1e-20).sqrt()

    def distance(one: Tensor, other: Tensor) -> Tensor:
        length = max(1, min(len(one), len(other)))
        if not len(one) or not len(other):
            return one.sum() * 0.0
        return (amplitude(one[:length]) - amplitude(other[:length])).square().mean()

    states, reference_states = full_precision(states), full_precision(reference_states)
    pairs = len(states) // 2
    losses = []
    for row in range(pairs):
        anchor = states[row][mask[row]]
        positive = reference_states[row][mask[row]]
        negative = reference_states[row + pairs][mask[row + pairs]]
        losses.append(distance(anchor, positive) - distance(anchor, negative) + margin)
    return torch.stack(losses).relu()


def _add_log_energies(rows: list[dict[str, Any]], side: str, context: PrecomputeContext) -> None:
    name = f"{side}_reference_log_energy"
    if all(row.get(name) is not None for row in rows):
        return
    if context.reference is None:
        raise InputError("TARS needs a reference model, to measure spectral energies with")
    device = getattr(context.model, "device", "cpu")
    for start in range(0, len(rows), context.batch_size):
        part = rows[start : start + context.batch_size]
        prompts, completions = [r["prompt_ids"] for r in part], [r[f"{side}_ids"] for r in part]
        counts = [row.get(f"{side}_target") for row in part]
        batch = joined_batch(prompts, completions, counts).to(device)
        energies = log_energy(context.reference(batch, ("hidden",)).need("hidden"), batch.target)
        for row, energy in zip(part, energies.tolist(), strict=True):
            row[name] = energy


def _covered(row: dict[str, Any], text: str, context: PrecomputeContext) -> list[int]:
    """Places of the prompt's tokens that overlap with the first occurrence of `text` in it."""
    start = row["prompt"].find(text)
    if start < 0:
        return []
    known = context.tokenizer(row["prompt"], add_special_tokens=False)["input_ids"]
    # Special tokens were put in front; the last token may be the completion's, if it reaches there.
    places = range(len(row["prompt_ids"]))
    leading = next((at for at in places if row["prompt_ids"][at] == known[0]), 0)
    inner = {"prompt": row["prompt"], "prompt_ids": row["prompt_ids"][leading:]}
    spans = context.offsets(inner, "prompt")
    return [
        place + leading for place, (a, b) in enumerate(spans) if a < start + len(text) and b > start
    ]


def _first(tokenizer: Any, *names: str) -> int:
    found = (getattr(tokenizer, name, None) for name in names)
    return next((token for token in found if token is not None), 0)
