"""What Tokenry needs of transformers beyond its documented interface, in this one module.

Written against transformers 5.20-5.23. Each function says which internals it relies on.
"""

from __future__ import annotations

import copy
import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from tokenry.core.errors import ModelError
from tokenry.model.modes import evaluating


def plain_cache(model: Any) -> Any:
    """A cache that keeps every token in every layer of the model; ModelError if its layers keep
    anything else.

    Without a model configuration DynamicCache builds no sliding-window layers, which would drop
    tokens that a later crop or fork needs; the window is enforced by the attention mask instead.
    """
    from transformers import DynamicCache

    require_attention(model, "is not in a cache of keys and values")
    return DynamicCache()


def keep_windows(cache: Any) -> Any:
    """An empty cache whose sliding-window layers keep every token, so that tokens can be taken back
    (layers' `is_sliding`); the window is then enforced by the attention mask."""
    from transformers import DynamicLayer

    if any(getattr(layer, "is_sliding", False) for layer in cache.layers):
        cache.layers = [
            DynamicLayer() if getattr(layer, "is_sliding", False) else layer
            for layer in cache.layers
        ]
    return cache


def select_rows(cache: Any, index: Tensor) -> None:
    """Keep the given rows, in that order, repeats allowed."""
    for layer in cache.layers:
        layer.batch_select_indices(index)


def keep_columns(cache: Any, length: int, index: Tensor) -> None:
    """Keep the first `length` columns and, after them, those of `index` [B, n] (relative to
    `length`).

    A cache policy's layer does it itself. In the others (`keys` and `values`, [B, H, L, D]) it is
    written in place: the prefix need not be copied. A sliding layer holds the latest columns alone.
    Columns that stay where they are need no copy at all.
    """
    count = index.shape[1]
    if bool((index == torch.arange(count, device=index.device)).all()):
        crop_columns(cache, length + count)
        return
    require_croppable(cache)
    for layer in cache.layers:
        if hasattr(layer, "keep_columns"):
            layer.keep_columns(length, index)
            continue
        dropped = layer.get_seq_length() - length - index.shape[1]
        start = layer.keys.shape[2] - dropped - index.shape[1]
        for states in (layer.keys, layer.values):
            if len(index) == 1:
                kept = states[:, :, start + index[0]]
            else:
                at = (start + index)[:, None, :, None]
                kept = states.gather(2, at.expand(-1, states.shape[1], -1, states.shape[3]))
            states[:, :, start : start + index.shape[1]] = kept
        crop_layer(layer, dropped)


def crop_columns(cache: Any, length: int) -> None:
    """Keep the first `length` columns, in every layer or, where one cannot, in none."""
    require_croppable(cache)
    for layer in cache.layers:
        crop_layer(layer, layer.get_seq_length() - length)


def crop_layer(layer: Any, count: int) -> None:
    """Drop the last `count` columns. (Plain layers' own `crop` changed its sign over versions.)"""
    if hasattr(layer, "keep_columns"):
        layer.crop(-count)
    elif not getattr(layer, "is_sliding", False):
        layer.keys = layer.keys[:, :, : layer.keys.shape[2] - count]
        layer.values = layer.values[:, :, : layer.values.shape[2] - count]
    elif count or layer.record_past:
        layer.crop(-count)


def require_croppable(cache: Any) -> None:
    """ModelError where the last tokens cannot be taken back.

    A sliding layer forgets what leaves its window, unless it was told to record: that is
    `cache.activate_past_recording()` of transformers, after the prompt.
    """
    for number, layer in enumerate(cache.layers):
        if not getattr(layer, "is_croppable", True):
            raise ModelError(
                f"the cache of layer {number} ({type(layer).__name__}) cannot forget its last "
                "tokens: keys were evicted; use a full cache for assisted or tree decoding"
            )
        full = getattr(layer, "is_sliding", False) and layer.keys is not None
        if full and not layer.record_past and layer.get_seq_length() >= layer.sliding_window:
            raise ModelError(
                f"the cache of layer {number} keeps a window alone: call "
                "cache.activate_past_recording() before tokens are to be taken back"
            )


