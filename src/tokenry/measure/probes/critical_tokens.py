"""Critical tokens: which token of a wrong answer doomed it.

By rollouts (exact in the limit of many samples): score(t) is the share of completions of y_<=t that
end in a correct answer. The critical token is the earliest t with score(t) = 0 after which no
prefix comes back to more than a few percent.

By contrast (one forward pass of two models): a model p+ tuned on correct answers and a model p-
tuned on wrong ones give

    s = softmax( (1 + gamma) z+ - gamma z- )          proportional to  p+ (p+ / p-)^gamma

with z their logits; the score of token t is s_t = s(y_t | x, y_<t) in (0, 1). It is low where the
wrong model likes the token and the right one does not.

Source: Critical Tokens Matter: Token-Level Contrastive Estimation Enhances LLM's Reasoning
Capability (arXiv 2411.19943). pass@k is the unbiased estimator 1 - C(n - c, k) / C(n, k).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from tokenry.core.checks import in_range
from tokenry.core.errors import InputError
from tokenry.core.extrapolate import extrapolate
from tokenry.core.scores import Scores
from tokenry.decode.rollouts import rollouts


def contrastive_estimation(positive: Scores, negative: Scores, gamma: float = 1.0) -> Tensor:
    """s_t of every scored token, [B, T], a constant; 0 elsewhere.

    Args:
        positive: scores made with "hidden" by the models of correct and of wrong answers.
        negative: as `positive`.
        gamma: strength of the contrast, in [0, inf); 0 gives the probability under the positive
            model.
    """
    in_range("gamma", gamma, "[0, inf)")
    with torch.no_grad():
        logprob = extrapolate(positive.detach(), negative.detach(), gamma).need("logprob")
        return torch.where(positive.mask, logprob, -math.inf).exp()


def rollout_scores(
    model: Any,
    prompt: Sequence[int],
    ids: Sequence[int],
    is_correct: Callable[[list[int]], bool],
    *,
    samples: int = 64,
    max_new_tokens: int,
    ends: Collection[int] = (),
    seed: int | torch.Generator = 0,
) -> Tensor:
    """score(t) for every prefix of the completion `ids`, [T]: the share of correct completions.

    Args:
        is_correct: judges a whole completion, prefix included; a prefix that ends is judged as it
            is.
        max_new_tokens: how far each prefix is continued.
    """
    prefixes = [list(ids[: t + 1]) for t in range(len(ids))]
    unended = [prefix for prefix in prefixes if prefix[-1] not in ends]
    continued = rollouts(
        model,
        [[*prompt, *prefix] for prefix in unended],
        samples,
        max_new_tokens=max_new_tokens,
        ends=ends,
        seed=seed,
    )
    open_scores = iter(
        sum(is_correct([*prefix, *rest]) for rest in completions) / samples
        for prefix, completions in zip(unended, continued, strict=True)
    )
    return torch.tensor(
        [
            float(is_correct(prefix)) if prefix[-1] in ends else next(open_scores)
            for prefix in prefixes
        ],
        dtype=torch.float64,  # k / n as it is, to be compared with shares
    )


def critical_token(scores: Sequence[float] | Tensor, max_later: float = 0.05) -> int | None:
    """The critical token's place: the earliest score of 0 that no later one exceeds by max_later.

    None when there is none: every 0 was followed by a recovery.

    Args:
        max_later: in [0, 1).
    """
    in_range("max_later", max_later, "[0, 1)")
    values = [float(score) for score in scores]
    best_later = 0.0
    critical = None
    for position in range(len(values) - 1, -1, -1):
        if values[position] == 0.0:
            critical = position
        best_later = max(best_later, values[position])
        if best_later > max_later:
            break  # an earlier 0 would be cancelled by this one
    return critical


def replaced_token_scores(
    model: Any,
    prompt: Sequence[int],
    ids: Sequence[int],
    position: int,
    is_correct: Callable[[list[int]], bool],
    *,
    samples: int = 64,
    max_new_tokens: int,
    ends: Collection[int] = (),
    seed: int | torch.Generator = 0,
) -> tuple[int, int]:
    """Correct completions, of `samples` each, without and with the token at `position`.

    Without: the token's probability is 0 there and the rest of the distribution renormalised, each
    sample drawing its own replacement. With: the token stays, what follows it is sampled.
    """
    before = list(ids[:position])
    counts = []
    for prefix, banned in ((before, ids[position]), ([*before, ids[position]], None)):
        (completions,) = rollouts(
            model,
            [[*prompt, *prefix]],
            samples,
            max_new_tokens=max_new_tokens,
            ends=ends,
            banned=[banned],
            seed=seed,
        )
        counts.append(sum(is_correct([*prefix, *rest]) for rest in completions))
    return counts[0], counts[1]


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """The chance that k of n samples hold a correct one, unbiased from c correct of n."""
    if not 0 <= correct <= samples or not 1 <= k <= samples:
        raise InputError(
            f"pass@{k} of {correct} correct in {samples} samples: need 0 <= correct <= samples and "
            "1 <= k <= samples"
        )
    return 1 - math.comb(samples - correct, k) / math.comb(samples, k)
