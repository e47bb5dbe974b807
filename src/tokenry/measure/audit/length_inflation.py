"""Length inflation: how much longer a language model's answers get when its prompt is disturbed.

Four lengths of each answer, all greedy: to the clean prompt; to the prompt with a harmless suffix
(the longest of several); to the prompt with random noise on its embeddings (the longest of as many
draws as the next one has); and to the worst perturbation of the same size that the stress test of
`measure.audit.verbosity` finds. Suffixes are what any user can type. A perturbation of embeddings
is out of reach for who can only send text: it says how near the model is to not stopping, and is
the upper end of the sensitivity, not an attack that was shown to exist in tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tokenry.core.batch import TokenBatch
from tokenry.core.checks import in_range
from tokenry.core.errors import InputError
from tokenry.decode.generate import ends as end_tokens
from tokenry.decode.generate import prompt_ids
from tokenry.measure.audit.verbosity import Generated, Read, eos_probability, length_stress_test
from tokenry.model import compat
from tokenry.model.decoding import DecodingState

SUFFIXES = (" Thank you!", " Please.", "\n", " ...")


@dataclass(frozen=True)
class LengthInflation:
    """Lengths in tokens, end token included; one of `limit` tokens was cut off.

    Attributes:
        clean: [B].
        noise: [B].
        stressed: [B].
        by_suffix: [S, B].
        limit: the most tokens that were generated.
        eps: the perturbation's bound on each embedding entry.
    """

    prompts: tuple[str, ...]
    suffixes: tuple[str, ...]
    clean: Tensor
    by_suffix: Tensor
    noise: Tensor
    stressed: Tensor
    limit: int
    eps: float

    meaning = (
        "Suffixes are what anyone can type. Noise and the worst perturbation change the prompt's "
        "embeddings, which a text cannot: they bound how near the model is to not stopping. Cap "
        "answers at a percentile of clean lengths. A + marks answers that were cut off here."
    )

    @property
    def suffixed(self) -> Tensor:
        """[B]: the longest answer to the prompt, with or without a suffix."""
        return torch.cat([self.clean[None], self.by_suffix]).amax(0)

    def factor(self, lengths: Tensor) -> float:
        """Mean length over the mean clean length; a lower bound when answers were cut off."""
        return float(lengths.double().mean() / self.clean.double().mean())

    @property
    def clean_cut(self) -> float:
        """Share of the clean answers that the limit cut off: these cannot be seen to get longer."""
        return float((self.clean >= self.limit).double().mean())


def length_inflation(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    *,
    max_new_tokens: int = 64,
    strength: float = 0.2,
    steps: int = 6,
    regenerate_every: int = 2,
    suffixes: Sequence[str] = SUFFIXES,
    losses: Collection[str] = ("uniformity", "eos"),
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> LengthInflation:
    """Measure it on these prompts, which are asked through the chat template if there is one.

    Args:
        strength: the perturbation's bound, in [0, inf), as a share of the root mean square of the
            prompts' embedding entries.
        losses: of the stress test; "diversity" adds a singular value decomposition a step.
        progress: called with the name of each part that is done.
    """
    if not prompts:
        raise InputError("length inflation needs at least one prompt")
    in_range("max_new_tokens", max_new_tokens, "[1, inf)", integer=True)
    in_range("strength", strength, "[0, inf)")
    ends = end_tokens(model, tokenizer)
    if not ends:
        raise InputError("the model has no end token: the length of its texts is the limit")
    done = progress or (lambda part: None)

    def read(texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        rows = [prompt_ids(tokenizer, as_prompt(tokenizer, text)) for text in texts]
        return embedded(model, rows)

    def lengths(prefix: Tensor, attention: Tensor) -> Generated:
        return generate_from(model, prefix, attention, ends, max_new_tokens)

    prefix, attention = read(prompts)
    clean = lengths(prefix, attention).lengths
    done("clean")
    texts = [prompt + suffix for suffix in suffixes for prompt in prompts]
    by_suffix = lengths(*read(texts)).lengths.view(len(suffixes), -1) if texts else clean[:0, None]
    done("suffixes")
    eps = strength * float(prefix[attention].float().square().mean().sqrt())
    draws = -(-steps // regenerate_every)  # further texts of the stress test

    def stress(wanted: tuple[str, ...], **how: Any) -> Tensor:
        return length_stress_test(
            lambda x: lengths(x, attention),
            lambda x, t: read_from(model, x, attention, t, hidden="diversity" in wanted),
            prefix,
            ends,
            eps=eps,
            alpha=2 * eps / max(steps, 1),
            losses=wanted,
            generator=torch.Generator().manual_seed(seed),
            **how,
        ).lengths

    noise = stress((), steps=draws)
    done("noise")
    stressed = stress(
        tuple(losses),
        steps=steps,
        regenerate_every=regenerate_every,
        start=torch.zeros_like(prefix),
    )
    done("stressed")
    return LengthInflation(
        tuple(prompts), tuple(suffixes), clean, by_suffix, noise, stressed, max_new_tokens, eps
    )


def as_prompt(tokenizer: Any, text: str) -> Any:
    """A chat message where the tokenizer has a template, else the text as it is."""
    return text if tokenizer.chat_template is None else [{"role": "user", "content": text}]


@torch.no_grad()
def embedded(model: Any, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Input embeddings [B, T, D] of id rows, padded on the left, and which are real, [B, T]."""
    batch = TokenBatch.from_ids(rows, padding_side="left").to(next(model.parameters()).device)
    return model.get_input_embeddings()(batch.ids), batch.attention