def copy_cache(cache: Any) -> Any:
    """A cache of its own. Layers of transformers share their tensors with the copy, as updates
    replace them and never write into them; a cache policy's layer does what it needs."""
    twin = copy.copy(cache)
    twin.layers = [
        layer.copy() if hasattr(layer, "keep_columns") else copy.copy(layer)
        for layer in cache.layers
    ]
    return twin


ATTENTION = frozenset({"full_attention", "sliding_attention", "chunked_attention"})
"""Kinds of layers that a table of who sees whom describes completely."""

CHECKED = frozenset(
    {
        *("cohere", "cohere2", "falcon", "gemma", "gemma2", "gemma3_text", "gpt2", "gpt_bigcode"),
        *("gpt_neox", "gpt_oss", "gptj", "granite", "llama", "llama4_text", "mistral", "mixtral"),
        *("modernbert-decoder", "olmo2", "opt", "phi", "phi3", "qwen2", "qwen3", "smollm3"),
        *("stablelm", "starcoder2"),
    }
)
"""Architectures (`config.model_type`) that the contract tests read in trees; others are tried."""

_reads_trees: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()
_reads_padding: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()


def unwrap(model: Any) -> Any:
    """The transformers model inside distributed and PEFT wrappers."""
    from transformers import PreTrainedModel

    inner = model
    while not isinstance(inner, PreTrainedModel):
        if hasattr(inner, "get_base_model"):
            inner = inner.get_base_model()
        elif hasattr(inner, "module"):
            inner = inner.module
        else:
            raise ModelError(f"{type(model).__name__} is not a causal language model")
    return inner


def decoder_of(model: Any) -> Any:
    """The part of a causal model whose last hidden states the output layer reads.

    (`get_decoder` gives the output layer where that is called `decoder`, and the model itself where
    its base has an unexpected name.)
    """
    from transformers import PreTrainedModel

    plain = unwrap(model)
    decoder = plain.get_decoder()
    if decoder is not plain and decoder is not plain.get_output_embeddings():
        return decoder
    inner = [child for child in plain.children() if isinstance(child, PreTrainedModel)]
    if len(inner) != 1:
        raise ModelError(f"{type(plain).__name__} has no decoder apart from its output layer")
    return inner[0]


def layer_kinds(model: Any) -> set[str]:
    """The kinds of the model's layers, as in `config.layer_types`."""
    return set(getattr(unwrap(model).config.get_text_config(), "layer_types", None) or ())


def is_recurrent(model: Any) -> bool:
    """Whether some layer keeps more of the past than keys and values: a state that cannot be
    shortened, and that padding may enter."""
    return bool(getattr(unwrap(model), "_is_stateful", False) or layer_kinds(model) - ATTENTION)


def require_attention(model: Any, what: str) -> None:
    """ModelError if the model keeps a recurrent state; `what` is what that forbids."""
    if is_recurrent(model):
        kinds = sorted(layer_kinds(model) - ATTENTION) or ["recurrent"]
        raise ModelError(
            f"{type(unwrap(model)).__name__} has {', '.join(kinds)} layers, whose state {what}; "
            "use model.generate, or a model whose layers are all attention"
        )


def reads_left_padding(model: Any) -> bool:
    """Whether padding before a row changes nothing.

    Attention is masked. A recurrent layer may take padding up into its state, so such a model is
    tried once: two tokens, alone and behind padding.
    """
    plain = unwrap(model)
    if not is_recurrent(plain):
        return True
    if plain not in _reads_padding:
        (one, two), device = probe_ids(plain, 2), plain.get_input_embeddings().weight.device
        ids = torch.tensor([[one, one, one, two]], device=device)
        attention = torch.tensor([[0, 0, 1, 1]], device=device)
        positions = (attention.cumsum(1) - 1).clamp_min(0)
        with evaluating(plain):
            alone = plain(input_ids=ids[:, 2:], use_cache=False).logits[0, -1]
            padded = plain(
                input_ids=ids, attention_mask=attention, position_ids=positions, use_cache=False
            ).logits[0, -1]
        _reads_padding[plain] = _alike(padded, alone)
    return _reads_padding[plain]


