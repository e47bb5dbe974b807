"""Sampling completions: the one loop behind rollouts, anchors, candidates and answers.

    y_t ~ softmax( logits(. | x, y_<t) / temperature )        until an end token, or max_new_tokens

and nothing else. `model.generate` obeys the model's generation settings (penalties, cut-offs,
suppressed and forced tokens, beams, ...), so what it draws is not always the model's own
distribution; here only what is passed counts.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from tokenry.core.checks import in_range
from tokenry.core.errors import InputError
from tokenry.model import compat
from tokenry.model.decoding import DecodingState
from tokenry.model.modes import evaluating

Processor = Callable[[Tensor, Tensor], Tensor]


def sample(
    model: Any,
    prompts: Tensor,
    attention: Tensor | None = None,
    *,
    of: Tensor | None = None,
    max_new_tokens: int,
    ends: Collection[int] = (),
    temperature: float = 1.0,
    processors: Sequence[Processor] = (),
    leave: bool = True,
    state: DecodingState | None = None,
    generator: torch.Generator | None = None,
) -> list[list[int]]:
    """Completions as token ids, the end token included.

    Args:
        prompts: [B, T] ids, left-padded; each is read once. attention: [B, T], False on padding.
        of: [N], which prompt each completion continues; by default one of each, in order.
        ends: ids that end a completion. max_new_tokens: the longest, >= 1.
        temperature: > 0 and finite; 0 takes the likeliest token.
        processors: functions (ids [N, L] so far, prompt included; logits [N, V]) -> logits, before
            the temperature.
        leave: rows that have ended leave the batch, which is faster. False keeps them, so that the
            random numbers of a row do not depend on when the others end.
        state: one that has read the prompts already (behind a soft prompt, say); it is used up.
        generator: None draws from torch's global generator, of the model's device.

    The model is in evaluation mode meanwhile.

    Raises:
        InputError: settings that draw nothing, and when the processors leave no token.
    """
    in_range("max_new_tokens", max_new_tokens, "[1, inf)", integer=True)
    in_range("temperature", temperature, "[0, inf)")
    together = compat.passes_must_agree(model)  # then no process may stop before the others
    last = torch.tensor(sorted(ends), dtype=torch.long)
    with evaluating(model):
        if state is None:
            state = DecodingState.start(model, prompts, attention)
        ids = prompts
        if of is not None:
            state.select(of)
            ids = prompts[of.to(prompts.device)]
        completions: list[list[int]] = [[] for _ in range(len(ids))]
        alive = torch.arange(len(ids))  # the completion that each row of the state continues
        ended = torch.zeros(len(ids), dtype=torch.bool)  # by row of the state
        for step in range(max_new_tokens):
            logits = state.logits.clone() if processors else state.logits  # they may write into it
            for processor in processors:
                logits = processor(ids, logits)
            tokens = draw(logits, temperature, generator)
            rows = zip(alive.tolist(), tokens.tolist(), ended.tolist(), strict=True)
            for number, token, over in rows:
                if not over:
                    completions[number].append(token)
            ended |= torch.isin(tokens, last)
            if step + 1 == max_new_tokens or not compat.any_process(not ended.all(), together):
                break
            if leave and not together and bool(ended.any()):
                going = (~ended).nonzero()[:, 0]
                state.select(going)
                ids = ids[going.to(ids.device)]
                tokens, alive, ended = tokens[going], alive[going], ended[going]
            tokens = tokens.to(state.attention.device)
            ids = torch.cat([ids, tokens[:, None].to(ids.device)], 1)
            state.append(tokens)
    return completions


def draw(logits: Tensor, temperature: float, generator: torch.Generator | None = None) -> Tensor:
    """[N, V] -> [N] tokens, on the CPU; at temperature 0 the likeliest ones. InputError for logits
    that are no distribution."""
    if temperature == 0:
        return logits.argmax(-1).cpu()
    probabilities = (logits.float() / temperature).softmax(-1)
    if generator is not None:
        probabilities = probabilities.to(generator.device)
    if not bool(probabilities.isfinite().all()):
        raise InputError(
            "the next token has no distribution: the model's logits are not finite, or nothing is "
            "left of them"
        )
    return torch.multinomial(probabilities, 1, generator=generator)[:, 0].cpu()
