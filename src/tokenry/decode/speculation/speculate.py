"""Decoding with a draft: several tokens per forward pass, the same text as without.

    drafter = TokenRecycling()
    found = generate_with_drafter(model, ids, drafter, max_new_tokens=64)
    found.new_ids, found.tokens_per_pass

Each step drafts a tree of guesses on top of the last token, reads it in one forward pass, and keeps
the path that the model confirms. A step costs more than a pass over one token, by how much depends
on the machine: `latency_curve` measures it, and drafters fit their trees to it.

The text is the one that plain decoding gives, up to the rounding of the model's arithmetic: a pass
over many tokens and a pass over one round differently, so two logits that agree to the last digits
may swap. In float32 that is rare; in bfloat16 it happens in most long texts.

One prompt at a time. For several, loop with the same drafter: what it learned is kept.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from tokenry.core.errors import InputError
from tokenry.decode.speculation.tree import TokenTree
from tokenry.decode.speculation.verify import Accepted, draw, walk
from tokenry.model.decoding import DecodingState

Processor = Callable[[Tensor, Tensor], Tensor]  # (ids [1, T], logits [1, V]) -> logits [1, V]
Stopping = Callable[[Tensor, Tensor], Any]  # (ids [1, T], logits [1, V]) -> true to stop

SIZES = (1, 2, 3, 4, 8, 16, 32)
PROMPT_CHUNK = 1 << 24  # logits held at once while a drafter learns from the prompt


class Drafter(Protocol):
    """Guesses what comes next. It may guess anything: the text does not depend on it.

    reads_prompt: whether `update` should be called with the prompt's logits too.
    """

    @property
    def reads_prompt(self) -> bool: ...

    def begin(self, model: Any, prompt: Sequence[int]) -> None:
        """A new text starts."""

    def draft(self, last_token: int, room: int) -> TokenTree:
        """A tree whose root is the last committed token, at most `room` tokens deep."""
        ...

    def update(self, tree: TokenTree, logits: Tensor, accepted: Accepted) -> None:
        """What the model said about the tree: logits [M, V], and the walk through it."""


@dataclass(frozen=True)
class Speculation:
    """A generated text and what it took.

    ids: prompt and continuation. accept_lengths: tokens that each step added (accepted ones and the
    bonus token). nodes: tokens read by each step. forward_calls: passes, the prompt's included,
    which gives the first token. seconds: of the whole call; the first one with a drafter that fits
    its trees to the machine includes the measuring, unless `latency_curve` was called before.
    """

    ids: list[int]
    prompt_length: int
    accept_lengths: list[int]
    nodes: list[int]
    forward_calls: int
    seconds: float

    @property
    def new_ids(self) -> list[int]:
        return self.ids[self.prompt_length :]

    @property
    def steps(self) -> int:
        return len(self.accept_lengths)

    @property
    def tokens_per_pass(self) -> float:
        """1.0 without a draft."""
        return len(self.new_ids) / self.forward_calls


def generate_with_drafter(
    model: Any,
    ids: Sequence[int] | Tensor,
    drafter: Drafter,
    max_new_tokens: int = 64,
    *,
    temperature: float = 0.0,
    top_p: float = 1.0,
    eos_token_id: int | Sequence[int] | None = None,
    processors: Sequence[Processor] = (),
    stopping: Sequence[Stopping] = (),
    generator: torch.Generator | None = None,
    on_step: Callable[[TokenTree, Accepted], None] | None = None,
) -> Speculation:
    """Continue the prompt `ids` ([T] or [1, T]) with at most `max_new_tokens` tokens.

    temperature: 0 is greedy. eos_token_id: None takes those of the model's generation settings, an
    empty list none. processors: transformers' LogitsProcessors; each sees, for every token of the
    text in turn, what plain decoding would show it, and never a rejected guess. stopping:
    transformers' StoppingCriteria, asked after every token. on_step: called with each step's tree
    and the walk through it.
    """
    started = time.perf_counter()
    prompt = torch.as_tensor(ids, dtype=torch.long).reshape(-1).tolist()
    if isinstance(ids, Tensor) and ids.ndim == 2 and ids.shape[0] != 1:
        raise InputError(f"one prompt at a time, got {ids.shape[0]}: loop over them")
    if not prompt:
        raise InputError("the prompt is empty: give at least one token to continue")
    if max_new_tokens < 1:
        raise InputError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
    ends = end_tokens(model, eos_token_id)
    device = next(model.parameters()).device
    text = torch.zeros(1, len(prompt) + max_new_tokens, dtype=torch.long, device=device)
    text[0, : len(prompt)] = torch.tensor(prompt)
    length, finished = len(prompt), False

    def choose(_: int, logits: Tensor) -> int | None:
        """The next token of the text, from the model's logits [V]; None when it has ended."""
        nonlocal length, finished
        if finished:
            return None
        scores = logits[None]
        for process in processors:
            scores = process(text[:, :length], scores)
        token = draw(scores[0], temperature, top_p, generator)
        text[0, length] = token
        length += 1
        finished = length == text.shape[1] or token in ends
        finished = finished or any(bool(stop(text[:, :length], scores)) for stop in stopping)
        return token

    drafter.begin(model, prompt)
    state, calls = read_prompt(model, text[:, :length], drafter)
    last = choose(0, state.logits[0])
    accept_lengths, nodes = [], []
    while not finished:
        assert last is not None
        tree = drafter.draft(last, text.shape[1] - length - 1)
        logits = read_tree(state, tree)
        accepted = walk(tree, logits, choose)
        keep(state, tree, accepted.path)
        drafter.update(tree, logits, accepted)
        calls += 1
        accept_lengths.append(len(accepted.tokens))
        nodes.append(len(tree))
        last = accepted.tokens[-1]
        if on_step:
            on_step(tree, accepted)
    return Speculation(
        ids=text[0, :length].tolist(),
        prompt_length=len(prompt),
        accept_lengths=accept_lengths,
        nodes=nodes,
        forward_calls=calls,
        seconds=time.perf_counter() - started,
    )


