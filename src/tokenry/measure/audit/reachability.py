"""Reachability: which next tokens can a short prompt make a model say?

Control theory of prompting. The prompt u (the control) stands before a given text x0 (the state),
and the output is y = argmax P(. | u + x0). The reachable set with k control tokens is

    R^k(x0) = { y : some u with |u| <= k has argmax P(. | u + x0) = y }.

Three searches for a prompt that makes a given y the output, from cheap to dear: greedy
back-generation (prepend the token that helps most), greedy coordinate gradient (GCG: swap the
tokens that a linearisation of the loss recommends) and a back-off from one to the other. A search
shows what can be reached; only `attention_unreachability_bound` says what cannot.

Because the control comes before the state, nothing of the state can be kept in a cache: every
candidate is a forward pass over the whole text.

Source: What's the Magic Word? A Control Theory of LLM Prompting (arXiv 2310.04444). The bound was
derived anew. Changed: of the candidates that make y the output the likeliest is taken, and only
otherwise the one with the least loss (a smaller loss does not imply that y is the output).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from tokenry.core.checks import in_range
from tokenry.core.errors import InputError, ShapeError

TOKENS_PER_BATCH = 2048


@dataclass(frozen=True)
class ControlPrompt:
    """What a search for a prompt found.

    Attributes:
        prompt: the best control tokens.
        reached: whether they make the target the output, token by token.
        loss: mean cross-entropy of the target's tokens behind prompt and state, in nats.
        losses: the best so far after each round (greedy: of each length).
        method: "none", "greedy" or "gcg", what found it.
    """

    prompt: tuple[int, ...]
    reached: bool
    loss: float
    losses: tuple[float, ...]
    method: str

    @property
    def length(self) -> int:
        return len(self.prompt)


def greedy_back_generation(
    model: Any,
    state_ids: Sequence[int],
    target_ids: Sequence[int],
    k: int = 3,
    *,
    candidates: Iterable[int] | None = None,
    blacklist: Collection[int] = (),
    tokens_per_batch: int = TOKENS_PER_BATCH,
) -> ControlPrompt:
    """Prepend up to k tokens, one after the other, each the best of all candidates.

    Stops as soon as the target is the output, so the result's length is the number of tokens that
    it took.

    Args:
        candidates: the tokens to try, default all (a forward pass for each).
        blacklist: tokens that the prompt must not hold.
    """
    tried = _candidates(model, candidates, blacklist)
    score = _Scorer(model, state_ids, target_ids, tokens_per_batch)
    best = score.result([()], "none")
    losses = [best.loss]
    while len(best.prompt) < k and not best.reached:
        prompts = [(token, *best.prompt) for token in tried.tolist()]
        best = score.result(prompts, "greedy")
        losses.append(best.loss)
    return replace(best, losses=tuple(losses))


def gcg_prompt_search(
    model: Any,
    state_ids: Sequence[int],
    target_ids: Sequence[int],
    k: int,
    *,
    topk: int = 128,
    batch: int = 768,
    iters: int = 34,
    init: Sequence[int] | None = None,
    candidates: Iterable[int] | None = None,
    blacklist: Collection[int] = (),
    generator: torch.Generator | None = None,
    tokens_per_batch: int = TOKENS_PER_BATCH,
) -> ControlPrompt:
    """Greedy coordinate gradient: `iters` rounds of `batch` single swaps in a prompt of k tokens.

    A swap puts one of the `topk` tokens with the most negative gradient at a position, both drawn
    uniformly; the best swap is taken even if it is worse than the current prompt, and the best
    prompt ever seen is returned. Stops when the target is the output.

    Args:
        init: up to k tokens that the search starts from, with random ones before them.
    """
    generator = generator or torch.Generator().manual_seed(0)
    tried = _candidates(model, candidates, blacklist)
    in_range("k", k, "[1, inf)", integer=True)
    if init is not None and len(init) > k:
        raise InputError(f"the initial prompt has {len(init)} tokens, more than k={k}")
    start = list(init or ())
    drawn = torch.randint(len(tried), (k - len(start),), generator=generator)
    current = (*tried[drawn].tolist(), *start)
    score = _Scorer(model, state_ids, target_ids, tokens_per_batch)
    best = score.result([current], "gcg")
    losses = [best.loss]
    for _ in range(iters):
        if best.reached:
            break
        gradient = one_hot_gradient(model, current, state_ids, target_ids, tried)  # [k, n]
        choices = tried[gradient.topk(min(topk, len(tried)), largest=False).indices]  # [k, topk]
        position = torch.randint(k, (batch,), generator=generator)
        choice = torch.randint(choices.shape[1], (batch,), generator=generator)
        swapped = torch.tensor(current).repeat(batch, 1)
        swapped[torch.arange(batch), position] = choices[position, choice]
        attempt = score.result([tuple(row) for row in swapped.unique(dim=0).tolist()], "gcg")
        current = attempt.prompt
        if (attempt.reached, -attempt.loss) > (best.reached, -best.loss):
            best = attempt
        losses.append(best.loss)
    return replace(best, losses=tuple(losses))


def backoff_prompt_search(
    model: Any,
    state_ids: Sequence[int],
    target_ids: Sequence[int],
    *,
    greedy: int = 3,
    lengths: Sequence[int] = (4, 6, 8, 10),
    candidates: Iterable[int] | None = None,
    blacklist: Collection[int] = (),
    generator: torch.Generator | None = None,
    tokens_per_batch: int = TOKENS_PER_BATCH,
    **gcg: Any,
) -> ControlPrompt:
    """The shortest prompt that the searches find: none, then greedy ones, then GCG of each length.

    GCG starts from the best prompt so far; `gcg` are its topk, batch and iters. When nothing
    reaches the target, the best attempt with reached=False.
    """
    tried = _candidates(model, candidates, blacklist)
    shared: Any = {"candidates": tried.tolist(), "tokens_per_batch": tokens_per_batch}
    best = greedy_back_generation(model, state_ids, target_ids, greedy, **shared)
    losses = list(best.losses)
    for k in lengths:
        if best.reached:
            break
        attempt = gcg_prompt_search(
            model, state_ids, target_ids, k, init=best.prompt[-k:], generator=generator,
            **shared, **gcg,
        )  # fmt: skip
        for loss in attempt.losses:
            losses.append(min(loss, losses[-1]))
        if (attempt.reached, -attempt.loss) > (best.reached, -best.loss):
            best = attempt
    return replace(best, losses=tuple(losses))


def one_hot_gradient(
    model: Any,
    prompt: Sequence[int],
    state_ids: Sequence[int],
    target_ids: Sequence[int],
    token_ids: Tensor,
) -> Tensor:
    """d loss / d onehot(position i, token v), [k, n], for the prompt's positions and `token_ids`.

    The loss as a function of one-hot rows times the embedding matrix. The loss of a swap is to
    first order the loss plus G[i, new] - G[i, old].
    """
    device = next(model.parameters()).device
    embed = model.get_input_embeddings()
    text = torch.tensor([[*prompt, *state_ids, *target_ids[:-1]]], device=device)
    with torch.enable_grad():
        embedded = embed(text).detach().requires_grad_()
        output = model(inputs_embeds=embedded, logits_to_keep=len(target_ids), use_cache=False)
        loss = _cross_entropy(output.logits, torch.tensor([list(target_ids)], device=device))
        (gradient,) = torch.autograd.grad(loss.sum(), embedded)
    gradient = gradient[0, : len(prompt)].float()
    with torch.no_grad():  # through the layer: some models scale what they look up
        pieces = [gradient @ embed(ids).float().T for ids in token_ids.to(device).split(16384)]
    return torch.cat(pieces, 1).cpu()


def reachability_loss(
    logits: Tensor, reached: Tensor, push: float = 1.0, pull: float = 1.0
) -> Tensor:
    """How little a prompt with these last logits [..., V] leads to new outputs; to be minimised.

        push * mean_{v in R} log p(v)  +  pull * H(p restricted to the tokens not in R)

    The first term moves probability away from what was reached, the second concentrates the rest on
    one new token.

    Args:
        reached: [V] bool, the set R.
    """
    if reached.shape != logits.shape[-1:]:
        raise ShapeError(f"reached must be [{logits.shape[-1]}], got {list(reached.shape)}")
    logits = logits.float()
    away = concentrated = logits.new_zeros(logits.shape[:-1])
    if bool(reached.any()):
        away = logits.log_softmax(-1)[..., reached].mean(-1)
    if not bool(reached.all()):
        rest = logits[..., ~reached].softmax(-1)
        concentrated = -(rest * (rest + 1e-8).log()).sum(-1)
    return push * away + pull * concentrated


def reachable_set(
    model: Any,
    state_ids: Sequence[int],
    k: int = 3,
    *,
    candidates: Iterable[int] | None = None,
    blacklist: Collection[int] = (),
    expand: int = 1,
    push: float = 1.0,
    pull: float = 1.0,
    tokens_per_batch: int = TOKENS_PER_BATCH,
    progress: Callable[[int], None] | None = None,
) -> list[dict[int, tuple[int, ...]]]:
    """Outputs found with at most 0, 1, ..., k control tokens, each with a prompt that gives it.

    Exact over the candidates for 0 and 1 tokens. From there the `expand` prompts with the least
    `reachability_loss` are given every candidate as a further token in front, so the sets for more
    tokens are lower bounds.

    Args:
        progress: called with each length that is done.
    """
    tried = _candidates(model, candidates, blacklist).tolist()
    (logits,) = _last_logits(model, state_ids, [()], tokens_per_batch)
    prompt_of: dict[int, tuple[int, ...]] = {int(logits.argmax()): ()}
    by_length, parents = [dict(prompt_of)], [()]
    if progress:
        progress(0)
    for length in range(1, k + 1):
        prompts = [(token, *parent) for parent in parents for token in tried]
        reached = torch.zeros(logits.shape[-1], dtype=torch.bool, device=logits.device)
        reached[list(prompt_of)] = True
        best: dict[int, tuple[float, tuple[int, ...]]] = {}  # for every output its best prompt
        start = 0
        for part in _last_logits(model, state_ids, prompts, tokens_per_batch):
            losses = reachability_loss(part, reached, push, pull).tolist()
            for row, output in enumerate(part.argmax(-1).tolist()):
                prompt = prompts[start + row]
                prompt_of.setdefault(output, prompt)
                best[output] = min(best.get(output, (math.inf, ())), (losses[row], prompt))
            start += len(losses)
        parents = [prompt for _, prompt in sorted(best.values())[:expand]]
        by_length.append(dict(prompt_of))
        if progress:
            progress(length)
    return by_length


def attention_unreachability_bound(
    x0: Tensor,
    wq: Tensor,
    wk: Tensor,
    wv: Tensor,
    wanted: Tensor,
    max_norm: float,
    *,
    causal: bool = False,
) -> Tensor:
    """[m]: fewer control tokens than this cannot make an attention head output `wanted`.

    For imposed rows x0 [m, d], weights wq, wk [d, d_k] and wv [d, d_v], wanted outputs [m, d_v] at
    the imposed positions and control rows of norm <= max_norm:

        k_i >= g_i |y_i_perp| exp(-alpha) / (s_v max_norm)
        alpha = s_q s_k max_norm M_x / sqrt(d_k)

    with y_i the output without control, y_i_perp its part orthogonal to the wanted one, g_i the
    sum of the exponentiated scores at i without control, s_* the largest singular values and M_x
    the largest norm of a row of x0. Control tokens have at most k exp(alpha) of the weight, and
    only values of norm s_v max_norm to cancel that part with. The whole output is unreachable below
    the largest of the m numbers. Computed in log space and float64; inf where it overflows.

    Args:
        causal: position i sees the control and the imposed rows up to i, not all of them.
    """
    if x0.ndim != 2 or wanted.shape != (len(x0), wv.shape[1]):
        raise ShapeError(
            f"wanted must have a row of {wv.shape[1]} for each row of x0 {list(x0.shape)}, "
            f"got {list(wanted.shape)}"
        )
    in_range("max_norm", max_norm, "(0, inf)")
    x0, wq, wk, wv, wanted = (value.double() for value in (x0, wq, wk, wv, wanted))
    scores = (x0 @ wq) @ (x0 @ wk).T / math.sqrt(wk.shape[1])  # [m, m]
    if causal:
        unseen = torch.ones_like(scores, dtype=torch.bool).triu(1)
        scores = scores.masked_fill(unseen, -math.inf)
    free = scores.softmax(-1) @ (x0 @ wv)  # y, without control
    squared = wanted.square().sum(-1, keepdim=True)
    along = torch.where(squared > 0, (free * wanted).sum(-1, keepdim=True) / squared, 0.0) * wanted
    orthogonal = (free - along).norm(dim=-1)
    rounding = 1e-12 * free.norm(dim=-1)  # what is left of a part that is 0
    largest_q, largest_k, largest_v = (torch.linalg.matrix_norm(w, ord=2) for w in (wq, wk, wv))
    alpha = largest_q * largest_k * max_norm * x0.norm(dim=-1).max() / math.sqrt(wk.shape[1])
    log_bound = orthogonal.log() + scores.logsumexp(-1) - alpha - (largest_v * max_norm).log()
    return torch.where(orthogonal > rounding, log_bound.exp(), 0.0)


class _Scorer:
    """Losses of a target behind prompts and one state."""

    def __init__(
        self, model: Any, state_ids: Sequence[int], target_ids: Sequence[int], budget: int
    ):
        if not len(state_ids) or not len(target_ids):
            raise InputError("the state and the target need at least one token each")
        self.model, self.state, self.target = model, tuple(state_ids), tuple(target_ids)
        self.budget = budget

    def result(self, prompts: list[tuple[int, ...]], method: str) -> ControlPrompt:
        """The best of prompts of one length: one that reaches, else the one of least loss."""
        rest = (*self.state, *self.target[:-1])
        best: tuple[bool, float, tuple[int, ...]] | None = None
        start = 0
        for logits in _last_logits(self.model, rest, prompts, self.budget, len(self.target)):
            logits = logits.view(len(logits), len(self.target), -1)
            target = torch.tensor([self.target] * len(logits), device=logits.device)
            losses = _cross_entropy(logits, target)
            reached = (logits.argmax(-1) == target).all(-1)
            key = losses.masked_fill(~reached, math.inf)
            row = int((key if bool(reached.any()) else losses).argmin())
            candidate = (bool(reached[row]), -float(losses[row]), prompts[start + row])
            best = candidate if best is None or candidate[:2] > best[:2] else best
            start += len(logits)
        assert best is not None
        return ControlPrompt(best[2], best[0], -best[1], (), method)


@torch.inference_mode()
def _last_logits(
    model: Any,
    rest: Sequence[int],
    prompts: list[tuple[int, ...]],
    budget: int,
    keep: int = 1,
) -> Iterable[Tensor]:
    """Logits of the last `keep` positions of prompt + rest, in batches: [n, V], or [n, keep * V].

    The prompts of one call have one length, so nothing is padded.
    """
    device = next(model.parameters()).device
    length = len(prompts[0]) + len(rest)
    size = max(1, budget // length)
    tail = torch.tensor([list(rest)], device=device)
    for start in range(0, len(prompts), size):
        part = prompts[start : start + size]
        ids = tail.expand(len(part), -1)
        if part[0]:
            ids = torch.cat([torch.tensor(part, device=device), ids], 1)
        output = model(input_ids=ids, logits_to_keep=keep, use_cache=False)
        yield output.logits.float().flatten(1)


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """[B]: mean over the target's tokens; logits [B, m, V] predict targets [B, m]."""
    logprobs = logits.float().log_softmax(-1).gather(-1, targets[..., None])[..., 0]
    return -logprobs.mean(-1)


def _candidates(model: Any, candidates: Iterable[int] | None, blacklist: Collection[int]) -> Tensor:
    """The tokens that a prompt may hold, [n]. Raises InputError when there are none."""
    size = int(model.get_input_embeddings().weight.shape[0])
    given = range(size) if candidates is None else candidates
    banned = set(blacklist)
    tried = torch.tensor([int(token) for token in given if int(token) not in banned])
    if not len(tried):
        raise InputError("no token is left to build prompts of: candidates minus blacklist")
    if not 0 <= int(tried.min()) <= int(tried.max()) < size:
        raise InputError(f"candidates must be in 0..{size - 1}")
    return tried