def require_left_padding(model: Any, attention: Tensor) -> None:
    """ModelError if rows [B, T] are padded on the left and the model takes padding for text."""
    attention = attention.bool()
    if bool((attention[:, :-1] < attention[:, 1:]).any()) and not reads_left_padding(model):
        raise ModelError(
            f"{type(unwrap(model)).__name__} reads padding before a row into its recurrent state: "
            "give rows of one length, or one row at a time"
        )


def require_trees(model: Any) -> None:
    """ModelError unless the model sees exactly what a table of who sees whom allows.

    Refused by what is known: recurrent layers, positions that are not an argument (ALiBi counts
    columns), kernels that take no table. An architecture that the contract tests do not cover is
    tried once, on a tree of three tokens.
    """
    plain = unwrap(model)
    require_attention(plain, "cannot be read in a tree of tokens")
    name = type(plain).__name__
    config = plain.config.get_text_config()
    if getattr(config, "alibi", False) or "local" in getattr(config, "attention_layers", ()):
        raise ModelError(
            f"{name} counts columns, for its positions (ALiBi) or its local attention, so that it "
            "cannot read a tree of tokens; decode it without speculation"
        )
    if "flash" in str(getattr(config, "_attn_implementation", "")):
        raise ModelError(
            f"{name} attends by {config._attn_implementation}, which takes no table of who sees "
            'whom: load it with attn_implementation="sdpa"'
        )
    if plain.config.model_type not in CHECKED and plain not in _reads_trees:
        _reads_trees[plain] = _tries_tree(plain)
    if not _reads_trees.get(plain, True):
        raise ModelError(
            f"{name} reads a tree of tokens otherwise than the same tokens in a row: its positions "
            "or its local attention count columns; decode it without speculation"
        )


def _tries_tree(plain: Any) -> bool:
    """a b and, behind them, c and d; below c: e. Compared with a b d and a b c e."""
    a, b, c, d, e = probe_ids(plain, 5)
    device = plain.get_input_embeddings().weight.device
    ids = torch.tensor([[a, b, c, d, e]], device=device)
    sees = [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 0, 1, 0], [1, 1, 1, 0, 1]]
    allowed = torch.tensor([sees], device=device).bool()
    positions = torch.tensor([[0, 1, 2, 2, 3]], device=device)
    with evaluating(plain):
        try:
            mask = _mask_argument(plain, allowed, positions, positions, plain.dtype)
            tree = plain(
                input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False
            ).logits[0]
        except (TypeError, ValueError, RuntimeError, AttributeError):
            return False
        rows = [plain(input_ids=ids[:, at], use_cache=False).logits[0, -1] for at in PATHS]
    return _alike(tree[3], rows[0]) and _alike(tree[4], rows[1])


PATHS = ([0, 1, 3], [0, 1, 2, 4])


