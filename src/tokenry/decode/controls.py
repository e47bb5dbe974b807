"""Generation under a control: soft prompts before the text, and markers behind the prompt.

    z = (1 + w) log p(. | control, text) - w log p(. | other control, text)       contrast

`control` and `other` are embeddings [n, D] such as MEET's "good" and "bad" prompts. The controlled
state is an ordinary decoding state, so every sampler and every constraint works on it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tokenry.core.checks import in_range, within
from tokenry.core.errors import ShapeError
from tokenry.core.extrapolate import extrapolated
from tokenry.decode.constraints.base import Anything, Constraint
from tokenry.decode.generate import Prompt, ends, generate, prompt_ids
from tokenry.decode.samplers.base import TokenSampler
from tokenry.decode.samplers.masked import Masked
from tokenry.decode.samplers.samples import Samples
from tokenry.decode.samplers.smc import smc
from tokenry.decode.window import new_tokens_within, warn_of_window
from tokenry.model import compat
from tokenry.model.decoding import DecodingState
from tokenry.text.markers import Markers, MarkerSchema, Value


class MarkedText(NamedTuple):
    """What a model wrote, its marker block taken off, and the markers that the block named."""

    markers: dict[str, Value]
    text: str


def generate_with_markers(
    loaded: tuple[Any, Any],
    prompt: Prompt,
    schema: MarkerSchema,
    fixed: Markers | None = None,
    *,
    force: bool = False,
    **options: Any,
) -> list[MarkedText]:
    """Continue a prompt with a model trained on markers.

    Args:
        fixed: markers that the prompt is to show; the model infers the others.
        force: the completion also starts with them, in a block that stays open while the schema has
            further categories: the model goes on with those that it infers and ends the block.
        options: those of `generate`.
    """
    model, tokenizer = loaded
    fixed = fixed or {}
    inferable = set(schema.categories) - set(fixed)
    forced = schema.render(fixed, opened=bool(inferable)) if force else ""
    ids = prompt_ids(tokenizer, prompt)
    for written in (schema.render(fixed), forced):
        ids += tokenizer(written, add_special_tokens=False)["input_ids"] if written else []
    samples = generate((model, tokenizer), ids, **options)
    results = []
    for text in samples.texts:
        markers, rest = schema.parse(forced + text)
        if not markers:
            rest = text  # without a block, or with one that was never ended
        results.append(MarkedText({**markers, **(fixed if force else {})}, rest))
    return results


@torch.inference_mode()
def controlled_state(model: Any, ids: Tensor, control: Tensor) -> DecodingState:
    """A decoding state that has read `control` [n, D] and then the prompts `ids` [B, T].

    The cache holds the virtual tokens too; positions go on after them.
    """
    table = model.get_input_embeddings()
    if control.ndim != 2 or control.shape[1] != table.embedding_dim:
        raise ShapeError(
            f"a control is [n, {table.embedding_dim}] for this model, got {list(control.shape)}"
        )
    if ids.ndim != 2 or not ids.shape[1]:
        raise ShapeError(f"ids must be [B, T] with T >= 1, got {list(ids.shape)}")
    words = table(ids.to(table.weight.device))
    before = control.to(words.device, words.dtype).expand(len(ids), -1, -1)
    embedded = torch.cat([before, words], 1)
    attention = torch.ones(embedded.shape[:2], dtype=torch.bool, device=words.device)
    cache = compat.plain_cache(model)
    output = model(
        inputs_embeds=embedded,
        attention_mask=attention.long(),
        position_ids=attention.cumsum(1) - 1,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    return DecodingState(model, cache, attention, output.logits[:, -1].float())


def generate_with_control(
    loaded: tuple[Any, Any],
    prompt: Prompt,
    control: Tensor,
    constraint: Constraint | None = None,
    sampler: TokenSampler | None = None,
    particles: int = 1,
    max_new_tokens: int = 64,
    temperature: float = 1.0,
    seed: int = 0,
    *,
    against: Tensor | None = None,
    weight: float = 0.0,
    processors: Sequence[Callable[[Tensor, Tensor], Tensor]] = (),
) -> Samples:
    """Continue a prompt with `particles` texts of the model under a control.

    The other arguments are those of `generate`; the default sampler draws from the allowed tokens,
    without weights.

    Args:
        against: contrast with another control.
        weight: contrast with another control.
    """
    in_range("weight", weight, "[0, inf)")
    model, tokenizer = loaded
    ids = prompt_ids(tokenizer, prompt)
    language = constraint or Anything(model.config.get_text_config().vocab_size, ends(*loaded))
    longest = max(len(control), 0 if against is None else len(against))
    limit = new_tokens_within(model, longest + len(ids), max_new_tokens)
    if against is not None and weight:
        processors = (*processors, ControlContrast(model, against, weight))
    samples = smc(
        controlled_state(model, torch.tensor([ids]), control),
        language,
        particles=particles,
        max_new_tokens=limit,
        sampler=sampler or Masked(),
        temperature=temperature,
        weighted=sampler is not None,
        must_end=constraint is not None,
        processors=processors,
        prompt_ids=ids,
        generator=seed,
    )
    if limit < max_new_tokens and not all(samples.finished):
        warn_of_window(model)
    texts = [tokenizer.decode(text, skip_special_tokens=True) for text in samples.ids]
    return replace(samples, texts=texts)


@dataclass
class ControlContrast:
    """A logits processor: (1 + weight) log p - weight log p(. | other control).

    Called with all ids so far, prompt included, [B, T], and the logits [B, V] of the next token.

    Args:
        model: what the other side reads; its logits are of the same text.
        control: what the other side reads; its logits are of the same text.
        weight: w >= 0.
    """

    model: Any
    control: Tensor
    weight: float
    _ids: Tensor | None = field(default=None, init=False, repr=False)
    _state: DecodingState | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        within(self, "[0, inf)", "weight")

    def __call__(self, ids: Tensor, logits: Tensor) -> Tensor:
        other = self._read(ids).log_softmax(-1)
        own = logits.float().log_softmax(-1)
        return extrapolated(own, other, self.weight)

    def _read(self, ids: Tensor) -> Tensor:
        """Logits of the other side: one more token when the text goes on, else from the start."""
        if (
            self._ids is not None
            and self._state is not None
            and torch.equal(ids[:, :-1], self._ids)
        ):
            self._state.append(ids[:, -1])
        else:
            self._state = controlled_state(self.model, ids, self.control)
        self._ids = ids.clone()
        return self._state.logits
