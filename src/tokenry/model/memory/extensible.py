"""Extensible tokenization: k tokens of context in the place of one, for any k, decided when read.

A small causal transformer turns a chunk of L tokens into L states in the space of the language
model's input embeddings, and every k-th of them stands for the k tokens that it closes:

    o_1..o_L = LM_et(x_1..x_L)              et_j = o_{k·j},  j = 1..⌈L/k⌉

(if k does not divide L, the last group is shorter and is closed by the last token). The language
model, unchanged, reads [et of the earlier chunks; embeddings of the current tokens] at consecutive
positions, so that a window of W holds k·W tokens. Since o does not depend on k, stored states can
be thinned out again later.

    tokenizer = ExtensibleTokenizer.from_lm(model, layers=8)  # train it: learn.recipes.extensible
    session = ExtensibleSession(model, tokenizer, ratio=8)
    session.feed(long_document_ids)
    session.feed(question_ids)
    session.generate(max_new_tokens=64)

Source: Flexibly Scaling Large Language Models Contexts Through Extensible Tokenization (arXiv
2401.07793). Reconstructed: that the copied layers end without a norm, so that their states start in
the embeddings' space, and a linear map behind them that starts as the identity.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from tokenry.core.checks import in_range, within
from tokenry.core.errors import InputError, ModelError, ShapeError
from tokenry.core.files import replacing
from tokenry.model import compat
from tokenry.model.score import unwrap


class ExtensibleTokenizer(nn.Module):
    """A causal backbone and a linear map into the language model's embedding space.

    Args:
        backbone: any module whose output on `input_ids` [B, L] has `last_hidden_state` [B, L, D'],
            such as the decoder of a transformers model.
        out: [D'] -> [D], the language model's width.
    """

    def __init__(self, backbone: nn.Module, out: Any) -> None:
        super().__init__()
        self.backbone, self.out = backbone, out

    @classmethod
    def from_lm(cls, model: Any, layers: int = 8) -> ExtensibleTokenizer:
        """A copy of the first layers of a language model, as the paper does it."""
        decoder = unwrap(model).get_decoder()
        depth = decoder.config.num_hidden_layers
        if not 1 <= layers <= depth:
            raise InputError(f"layers is {layers}: the model has {depth}")
        config = copy.deepcopy(decoder.config)
        config.num_hidden_layers = layers
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[:layers]
        backbone = type(decoder)(config)
        loaded = backbone.load_state_dict(decoder.state_dict(), strict=False)
        if loaded.missing_keys:
            raise ModelError(
                f"{type(decoder).__name__} has no weights for {loaded.missing_keys[0]}: merge its "
                "adapters first"
            )
        tokenizer = cls.around(backbone, model)
        if hasattr(backbone, "norm"):
            # without the last norm its states are in the embeddings' space already
            backbone.norm = nn.Identity()
            nn.init.eye_(tokenizer.out.weight)
        return tokenizer.to(decoder.device, unwrap(model).get_input_embeddings().weight.dtype)

    @classmethod
    def around(cls, backbone: Any, model: Any) -> ExtensibleTokenizer:
        """Any decoder as the backbone, with a new linear map into the embeddings of `model`.

        The decoder's vocabulary must be the model's.
        """
        table = unwrap(model).get_input_embeddings()
        width = backbone.config.hidden_size
        with torch.no_grad():
            ids = torch.arange(min(len(table.weight), 1000), device=table.weight.device)
            scale = float(table(ids).float().square().mean().sqrt())
        out = nn.Linear(width, table.weight.shape[1], bias=False)
        nn.init.eye_(out.weight)  # a decoder's normed states have entries of about 1
        out.weight.data.mul_(scale)
        return cls(backbone, out)

    def encode(self, ids: Tensor, chunk: int) -> Tensor:
        """o [B, T, D] of ids [B, T]: chunks of `chunk` tokens (the last may be shorter) are read
        apart from each other, from position 0."""
        if ids.ndim != 2 or not ids.shape[1]:
            raise ShapeError(f"ids must be [B, T] with T >= 1, got {list(ids.shape)}")
        in_range("chunk", chunk, "[1, inf)", integer=True)
        window = compat.window(self.backbone)
        if window and min(chunk, ids.shape[1]) > window:
            raise InputError(f"chunks of {chunk} tokens are longer than the tokenizer's {window}")
        B, T = ids.shape
        whole = T // chunk * chunk
        read = []
        if whole:
            states = self._read(ids[:, :whole].reshape(-1, chunk))
            read.append(states.reshape(B, whole, -1))
        if whole < T:
            read.append(self._read(ids[:, whole:]))
        return torch.cat(read, dim=1)

    def compress(self, ids: Tensor, chunk: int, ratio: int) -> Tensor:
        """Extensible embeddings [B, E, D] of ids [B, T], chunk by chunk."""
        return strided_downscale(self.encode(ids, chunk), ratio, chunk)

    def _read(self, ids: Tensor) -> Tensor:
        return self.out(self.backbone(input_ids=ids).last_hidden_state)

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, whole or not at all. For backbones of transformers."""
        config = getattr(self.backbone, "config", None)
        if config is None:
            raise InputError("only a tokenizer around a transformers model can be saved")
        weights = {name: value.cpu().contiguous() for name, value in self.state_dict().items()}
        with replacing(Path(path)) as temporary:
            save_file(weights, temporary, metadata={"extensible": config.to_json_string(False)})

    @classmethod
    def load(cls, path: str | Path) -> ExtensibleTokenizer:
        """Read what `save` wrote, on the CPU.

        Raises:
            InputError: any other file.
        """
        from transformers import AutoConfig, AutoModel

        try:
            with safe_open(path, framework="pt") as file:
                settings = json.loads(file.metadata()["extensible"])
                weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            backbone: Any = AutoModel.from_config(AutoConfig.for_model(**settings))
            matrix = weights["out.weight"]
            if "backbone.norm.weight" not in weights:
                backbone.norm = nn.Identity()
        except FileNotFoundError:
            raise InputError(f"there is no file {path}") from None
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{path} is not a file of ExtensibleTokenizer.save: {error}"
            ) from error
        out = nn.Linear(matrix.shape[1], matrix.shape[0], bias=False)
        tokenizer = cls(backbone, out).to(matrix.dtype)
        tokenizer.load_state_dict(weights)
        return tokenizer.eval()


def strided_downscale(states: Tensor, ratio: int, chunk: int | None = None) -> Tensor:
    """The last state of each group of `ratio` [B, E, D]; groups do not cross chunks.

    Args:
        chunk: of the encoding; None: the states [B, T, D] are of one chunk.
    """
    return states[:, kept_positions(states.shape[1], ratio, chunk).to(states.device)]


def mean_pool_downscale(states: Tensor, ratio: int, chunk: int | None = None) -> Tensor:
    """The mean of each group [B, E, D]: a rival of the strided one."""
    last = kept_positions(states.shape[1], ratio, chunk)
    sizes = torch.diff(last, prepend=last.new_tensor([-1]))
    groups = states.split(sizes.tolist(), dim=1)
    return torch.stack([group.mean(1) for group in groups], dim=1)


def random_downscale(
    states: Tensor, ratio: int, chunk: int | None = None, generator: torch.Generator | None = None
) -> Tensor:
    """As many states of each chunk as the strided one has, at random places in their order."""
    T = states.shape[1]
    chunk = chunk or max(T, 1)
    columns = []
    for start in range(0, T, chunk):
        length = min(chunk, T - start)
        drawn = torch.randperm(length, generator=generator)[: -(-length // ratio)]
        columns.append(start + drawn.sort().values)
    return states[:, torch.cat(columns).to(states.device)]


def kept_positions(length: int, ratio: int, chunk: int | None = None) -> Tensor:
    """Positions of the states that the strided downscale keeps, long [E]."""
    if ratio < 1:
        raise InputError(f"ratio is {ratio}: one embedding stands for at least one token")
    position = torch.arange(length)
    inside = position % chunk if chunk else position
    last = position == length - 1
    if chunk:
        last = last | (inside == chunk - 1)
    return position[(inside % ratio == ratio - 1) | last]


@dataclass
class ExtensibleSession:
    """One text in a language model's window: the earlier part compressed, the recent one as it is.

    Args:
        ratio: k.
        chunk: tokens that the tokenizer reads at a time.
        window: positions of the language model, 0 for all that it has; when a token finds it full,
            the session's plain tokens are compressed.
        keep: also store every state o, so that `rescale` can change k later.
    """

    model: Any
    tokenizer: ExtensibleTokenizer
    ratio: int = 8
    chunk: int = 512
    window: int = 0
    keep: bool = False
    compressed: Tensor = field(init=False, repr=False)  # [E, D]
    recent: Tensor = field(init=False, repr=False)  # [R] ids
    stored: list[Tensor] = field(init=False, repr=False, default_factory=list)  # states by chunk

    def __post_init__(self) -> None:
        table = self._embeddings.weight
        limit = compat.window(unwrap(self.model)) or 0
        within(self, "[0, inf)", "window", integer=True)
        self.window = self.window or limit
        if self.window < 1 or 0 < limit < self.window:
            raise InputError(f"window is {self.window}: the model has {limit} positions")
        within(self, "[1, inf)", "ratio", "chunk", integer=True)
        self.compressed = table.new_zeros(0, table.shape[1])
        self.recent = torch.zeros(0, dtype=torch.long, device=table.device)

    @property
    def length(self) -> int:
        """Positions of the window that are taken."""
        return len(self.compressed) + len(self.recent)

    @torch.no_grad()
    def feed(self, ids: Sequence[int] | Tensor) -> None:
        """Append tokens; whenever the window is full, what is in it as plain tokens is compressed.

        Raises:
            InputError: even that makes no room: the text is longer than k windows.
        """
        rest = torch.as_tensor(ids, dtype=torch.long, device=self.recent.device)
        if rest.ndim != 1:
            raise ShapeError(f"tokens must be [T], got {list(rest.shape)}")
        while len(rest):
            self._free_positions(1)
            taken = self.window - self.length
            self.recent = torch.cat([self.recent, rest[:taken]])
            rest = rest[taken:]

    @torch.no_grad()
    def compress(self) -> None:
        """Compress all plain tokens now, for example at the end of a document."""
        if len(self.recent):
            self._add(self.tokenizer.encode(self.recent[None], self.chunk)[0])
            self.recent = self.recent[:0]

    @torch.no_grad()
    def add(self, states: Tensor) -> None:
        """Append stored states o [T, D] (of `ExtensibleTokenizer.encode`) behind what is
        compressed, thinned out to this session's ratio. There must be no plain tokens."""
        if len(self.recent):
            raise InputError(
                f"{len(self.recent)} plain tokens are in the session: compress() them first, since "
                "compressed context stands before them"
            )
        if states.ndim != 2 or states.shape[1] != self.compressed.shape[1]:
            width = self.compressed.shape[1]
            raise ShapeError(f"states must be [T, {width}], got {list(states.shape)}")
        self._add(states)

    def _add(self, states: Tensor) -> None:
        thin = strided_downscale(states[None], self.ratio, self.chunk)[0]
        if len(self.compressed) + len(thin) > self.window:
            raise InputError(
                f"{len(self.compressed) + len(thin)} compressed embeddings do not fit a window of "
                f"{self.window}: take a ratio above {self.ratio}"
            )
        if self.keep:
            self.stored += list(states.split(self.chunk))
        self.compressed = torch.cat([self.compressed, thin.to(self.compressed.dtype)])

    def rescale(self, ratio: int) -> None:
        """Another k for all that is compressed, from the stored states (`keep=True`)."""
        if not self.keep:
            raise InputError("rescale() needs the states: make the session with keep=True")
        thin = [strided_downscale(part[None], ratio)[0] for part in self.stored]
        longer = sum(len(part) for part in thin) + len(self.recent)
        if longer > self.window:
            raise InputError(f"at ratio {ratio} the text takes {longer} of {self.window} positions")
        self.ratio = ratio
        if thin:
            self.compressed = torch.cat(thin).to(self.compressed.dtype)

    @torch.no_grad()
    def logprob(self, ids: Sequence[int] | Tensor) -> Tensor:
        """log p of each token as the continuation of the session, float32 [T]; nothing is fed.

        The first token is predicted from the last of the context, compressed or not.
        """
        ids = torch.as_tensor(ids, dtype=torch.long, device=self.recent.device)
        if not self.length or not len(ids):
            raise InputError("feed() the session before asking for a continuation of it")
        if self.length + len(ids) - 1 > self.window:
            raise InputError(f"{len(ids)} tokens behind {self.length} do not fit {self.window}")
        embedded = torch.cat([self._inputs(), self._embeddings(ids[:-1])[None]], dim=1)
        logits = self.model(
            inputs_embeds=embedded,
            attention_mask=torch.ones_like(embedded[..., 0], dtype=torch.long),
            logits_to_keep=len(ids),
            use_cache=False,
        ).logits[0]
        return logits.float().log_softmax(-1).gather(-1, ids[:, None])[:, 0]

    @torch.no_grad()
    def generate(self, max_new_tokens: int = 64, **options: Any) -> list[int]:
        """New token ids, which are fed as well.

        Args:
            options: of transformers' `generate`.
        """
        if not self.length:
            raise InputError("feed() the session before generating from it")
        if not 0 < max_new_tokens < self.window:
            raise InputError(f"max_new_tokens is {max_new_tokens} for a window of {self.window}")
        self._free_positions(max_new_tokens)
        embedded = self._inputs()
        mask = torch.ones_like(embedded[..., 0], dtype=torch.long)
        new = self.model.generate(
            inputs_embeds=embedded, attention_mask=mask, max_new_tokens=max_new_tokens, **options
        )[0]
        self.feed(new)
        return new.tolist()

    def _free_positions(self, positions: int) -> None:
        if self.length + positions > self.window:
            self.compress()
        if self.length + positions > self.window:
            raise InputError(
                f"{len(self.compressed)} compressed embeddings leave no room for {positions} tokens"
                f" in a window of {self.window}: take a ratio above {self.ratio}"
            )

    def _inputs(self) -> Tensor:
        return torch.cat([self.compressed, self._embeddings(self.recent)])[None]

    @property
    def _embeddings(self) -> Any:
        return unwrap(self.model).get_input_embeddings()
