"""Speculation inside transformers: a decoding loop for `model.generate(custom_generate=...)`.

    model.generate(**inputs, max_new_tokens=128, custom_generate=speculative(Goose()))

`generate` prepares everything as usual (processors, stopping criteria, special tokens), and the
texts are those that it would write itself, under padding and in batches too: every processor and
criterion is shown what `generate` would show it, one row at a time. Sampled texts are the same draw
by draw for one prompt; the rows of a batch share the draws in another order, and follow the same
distribution. What cannot be the same is refused by name: other algorithms (beams, assistants),
caches that take no tokens back, inputs besides ids, processors that are not known to judge rows by
themselves.

`generate` does not hand the tokenizer on to a function, so stop strings are given here:
`speculative(Goose(), tokenizer=tokenizer, stop_strings=["\\n\\n"])`. A text that fills the model's
window ends there, with a warning, where `generate` reads on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from tokenry.core.errors import InputError
from tokenry.decode.speculation.speculate import Drafter, speculate
from tokenry.model import compat

OTHER_ALGORITHMS = (
    "assistant_early_exit",
    "constraints",
    "dola_layers",
    "force_words_ids",
    "penalty_alpha",
    "prompt_lookup_num_tokens",
    "use_mtp",
)
PREPARED = {
    "attention_mask", "position_ids", "past_key_values", "use_cache", "logits_to_keep",
    "cache_position", "output_attentions", "output_hidden_states",
}  # fmt: skip


def speculative(
    drafter: Drafter,
    kernels: bool | None = None,
    streamer: Any = None,
    *,
    tokenizer: Any = None,
    stop_strings: str | list[str] | None = None,
) -> Callable[..., Any]:
    """A function for `generate`'s `custom_generate`.

    Args:
        kernels: as in `speculate`.
        streamer: shown the prompt and every token, like one that is given to `generate`.
        stop_strings: texts end behind one of them, with the tokenizer that spells them.
    """
    if (stop_strings is None) != (tokenizer is None):
        raise InputError("stop_strings and the tokenizer that spells them go together")

    def decode(
        model: Any,
        input_ids: Tensor,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: Any,
        synced_gpus: bool = False,
        **model_kwargs: Any,
    ) -> Any:
        withheld = compat.withheld_arguments()
        check(model, generation_config, bool(synced_gpus or withheld.get("synced_gpus")), withheld)
        check_inputs(input_ids, model_kwargs)
        rows, width = input_ids.shape
        attention = model_kwargs.get("attention_mask")
        real = torch.ones_like(input_ids) if attention is None else attention
        criteria = list(stopping_criteria)
        if stop_strings is not None:
            from transformers import StopStringCriteria

            criteria.append(StopStringCriteria(tokenizer, stop_strings))
        check_batch(generation_config, criteria, rows)
        watcher: Any = streamer if streamer is not None else withheld.get("streamer")
        if watcher is not None and rows > 1:
            raise InputError(f"a streamer shows one text, not {rows}")
        if streamer is not None:  # one that `generate` knows has seen the prompt
            streamer.put(input_ids.cpu())

        def stream(text: Tensor, _: Tensor, shown: Any = watcher) -> bool:
            shown.put(text[0, -1:].cpu())
            return False

        texts = speculate(
            model,
            [ids[mask.bool()].tolist() for ids, mask in zip(input_ids, real, strict=True)],
            drafter,
            (stopping_criteria.max_length or generation_config.max_length) - width,
            temperature=float(generation_config.do_sample),  # the processors have the rest
            eos_token_id=[],  # a criterion has it
            row_steering=[
                (of_row(logits_processor, row, rows), without_scores(of_row(criteria, row, rows)))
                for row in range(rows)
            ],
            stopping=[stream] if watcher is not None else [],
            steering_prompts=input_ids.tolist(),
            cache=policy_cache(model_kwargs.get("past_key_values")),
            kernels=kernels,
        )
        if watcher is not None:
            watcher.end()
        longest = max(len(text.new_ids) for text in texts)
        pad = compat.padding_id(generation_config)
        filled = [text.new_ids + [pad] * (longest - len(text.new_ids)) for text in texts]
        sequences = torch.cat([input_ids, torch.tensor(filled, device=input_ids.device)], dim=1)
        if not generation_config.return_dict_in_generate:
            return sequences
        from transformers.generation.utils import GenerateDecoderOnlyOutput

        return GenerateDecoderOnlyOutput(sequences=sequences)  # pyright: ignore[reportArgumentType]

    return decode


def check(model: Any, config: Any, synced_gpus: bool, withheld: dict[str, Any]) -> None:
    """Refuse what speculation is not."""
    if model.config.is_encoder_decoder:
        raise InputError(
            f"speculation goes on with texts of decoders alone: {type(model).__name__} also has an "
            "encoder"
        )
    if config.num_beams > 1:
        raise InputError(
            "speculation decodes one text per prompt: it cannot go with "
            f"num_beams={config.num_beams}"
        )
    other = [name for name in OTHER_ALGORITHMS if getattr(config, name, None)]
    other += ["assistant_model"] if withheld.get("assistant_model") is not None else []
    if other:
        raise InputError(
            f"{other[0]} asks for another way of decoding: leave it out, or leave custom_generate "
            "out"
        )
    if synced_gpus:
        raise InputError("speculation takes different numbers of passes on every rank; "
                         "gather the model first, or decode without a draft")  # fmt: skip
    wanted = ("output_scores", "output_logits", "output_attentions", "output_hidden_states")
    if config.return_dict_in_generate and (refused := [w for w in wanted if getattr(config, w)]):
        raise InputError(f"speculation does not keep {' and '.join(refused)}")


def check_inputs(ids: Tensor, given: dict[str, Any]) -> None:
    """Refuse inputs that a drafted pass would not be given."""
    others = [name for name, value in given.items() if value is not None and name not in PREPARED]
    if others:
        raise InputError(f"speculation reads token ids: it cannot take {others[0]}")
    attention, positions = given.get("attention_mask"), given.get("position_ids")
    real = torch.ones_like(ids) if attention is None else attention
    if real.shape != ids.shape:
        raise InputError(
            f"attention_mask must be {list(ids.shape)}, as the ids, got {list(real.shape)}"
        )
    if not bool(real[:, -1].all()):
        raise InputError("the prompts are padded at the right: pad them at the left to continue")
    if positions is not None:
        usual = real.long().cumsum(1) - 1
        if bool(((positions != usual) & real.bool()).any()):
            raise InputError("speculation counts positions itself: it cannot take position_ids")


def check_batch(config: Any, criteria: Sequence[Any], rows: int) -> None:
    """Refuse a batch in which `generate` would write on in rows that have stopped."""
    ending = [type(one).__name__ for one in criteria if hasattr(one, "eos_token_id")]
    others = [
        type(one).__name__
        for one in criteria
        if type(one).__name__ not in (*ending, "MaxLengthCriteria", "MaxTimeCriteria")
    ]
    if rows > 1 and others and not ending:
        raise InputError(
            f"{others[0]} in a batch needs an eos_token_id: without one `generate` writes on in "
            "rows that have stopped, until all have"
        )


def of_row(given: Sequence[Any], row: int, rows: int) -> list[Any]:
    """Processors or criteria for row `row` of `rows`.

    Raises:
        InputError: one that may tell the rows apart: a class that judges every row by itself says
            `row_wise = True`.
    """
    if rows == 1:
        return list(given)
    for one in given:
        known = type(one).__module__.startswith("transformers.generation.")
        if not known and not getattr(one, "row_wise", False):
            name = getattr(one, "__name__", type(one).__name__)
            raise InputError(
                f"{name} is not known to judge every row by itself, and speculation shows it one "
                f"row of the {rows} at a time: set row_wise = True on it if it does, or give one "
                "prompt"
            )
    return [compat.of_row(one, row) for one in given]


def without_scores(criteria: Sequence[Any]) -> list[Callable[[Tensor, Tensor], Any]]:
    """Criteria as `generate` asks them, which shows them scores only if it keeps all."""
    return [lambda ids, _, ask=one: ask(ids, None) for one in criteria]


def policy_cache(cache: Any) -> Any:
    """The cache to decode on: None for the plain one that `generate` has made, which may drop old
    tokens of sliding layers and so cannot take rejected ones back."""
    from transformers import DynamicCache, StaticCache

    if cache is None:
        return None
    if cache.get_seq_length():
        raise InputError("speculation starts with an empty cache: pass all the text as the prompt")
    if isinstance(cache, StaticCache):
        raise InputError(
            "a draft takes rejected tokens back, and a static cache has no way to: leave "
            "cache_implementation out"
        )
    if getattr(cache, "offloading", False):
        raise InputError(
            "speculation keeps the cache where the model is: leave cache_implementation="
            "'offloaded' out"
        )
    return None if type(cache) is DynamicCache else cache
