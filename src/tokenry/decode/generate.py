"""generate: text from a model, constrained and weighted; what `tokenry generate` runs.

loaded = tokenry.load()
schema = Grammar.json_schema({"type": "object", ...}, loaded.tokenizer)
samples = generate(loaded, "Describe a city as JSON: ", constraint=schema, particles=8)
samples.texts[samples.best], samples.log_evidence
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import torch

from tokenry.core import boundaries
from tokenry.core.chat import Chat, messages_of
from tokenry.core.errors import ConstraintError, InputError, UnknownNameError
from tokenry.decode.constraints.base import Anything, Constraint
from tokenry.decode.samplers.base import TokenSampler
from tokenry.decode.samplers.base import sampler as samplers
from tokenry.decode.samplers.request import (
    Processor,
    Progress,
    Request,
    TextSampler,
    text_sampler,
)
from tokenry.decode.samplers.samples import Samples
from tokenry.decode.samplers.smc import SMC, Critic, MaskedTexts
from tokenry.decode.window import new_tokens_within, warn_of_window
from tokenry.model.decoding import DecodingState

Prompt = str | Sequence[int] | Sequence[Mapping[str, str]]


def generate(
    loaded: tuple[Any, Any],
    prompt: Prompt,
    constraint: Constraint | None = None,
    sampler: str | TokenSampler | TextSampler = "awrs",
    particles: int = 1,
    max_new_tokens: int = 64,
    temperature: float = 1.0,
    seed: int | torch.Generator = 0,
    processors: Sequence[Processor] = (),
    *,
    ess_threshold: float = 0.5,
    resampling: str = "multinomial",
    critic: Critic | None = None,
    must_end: bool | None = None,
    progress: Progress | None = None,
) -> Samples:
    """Continue `prompt` with `particles` texts that satisfy `constraint`.

    Texts end where the model's window does, with a warning.

    Args:
        loaded: (model, tokenizer), as `tokenry.load` gives it.
        prompt: a text, its token ids, or chat messages, which go through the tokenizer's chat
            template.
        sampler: a sampler of texts, one of tokens (which sequential Monte Carlo then uses), or the
            name of either; "mask" is plain local masking, whose texts are valid and not weighted,
            and "greedy" takes the most probable allowed token.
        temperature: of the model that is sampled from; the weights refer to that model.
        processors: transformers' logits processors, part of the model that is sampled from.
        ess_threshold: of sequential Monte Carlo (`smc`).
        resampling: of sequential Monte Carlo (`smc`).
        critic: of sequential Monte Carlo (`smc`).
        must_end: whether a text that the limit cuts off weighs nothing. None: under a constraint it
            does, without one it keeps its weight.

    Raises:
        InputError: a prompt that fills it.
        ConstraintError: no token can go on with any of the texts, with the text at which that
            happened.
    """
    model, tokenizer = loaded
    ids = prompt_ids(tokenizer, prompt)
    chosen = text_sampler_of(sampler, ess_threshold, resampling, critic)
    device = next(model.parameters()).device
    language = constraint or Anything(model.config.get_text_config().vocab_size, ends(*loaded))
    limit = new_tokens_within(model, len(ids), max_new_tokens)
    language.begin(ids)  # a constraint that nothing satisfies fails before the prompt is read
    request = Request(
        DecodingState.start(model, torch.tensor([ids], device=device)),
        language,
        prompt_ids=tuple(ids),
        max_new_tokens=limit,
        temperature=temperature,
        must_end=constraint is not None if must_end is None else must_end,
        processors=processors,
        generator=torch.Generator().manual_seed(seed) if isinstance(seed, int) else seed,
        progress=progress,
        loaded=(model, tokenizer),
    )
    samples = chosen(request, particles)
    if samples.dead_end is not None:
        raise dead_end(tokenizer, samples.dead_end)
    if limit < max_new_tokens and not all(samples.finished):
        warn_of_window(model)
    texts = [tokenizer.decode(text, skip_special_tokens=True) for text in samples.ids]
    return replace(samples, texts=texts)


def dead_end(tokenizer: Any, ids: Sequence[int]) -> ConstraintError:
    """That no token can go on with the text."""
    return ConstraintError(
        f"no token satisfies the constraint after {tokenizer.decode(ids)!r} ({len(ids)} tokens): "
        "the constraint, or what else ends or steers the text, leads into a dead end there"
    )


def text_sampler_of(
    sampler: str | TokenSampler | TextSampler,
    ess_threshold: float = 0.5,
    resampling: str = "multinomial",
    critic: Critic | None = None,
) -> TextSampler:
    """The sampler of texts that a name, a token sampler or a text sampler stands for."""
    if sampler == "greedy":
        return MaskedTexts(greedy=True)
    if isinstance(sampler, str):
        if sampler in text_sampler.names() and sampler != "smc":
            return text_sampler[sampler]()
        if sampler != "smc" and sampler not in samplers.names():
            known = [*text_sampler.names(), *samplers.names(), "greedy"]
            raise UnknownNameError("sampler", sampler, sorted(set(known)))
        sampler = "awrs" if sampler == "smc" else sampler
    elif not hasattr(sampler, "steps"):
        return cast(TextSampler, sampler)
    return SMC(cast(str | TokenSampler, sampler), ess_threshold, resampling, critic)


def prompt_ids(tokenizer: Any, prompt: Prompt) -> list[int]:
    """Token ids of a text, of chat messages, or of ids themselves.

    Messages that end with the assistant's are to be gone on with.

    Raises:
        InputError: empty.
    """
    if isinstance(prompt, str):
        start = boundaries.start_ids(tokenizer)  # all there is before an empty text
        ids = boundaries.prompt_ids(tokenizer, prompt) if prompt else start
    elif prompt and isinstance(prompt[0], Mapping):
        text = Chat(tokenizer).prompt(messages_of(list(prompt)))  # type: ignore[arg-type]
        ids = boundaries.prompt_ids(tokenizer, text, templated=True)
    else:
        ids = [int(token) for token in prompt]  # type: ignore[arg-type]
    if not ids:
        raise InputError("the prompt is empty: give at least one token to continue")
    return ids


def ends(model: Any, tokenizer: Any) -> list[int]:
    """The ids that end a text: the generation settings' ones and the tokenizer's."""
    configured = getattr(model.generation_config, "eos_token_id", None)
    ids = configured if isinstance(configured, list) else [configured]
    return sorted({token for token in [*ids, tokenizer.eos_token_id] if token is not None})