@torch.inference_mode()
def generate_from(
    model: Any,
    prefix: Tensor,
    attention: Tensor,
    ends: Collection[int],
    max_new_tokens: int,
    *,
    generator: torch.Generator | None = None,
    top_p: float = 1.0,
) -> Generated:
    """Texts behind embeddings [B, T, D], padded on the left.

    Greedy; with a generator sampled, from the smallest set of tokens with probability top_p, in
    (0, 1]. The columns behind a text's end repeat its end token.
    """
    in_range("max_new_tokens", max_new_tokens, "[1, inf)", integer=True)
    in_range("top_p", top_p, "(0, 1]")
    cache = compat.plain_cache(model)
    output = model(
        inputs_embeds=prefix,
        attention_mask=attention.long(),
        position_ids=(attention.long().cumsum(1) - 1).clamp_min(0),
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    state = DecodingState(model, cache, attention.bool(), output.logits[:, -1].float())
    stop = torch.tensor(sorted(ends), device=prefix.device)
    tokens = torch.zeros(len(prefix), max_new_tokens, dtype=torch.long, device=prefix.device)
    lengths = torch.full((len(prefix),), max_new_tokens)
    alive = torch.arange(len(prefix), device=prefix.device)
    for step in range(max_new_tokens):
        token = state.logits.argmax(-1)
        if generator is not None:
            token = _nucleus(state.logits, top_p, generator)
        tokens[alive, step:] = token[:, None]
        ended = torch.isin(token, stop)
        lengths[alive[ended].cpu()] = step + 1
        if step + 1 == max_new_tokens or bool(ended.all()):
            break
        if bool(ended.any()):
            state.select((~ended).nonzero()[:, 0])
            alive, token = alive[~ended], token[~ended]
        state.append(token)
    return Generated(tokens[:, : int(lengths.max())].clone(), lengths)


def read_from(
    model: Any, prefix: Tensor, attention: Tensor, texts: Generated, *, hidden: bool = True
) -> Read:
    """The model's pass over embeddings and texts, differentiable in the embeddings [B, T, D].

    The positions read are those that predict the text: the last of the prefix and all tokens but
    each text's last.
    """
    count = texts.tokens.shape[1]
    tokens = texts.tokens[:, :-1].clone()  # a tensor of inference mode cannot be differentiated
    text = model.get_input_embeddings()(tokens).to(prefix.dtype)
    column = torch.arange(count, device=prefix.device)
    mask = column < texts.lengths.to(prefix.device)[:, None]  # [B, T]
    seen = torch.cat([attention.bool(), mask[:, 1:]], 1)
    output = model(
        inputs_embeds=torch.cat([prefix, text], 1),
        attention_mask=seen.long(),
        position_ids=(seen.long().cumsum(1) - 1).clamp_min(0),
        use_cache=False,
        output_hidden_states=hidden,
        logits_to_keep=count,
    )
    states = tuple(layer[:, -count:] for layer in output.hidden_states) if hidden else ()
    return Read(output.logits, states, mask)


def anomaly_inputs(read: Read, ends: Collection[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Entropies, end probabilities and mask, [B, T] each: what `length_anomaly` takes."""
    logprobs = read.logits.detach().float().log_softmax(-1)
    entropies = torch.special.entr(logprobs.exp()).sum(-1)
    return entropies, eos_probability(read.logits.detach(), ends), read.mask


def _nucleus(logits: Tensor, top_p: float, generator: torch.Generator) -> Tensor:
    shares, order = logits.softmax(-1).sort(-1, descending=True)
    before = shares.cumsum(-1) - shares  # the likeliest token always stays
    shares = torch.where(before < top_p, shares, 0.0).cpu()
    drawn = torch.multinomial(shares, 1, generator=generator).to(order.device)
    return order.gather(-1, drawn)[:, 0]