def read_tree(state: DecodingState, tree: TokenTree) -> Tensor:
    """Logits after every node, [M, V]; without guesses, by the plain pass, which costs less."""
    device = state.attention.device
    tokens = torch.tensor(tree.tokens, device=device)
    if len(tree) == 1:
        return state.append(tokens)
    return state.tree(tokens, torch.tensor(tree.parents, device=device))


def keep(state: DecodingState, tree: TokenTree, path: list[int]) -> None:
    """Keep the path's columns. A path at the front of the tree needs no copy of the cache, which is
    a few milliseconds saved."""
    if path == list(range(len(path))):
        state.crop(len(tree) - len(path))
    else:
        state.keep(torch.tensor(path))


def read_prompt(model: Any, ids: Tensor, drafter: Drafter) -> tuple[DecodingState, int]:
    """The state after the prompt, and the number of passes it took."""
    if not drafter.reads_prompt or ids.shape[1] == 1:
        return DecodingState.start(model, ids), 1
    state, calls = DecodingState.start(model, ids[:, :1]), 1
    chunk = max(1, PROMPT_CHUNK // state.logits.shape[1])
    for start in range(1, ids.shape[1], chunk):
        part = ids[:, start : start + chunk]
        logits = state.append(part)[0]
        tokens = part[0].tolist()
        after = ids[0, start + 1 : start + 1 + len(tokens)].tolist()
        walked = Accepted(list(range(len(tokens))), after)
        drafter.update(TokenTree.chain(tokens), logits, walked)
        calls += 1
    return state, calls


def end_tokens(model: Any, eos_token_id: int | Sequence[int] | None) -> frozenset[int]:
    if eos_token_id is None:
        settings = getattr(model, "generation_config", None)
        eos_token_id = getattr(settings, "eos_token_id", None)
    if eos_token_id is None:
        return frozenset()
    return frozenset([eos_token_id] if isinstance(eos_token_id, int) else eos_token_id)


_CURVES: WeakKeyDictionary[Any, dict[int, float]] = WeakKeyDictionary()


def latency_curve(
    model: Any, sizes: Sequence[int] = SIZES, context: int = 128, repeats: int = 3
) -> dict[int, float]:
    """Seconds of one pass over so many tokens after `context` others: the best of `repeats`.

    Measured once per model and process, which takes a 100M-parameter model on a laptop a second or
    two.
    """
    known = _CURVES.setdefault(model, {})
    if missing := [size for size in sizes if size not in known]:
        device = next(model.parameters()).device
        state = DecodingState.start(model, torch.zeros(1, context, dtype=torch.long, device=device))
        best = dict.fromkeys(missing, float("inf"))
        for _ in range(repeats):
            for size in missing:
                started = time.perf_counter()
                logits = read_tree(state, TokenTree.chain([0] * size))
                float(logits[-1, 0])  # waits for an accelerator
                best[size] = min(best[size], time.perf_counter() - started)
                state.crop(size)
        known |= best
    return {size: known[size] for size in sizes}