def probe_ids(plain: Any, count: int) -> list[int]:
    """Some ids in the middle: the first ones may be padding, embedded as 0."""
    size = len(plain.get_input_embeddings().weight)
    return [min(size - 1, size // 3 + size * n // 17) for n in range(count)]


def _alike(ours: Tensor, wanted: Tensor) -> bool:
    """Equal up to rounding, by the size of the logits' differences: all else cancels."""
    precise = wanted.dtype in (torch.float32, torch.float64)
    ours, wanted = (logits.float() - logits.float().mean() for logits in (ours, wanted))
    off = (ours - wanted).abs().max() / wanted.abs().max().clamp_min(1e-9)
    return bool(off < (1e-4 if precise else 5e-2))


def smallest_window(model: Any) -> int | None:
    """How many tokens the shortest-sighted layer looks back, itself included; None: all."""
    plain = unwrap(model)
    config = plain.config.get_text_config()
    kinds = {"sliding_attention"} if _slides_everywhere(plain) else mask_kinds(plain)
    sizes = []
    if "sliding_attention" in kinds:
        sizes.append(config.sliding_window)
    if "chunked_attention" in kinds:
        sizes.append(config.attention_chunk_size)
    return min((size for size in sizes if size is not None), default=None)


def mask_kinds(plain: Any) -> set[str]:
    """The kinds of layers that the decoder takes a mask of their own for; empty: one for all."""
    kinds = layer_kinds(plain)
    return kinds if kinds - {"full_attention"} and _chooses_by_kind(plain) else set()


def _slides_everywhere(plain: Any) -> bool:
    """Whether all layers have the window `config.sliding_window` (Mistral, Phi-3, StarCoder 2):
    their code builds one mask, with `create_sliding_window_causal_mask`, whatever the layers'
    kinds are said to be."""
    window = getattr(plain.config.get_text_config(), "sliding_window", None)
    if window is None or _chooses_by_kind(plain):
        return False
    if not type(plain).__module__.startswith("transformers."):
        raise ModelError(
            f"{type(plain).__name__} is no architecture of transformers and has a sliding window "
            f"of {window}: how its layers use it cannot be known"
        )
    return hasattr(_code_of(plain), "create_sliding_window_causal_mask")


def _chooses_by_kind(plain: Any) -> bool:
    """Whether the decoder's code looks its masks up by the kind of the layer."""
    source = _source(_code_of(plain))
    return '"sliding_attention"' in source or '"chunked_attention"' in source


def _code_of(plain: Any) -> Any:
    return sys.modules[type(decoder_of(plain)).__module__]


@cache
def _source(module: Any) -> str:
    return inspect.getsource(module)


def mask_argument(
    model: Any,
    allowed: Tensor,
    query_positions: Tensor,
    key_positions: Tensor,
    dtype: torch.dtype | None = None,
) -> Any:
    """A 4-D attention mask in the form that the model takes.

    Models whose layers differ take one mask for each kind of layer (their forward uses a mapping as
    it is); the others take one tensor.

    Args:
        allowed: [B, Q, K] bool, which keys a query may see if they are in reach.
        query_positions: [B or 1, Q], from which the windows of sliding layers and the chunks of
            chunked ones are counted.
        key_positions: [B or 1, K].
        dtype: of the mask; the model's by default.

    Raises:
        ModelError: a model that does not go by such a table.
    """
    plain = unwrap(model)
    require_trees(plain)
    return _mask_argument(plain, allowed, query_positions, key_positions, dtype or plain.dtype)


def _mask_argument(
    plain: Any, allowed: Tensor, queries: Tensor, keys: Tensor, dtype: torch.dtype
) -> Any:
    config = plain.config.get_text_config()
    queries, keys = queries[:, :, None], keys[:, None]

    def additive(kind: str) -> Tensor:
        sees = allowed
        if kind == "sliding_attention":
            sees = sees & (queries - keys < config.sliding_window)
        elif kind == "chunked_attention":
            size = config.attention_chunk_size
            sees = sees & (queries // size == keys // size)
        sees = sees[:, None]
        return torch.zeros_like(sees, dtype=dtype).masked_fill_(~sees, torch.finfo(dtype).min)

    if _slides_everywhere(plain):
        return additive("sliding_attention")
    kinds = mask_kinds(plain)
    if not kinds:
        return additive("full_attention")
    return {kind: additive(kind) for kind in kinds | {"full_attention"}}


def counted_positions(model: Any, real: Tensor) -> dict[str, Tensor]:
    """`position_ids` for models that find them by looking for the pad id, as RoBERTa does: a token
    that happens to have that id would shift those behind it.

    Empty for models that count columns anyway.

    Args:
        real: [B, T] bool, the tokens.
    """
    table = next(
        (
            module.position_embeddings
            for module in model.modules()
            if isinstance(getattr(module, "position_embeddings", None), torch.nn.Embedding)
        ),
        None,
    )
    takes = "position_ids" in inspect.signature(model.forward).parameters
    if table is None or table.padding_idx is None or not takes:
        return {}
    positions = real.long().cumsum(1) * real + table.padding_idx
    return {"position_ids": positions}


FEW_ROWS = 8  # what packed weights are laid out for; one layout serves 1 to some 32 rows


def can_pack(weight: Tensor) -> bool:
    """Whether this torch and this machine have oneDNN's packed linear kernels for the weight."""
    return (
        weight.device.type == "cpu"
        and weight.dtype == torch.float32
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


def pack_weight(weight: Tensor) -> Tensor:
    """The weight [out, in] in oneDNN's layout. (The operator is torch.compile's own.)"""
    return torch.ops.mkldnn._reorder_linear_weight(weight.detach(), FEW_ROWS)


def packed_linear(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """rows [..., in] times a packed weight."""
    return torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")


def passes_must_agree(model: Any) -> bool:
    """Whether the processes share the model's weights, so that all must make the same number of
    passes: `generate`'s own condition for `synced_gpus`."""
    from torch import distributed
    from transformers import integrations

    if not (distributed.is_available() and distributed.is_initialized()):
        return False
    known: Any = integrations
    sharded = known.is_deepspeed_zero3_enabled() or known.is_fsdp_managed_module(model)
    return bool(sharded) and distributed.get_world_size() > 1


def any_process(condition: bool, together: bool) -> bool:
    """Whether the condition holds in this process, or `together` in any."""
    if not together:
        return condition
    from torch import distributed

    device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
    flag = torch.tensor(int(condition), device=device)
    distributed.all_reduce(flag, op=distributed.ReduceOp.MAX)
    return bool(flag)


@contextmanager
def own_distribution(model: Any) -> Iterator[None]:
    """`model.generate` follows its arguments alone, not the model's generation settings.

    `generate` fills whatever its arguments leave open from `model.generation_config`, even when it
    is given a configuration of its own.
    """
    from transformers import GenerationConfig, PreTrainedModel

    owner = next(part for part in model.modules() if isinstance(part, PreTrainedModel))
    settings = owner.generation_config
    owner.generation_config = GenerationConfig()
    try:
        yield
    finally:
        owner.generation_config = settings


def window(model: Any) -> int | None:
    """Tokens that the model has positions for; None where it does not say."""
    config = getattr(model, "config", None)
    if config is None:
        return None
    return getattr(config.get_text_config(), "max_position_embeddings", None)


def padding_id(generation_config: Any) -> int:
    """What a running `generate` pads ended rows with; 0 where it has no padding token."""
    pad = generation_config._pad_token_tensor
    return 0 if pad is None else int(pad)


def of_row(given: Any, row: int) -> Any:
    """A logits processor or stopping criterion of `generate` for one row of its batch.

    Most judge every row by itself. These do not: they count the rows, hold an array over rows, or
    remember what they were called with (attributes of the classes named here).
    """
    kind = type(given).__name__
    if kind == "PrefixConstrainedLogitsProcessor":
        allowed = given._prefix_allowed_tokens_fn
        return type(given)(lambda _, ids: allowed(row, ids), 1)
    if kind == "UnbatchedClassifierFreeGuidanceLogitsProcessor":
        context = given.unconditional_context
        ids, attention = context["input_ids"], context["attention_mask"]
        return type(given)(
            given.guidance_scale,
            given.model,
            None if ids is None else ids[row : row + 1],
            None if attention is None else attention[row : row + 1],
            context["use_cache"],
        )
    if kind == "SynthIDTextWatermarkLogitsProcessor":
        return copy.deepcopy(given)
    arrays = {
        "RepetitionPenaltyLogitsProcessor": "prompt_ignore_length",
        "EncoderRepetitionPenaltyLogitsProcessor": "encoder_input_ids",
        "EncoderNoRepeatNGramLogitsProcessor": "generated_ngrams",
    }
    array = getattr(given, arrays.get(kind, ""), None)
    if array is None or isinstance(array, int):
        return given
    own = copy.copy(given)
    setattr(own, arrays[kind], array[row : row + 1])
    if hasattr(own, "batch_size"):
        own.batch_size = 1
    return own


def withheld_arguments() -> dict[str, Any]:
    """Arguments of the running `generate` that it does not hand to a function given as
    `custom_generate`, from the locals of its frame; empty outside of `generate`."""
    frame = sys._getframe(1)
    while frame is not None and "custom_generate" not in frame.f_locals:
        frame = frame.f_back
    given = {} if frame is None else frame.f_locals
    return {name: given.get(name) for name in ("assistant_model", "streamer", "synced_gpus")}
