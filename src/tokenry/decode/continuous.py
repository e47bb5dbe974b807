"""Continuous chain of thought: what is read next is a mixture of embeddings, not one token.

    alpha_t = softmax(z_t)               at each of `steps` thoughts
    e_t     = E^T beta_t                 what the model reads next, E [V, D] the embeddings

    mean        beta = alpha                                 deterministic
    greedy      beta = 1 at the likeliest token              an ordinary chain of thought
    mts         beta = shares of `tokens` draws from alpha   1: sampling;  many: "mean"
    dirichlet   beta ~ Dirichlet(concentration alpha), tokens of alpha < 1e-3 left out

then the answer in tokens, the likeliest ones.

Source: Continuous Chain of Thought Enables Parallel Exploration and Reasoning (arXiv 2505.23648).
Ours: in "dirichlet" chances are those of the policy at hand; kept tokens are renormalised.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy
import torch
from torch import Tensor

from tokenry.core.checks import in_range, one_of
from tokenry.decode.sample import sample
from tokenry.model.compat import unwrap
from tokenry.model.decoding import DecodingState
from tokenry.model.modes import evaluating

Mode = Literal["mean", "greedy", "mts", "dirichlet"]
LEAST = 1e-3


@torch.no_grad()
def continuous_generate(
    model: Any,
    prompts: Tensor,
    steps: int,
    mode: Mode = "mean",
    *,
    attention: Tensor | None = None,
    tokens: int = 1,
    concentration: float = 1.0,
    answer: int = 1,
    ends: tuple[int, ...] = (),
    generator: torch.Generator | None = None,
) -> tuple[Tensor, list[list[int]]]:
    """Thoughts and answers behind prompts.

    Args:
        prompts: [B, T] ids, left-padded. attention: [B, T], False on padding.
        steps: thoughts, >= 0; 0 answers at once.
        tokens: K of "mts", >= 1. concentration: gamma of "dirichlet", in (0, inf).
        answer: tokens of the answer at most, >= 1. ends: ids that end it.
        generator: of the draws, on the CPU; None: torch's global one.

    Returns:
        alpha, [B, steps, V] float32, and the ids of each answer.
    """
    one_of("mode", mode, get_args(Mode))
    in_range("steps", steps, "[0, inf)", integer=True)
    in_range("tokens", tokens, "[1, inf)", integer=True)
    in_range("concentration", concentration, "(0, inf)")
    table = unwrap(model).get_input_embeddings()
    thoughts = []
    with evaluating(model):
        state = DecodingState.start(model, prompts, attention)
        for _ in range(steps):
            alpha = state.logits.softmax(-1)
            thoughts.append(alpha)
            beta = mixture(alpha, mode, tokens, concentration, generator)
            embedded = (beta.to(table.weight.dtype) @ table.weight)[:, None]
            # an embedding has no id: the tree takes any
            none = torch.zeros_like(prompts[:, :1])
            state.tree(none, none - 1, inputs_embeds=embedded)
            state.keep(none)
        answers = sample(
            model, prompts, state=state, max_new_tokens=answer, ends=ends, temperature=0.0
        )
    size = (len(prompts), 0, len(table.weight))
    return torch.stack(thoughts, 1) if thoughts else torch.zeros(size), answers


def mixture(
    alpha: Tensor,
    mode: Mode,
    tokens: int = 1,
    concentration: float = 1.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """beta [B, V], the weights of the embeddings, from chances alpha [B, V]; see above."""
    if mode == "mean":
        return alpha
    if mode == "greedy":
        return torch.nn.functional.one_hot(alpha.argmax(-1), alpha.shape[-1]).to(alpha)
    if mode == "mts":
        drawn = torch.multinomial(alpha.cpu(), tokens, replacement=True, generator=generator)
        share = torch.full_like(alpha[:, :1], 1 / tokens).expand(-1, tokens)
        return torch.zeros_like(alpha).scatter_add_(-1, drawn.to(alpha.device), share)
    kept = torch.where(alpha >= LEAST, alpha, 0.0)
    kept = torch.where(kept.sum(-1, keepdim=True) > 0, kept, alpha)
    kept = kept / kept.sum(-1, keepdim=True)
    shape = (concentration * kept).double().cpu()
    seed = int(torch.randint(2**62, (1,), generator=generator))
    gamma = torch.from_numpy(numpy.random.default_rng(seed).standard_gamma(shape.numpy()))
    return (gamma / gamma.sum(-1, keepdim=True)).to(alpha)
