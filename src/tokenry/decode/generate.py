"""generate: text from a model, constrained and weighted; what `tokenry generate` runs.

loaded = tokenry.load()
schema = Grammar.json_schema({"type": "object", ...}, loaded.tokenizer)
samples = generate(loaded, "Describe a city as JSON: ", constraint=schema, particles=8)
samples.texts[samples.best], samples.log_evidence
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tokenry.core import registry
from tokenry.core.errors import ConstraintError, InputError
from tokenry.decode.constraints.base import Anything, Constraint
from tokenry.decode.samplers.base import TokenSampler
from tokenry.decode.samplers.masked import Masked
from tokenry.decode.samplers.smc import Critic, Samples, smc
from tokenry.model.decoding import DecodingState

Prompt = str | Sequence[int] | Sequence[Mapping[str, str]]


def generate(
    loaded: tuple[Any, Any],
    prompt: Prompt,
    constraint: Constraint | None = None,
    sampler: str | TokenSampler = "awrs",
    particles: int = 1,
    max_new_tokens: int = 64,
    temperature: float = 1.0,
    seed: int | torch.Generator = 0,
    processors: Sequence[Callable[[Tensor, Tensor], Tensor]] = (),
    *,
    ess_threshold: float = 0.5,
    resampling: str = "multinomial",
    critic: Critic | None = None,
    must_end: bool | None = None,
    progress: Callable[[int, list[list[int]]], None] | None = None,
) -> Samples:
    """Continue `prompt` with `particles` texts that satisfy `constraint`.

    loaded: (model, tokenizer), as `tokenry.load` gives it. prompt: a text, its token ids, or chat
    messages, which go through the tokenizer's chat template. sampler: a token sampler or its name;
    "mask" is plain local masking, whose texts are valid and not weighted, and "greedy" takes the
    most probable allowed token. temperature: of the model that is sampled from; the weights refer
    to that model. The other arguments are those of `smc`.

    must_end: whether a text that the limit cuts off weighs nothing. None: under a constraint it
    does, without one it keeps its weight.

    Raises ConstraintError when no token can go on with any of the texts, with the text at which
    that happened.
    """
    model, tokenizer = loaded
    ids = prompt_ids(tokenizer, prompt)
    plain = sampler in ("mask", "greedy")
    if sampler == "greedy":
        chosen: TokenSampler = Masked(greedy=True)
    else:
        chosen = registry.sampler[sampler]() if isinstance(sampler, str) else sampler
    device = next(model.parameters()).device
    reader = constraint or Anything(model.config.get_text_config().vocab_size, ends(*loaded))
    reader.begin(ids)  # a constraint that nothing satisfies fails before the prompt is read
    samples = smc(
        DecodingState.start(model, torch.tensor([ids], device=device)),
        reader,
        particles=particles,
        max_new_tokens=max_new_tokens,
        sampler=chosen,
        ess_threshold=ess_threshold,
        resampling=resampling,
        temperature=temperature,
        weighted=not plain,
        must_end=constraint is not None if must_end is None else must_end,
        critic=critic,
        processors=processors,
        prompt_ids=ids,
        generator=torch.Generator().manual_seed(seed) if isinstance(seed, int) else seed,
        progress=progress,
    )
    if samples.dead_end is not None:
        text = tokenizer.decode(samples.dead_end)
        raise ConstraintError(
            f"no token satisfies the constraint after {text!r} "
            f"({len(samples.dead_end)} tokens): the constraint leads into a dead end there"
        )
    texts = [tokenizer.decode(text, skip_special_tokens=True) for text in samples.ids]
    return replace(samples, texts=texts)


def prompt_ids(tokenizer: Any, prompt: Prompt) -> list[int]:
    """Token ids of a text, of chat messages, or of ids themselves. Raises InputError if empty."""
    if isinstance(prompt, str):
        ids = tokenizer(prompt)["input_ids"]
    elif prompt and isinstance(prompt[0], Mapping):
        ids = tokenizer.apply_chat_template(
            list(prompt), add_generation_prompt=True, return_dict=True
        )["input_ids"]
    else:
        ids = [int(token) for token in prompt]  # type: ignore[arg-type]
    if not ids:
        raise InputError("the prompt is empty: give at least one token to continue")
    return ids


def ends(model: Any, tokenizer: Any) -> list[int]:
    """The ids that end a text: the generation settings' ones and the tokenizer's."""
    configured = getattr(model.generation_config, "eos_token_id", None)
    found = configured if isinstance(configured, list) else [configured]
    return sorted({token for token in [*found, tokenizer.eos_token_id] if token is not None})
