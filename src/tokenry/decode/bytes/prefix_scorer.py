"""Next-token logits after many short continuations of one text, in few forward passes.

The covers of a text are a small tree of tokens on top of a long common prefix. The prefix is kept
in a cache; the tree is read in one forward pass, and its likeliest path stays in the cache. When
the text takes another way, the cache is cropped to what is still common.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from tokenry.core.errors import InputError
from tokenry.model.decoding import DecodingState

Path = tuple[int, ...]


@dataclass(frozen=True)
class Passes:
    """What was asked of a model.

    Args:
        calls: forward passes.
        tokens: read in them, in all.
        prompt_calls: the part of them that read a prompt.
        prompt_tokens: the part of them that read a prompt.
    """

    calls: int = 0
    tokens: int = 0
    prompt_calls: int = 0
    prompt_tokens: int = 0

    def __sub__(self, other: Passes) -> Passes:
        return Passes(*(getattr(self, name) - getattr(other, name) for name in vars(self)))

    def __add__(self, other: Passes) -> Passes:
        return Passes(*(getattr(self, name) + getattr(other, name) for name in vars(self)))


class PrefixScorer(Protocol):
    """Gives next-token logits after whole token sequences."""

    passes: Passes

    def next_logits(self, paths: Sequence[Path], likely: int = 0) -> Sequence[Tensor]:
        """Logits [V] after each path; `likely` is the index of the one that may well go on."""
        ...

    def logprob(self, context: Path, ids: Sequence[int]) -> float:
        """log p(ids | context)."""
        ...


@dataclass
class CachedPrefixScorer:
    """Scores with a transformers model, whose cache holds the prefix that all paths begin with."""

    model: Any
    passes: Passes = field(default_factory=Passes)
    _trunk: DecodingState | None = None
    _tokens: Path = ()

    def next_logits(self, paths: Sequence[Path], likely: int = 0) -> list[Tensor]:
        """Logits [V] after each path, float32."""
        prefix = _common(paths)
        if not prefix:
            raise InputError("the paths to score have no common beginning")
        logits_of: dict[Path, Tensor] = {}
        trunk = self._go_to(prefix, min(map(len, paths)), logits_of)
        start = len(self._tokens)
        nodes: dict[Path, int] = {}
        for path in sorted((path for path in paths if path not in logits_of), key=len):
            for end in range(start + 1, len(path) + 1):
                nodes.setdefault(path[:end], len(nodes))
        if nodes:
            device = trunk.attention.device
            parents = [nodes.get(path[:-1], -1) for path in nodes]
            tokens = torch.tensor([path[-1] for path in nodes], device=device)
            logits = trunk.tree(tokens, torch.tensor(parents, device=device))
            self._count(len(nodes))
            kept = paths[likely]
            kept = kept if kept in nodes else next(iter(nodes))
            trunk.keep(torch.tensor([nodes[kept[:end]] for end in range(start + 1, len(kept) + 1)]))
            self._tokens = kept
            logits_of |= {path: logits[number] for path, number in nodes.items()}
        return [logits_of[path] for path in paths]

    def logprob(self, context: Path, ids: Sequence[int], chunk: int = 64) -> float:
        """log p(ids | context), in natural logarithms, summed in float64."""
        state, total = self._start(context), 0.0
        for start in range(0, len(ids), chunk):
            part = torch.tensor([ids[start : start + chunk]], device=state.attention.device)
            before = state.logits[:, None]
            after = state.append(part)
            self._count(part.shape[1], prompt=True)
            logits = torch.cat([before, after[:, :-1]], 1)[0].double()
            total += float(logits.log_softmax(-1).gather(1, part.T).sum())
        self._trunk, self._tokens = state, (*context, *ids)
        return total

    def _go_to(self, prefix: Path, shortest: int, logits_of: dict[Path, Tensor]) -> DecodingState:
        """The trunk cut back to a part of `prefix`, so that a tree on top of it has all paths."""
        common = len(_common([prefix, self._tokens])) if self._trunk is not None else 0
        if self._trunk is None or not min(common, shortest - 1):
            self._trunk = self._start(prefix)
            logits_of[prefix] = self._trunk.logits[0]
            return self._trunk
        if common == len(self._tokens) == shortest and self._trunk.next_logits is not None:
            logits_of[prefix] = self._trunk.logits[0]
            return self._trunk
        self._trunk.crop(len(self._tokens) - min(common, shortest - 1))
        self._tokens = self._tokens[: min(common, shortest - 1)]
        return self._trunk

    def _start(self, prefix: Path) -> DecodingState:
        device = next(self.model.parameters()).device
        self._tokens = prefix
        self._count(len(prefix), prompt=True)
        return DecodingState.start(self.model, torch.tensor([prefix], device=device))

    def _count(self, tokens: int, prompt: bool = False) -> None:
        self.passes += Passes(1, tokens, *((1, tokens) if prompt else ()))


def _common(paths: Sequence[Path]) -> Path:
    first, last = min(paths), max(paths)  # of sorted sequences, the first and last differ most
    for position, (one, other) in enumerate(zip(first, last, strict=False)):
        if one != other:
            return first[:position]
    return first if len(first) <= len(last) else last
