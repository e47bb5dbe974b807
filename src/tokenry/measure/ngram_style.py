"""Style sweep: what n-gram steering buys and costs, as its strength grows.

For each strength λ, texts y are sampled from the steered model p' and judged by

    style perplexity    exp(-mean log p_style(y_t))         the interpolated n-grams of the corpus
    base perplexity     exp(-mean log p(y_t | y_<t))        the model without steering
    divergence          mean JS(p || p') over the steps, nats, at most ln 2
    changed             share of steps at which p and p' have different most probable tokens
    overlap             share of the tokens (and of the distinct tokens) that occur in the corpus
    distinct-2          distinct bigrams of a text over its bigrams; low: it repeats itself

A base perplexity that falls is no praise by itself: text that repeats itself is easy to predict.

Source: Limits of n-gram Style Control for LLMs via Logit-Space Injection (arXiv 2601.16224); the
formulas of the measures are the usual ones, distinct-2 is added.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tokenry.core.batch import TokenBatch
from tokenry.core.checks import in_range
from tokenry.core.divergence import divergence
from tokenry.core.divergences import JENSEN_SHANNON
from tokenry.core.errors import InputError
from tokenry.decode.generate import ends, prompt_ids
from tokenry.decode.sample import sample as sample_rows
from tokenry.decode.steering.ngram_style import NGramStyle
from tokenry.model import compat
from tokenry.text.ngrams import NOTHING, NGramModel


@dataclass(frozen=True)
class StylePoint:
    """One strength of a sweep, averaged over all generated tokens; `distinct_2` over texts."""

    strength: float
    style_perplexity: float
    base_perplexity: float
    divergence: float
    changed: float
    token_overlap: float
    type_overlap: float
    distinct_2: float
    texts: tuple[str, ...]


def style_sweep(
    loaded: tuple[Any, Any],
    ngrams: NGramModel,
    prompts: Sequence[str],
    strengths: Sequence[float] = (0.0, 0.05, 0.1, 0.2, 0.4, 0.8),
    *,
    samples: int = 1,
    max_new_tokens: int = 40,
    temperature: float = 1.0,
    seed: int = 0,
) -> list[StylePoint]:
    """Sample `samples` texts after each prompt at each strength, with the same random numbers.

    Texts that end at once are left out of the averages.

    Args:
        loaded: (model, tokenizer).
    """
    points = []
    for strength in strengths:
        prompted, texts = sample(
            loaded, ngrams, prompts, strength, samples, max_new_tokens, temperature, seed
        )
        points.append(judge(loaded, ngrams, strength, prompted, texts))
    return points


def sample(
    loaded: tuple[Any, Any],
    ngrams: NGramModel,
    prompts: Sequence[str],
    strength: float,
    samples: int = 1,
    max_new_tokens: int = 40,
    temperature: float = 1.0,
    seed: int = 0,
) -> tuple[list[list[int]], list[list[int]]]:
    """Ids of the prompts, one for each text, and of the sampled texts without their ends."""
    model, tokenizer = loaded
    prompted = [prompt_ids(tokenizer, prompt) for prompt in prompts for _ in range(samples)]
    if not prompted or not all(prompted):
        raise InputError("give at least one prompt, each with at least one token")
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else ends(*loaded)[0]
    batch = TokenBatch.from_ids(prompted, pad_id=pad, padding_side="left").to(model.device)
    compat.require_left_padding(model, batch.attention)
    with torch.random.fork_rng():
        torch.manual_seed(seed)  # the draws are from the global generator
        texts = sample_rows(
            model,
            batch.ids,
            batch.attention,
            max_new_tokens=max_new_tokens,
            ends=ends(*loaded),
            temperature=temperature,
            processors=[NGramStyle(ngrams, strength, pad_token_id=pad)],
            leave=False,
        )
    return prompted, [until_end(text, ends(*loaded)) for text in texts]


@torch.inference_mode()
def judge(
    loaded: tuple[Any, Any],
    ngrams: NGramModel,
    strength: float,
    prompted: Sequence[Sequence[int]],
    texts: Sequence[Sequence[int]],
) -> StylePoint:
    """The measures of texts that were written after the prompts `prompted`."""
    model, tokenizer = loaded
    steer = NGramStyle(ngrams, strength)
    style, base, apart, changed, distinct = [], [], [], [], []
    for prompt, text in zip(prompted, texts, strict=True):
        if not text:
            continue
        ids = torch.tensor([*prompt, *text])
        logits = model(ids[None].to(model.device)).logits[0, len(prompt) - 1 : -1].float().cpu()
        base.append(logits.log_softmax(-1).gather(-1, ids[len(prompt) :, None])[:, 0])
        style.append(ngrams.logprob(ids)[len(prompt) :])
        steered = steer(contexts(ids, len(prompt), ngrams.order), logits)
        apart.append(divergence(logits, steered, JENSEN_SHANNON))
        changed.append(logits.argmax(-1) != steered.argmax(-1))
        distinct.append(distinct_n(text))
    if not base:
        raise InputError("every text ended at once: there is nothing to judge")
    words = torch.tensor([token for text in texts for token in text])
    return StylePoint(
        strength=strength,
        style_perplexity=math.exp(-float(torch.cat(style).mean())),
        base_perplexity=math.exp(-float(torch.cat(base).mean())),
        divergence=float(torch.cat(apart).mean()),
        changed=float(torch.cat(changed).float().mean()),
        token_overlap=float(ngrams.knows(words).float().mean()),
        type_overlap=float(ngrams.knows(words.unique()).float().mean()),
        distinct_2=sum(distinct) / len(distinct),
        texts=tuple(tokenizer.decode(text) for text in texts),
    )


def contexts(ids: Tensor, start: int, order: int) -> Tensor:
    """The order - 1 tokens before each token from `start` on, `[T - start, order - 1]`."""
    if order == 1:
        return ids.new_zeros(len(ids) - start, 0)
    before = torch.cat([ids.new_full((order - 1,), NOTHING), ids])
    return before.unfold(0, order - 1, 1)[start : len(ids)]


def distinct_n(text: Sequence[int], n: int = 2) -> float:
    """Distinct n-grams (n >= 1) over n-grams of a text; 1 for a text without any."""
    in_range("n", n, "[1, inf)", integer=True)
    grams = [tuple(text[i : i + n]) for i in range(len(text) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 1.0


def until_end(text: Sequence[int], ends: Sequence[int]) -> list[int]:
    """The tokens before the first one that ends a text."""
    length = next((i for i, token in enumerate(text) if token in ends), len(text))
    return list(text[:length])
