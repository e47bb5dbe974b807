"""Decoding with a draft: several tokens per forward pass, the same text as without.

    drafter = TokenRecycling()
    found = generate_with_drafter(model, ids, drafter, max_new_tokens=64)
    found.new_ids, found.tokens_per_pass

Each step drafts a tree of guesses on top of the last token, reads it in one forward pass, and keeps
the path that the model confirms. A step costs more than a pass over one token, by how much depends
on the machine: `latency.latency_curve` measures it, and drafters fit their trees to it.

The text is the one that plain decoding gives, up to the rounding of the model's arithmetic: a pass
over many tokens and a pass over one round differently, so two logits that agree to the last digits
may swap. In float32 that is rare; in bfloat16 it happens in most long texts.

Several prompts go through the model together, each with a tree of its own; a row that accepts less
than another leaves unseen columns in the cache.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from tokenry.core.batch import TokenBatch
from tokenry.core.checks import in_range
from tokenry.core.errors import InputError
from tokenry.core.registry import Role
from tokenry.decode.speculation.latency import quick_kernels
from tokenry.decode.speculation.tree import TokenTree
from tokenry.decode.speculation.verify import Accepted, draw, walk
from tokenry.decode.window import new_tokens_within, warn_of_window
from tokenry.model import compat
from tokenry.model.decoding import DecodingState

Processor = Callable[[Tensor, Tensor], Tensor]  # (ids [1, T], logits [1, V]) -> logits [1, V]
Stopping = Callable[[Tensor, Tensor], Any]  # (ids [1, T], logits [1, V]) -> true to stop

PROMPT_CHUNK = 1 << 24  # logits held at once while a drafter learns from the prompt


class Drafter(Protocol):
    """The role: a tree of guesses at the next tokens, of which the model keeps the path that it
    confirms; the text does not depend on them.

    What it learns from every text lives in the drafter, what it knows of one text in the `Draft`
    that `begin` returns.

    Attributes:
        reads_prompt: whether `update` should be called with the prompt's logits.
    """

    @property
    def reads_prompt(self) -> bool: ...

    def begin(self, model: Any, prompt: Sequence[int]) -> Draft:
        """A new text starts."""
        ...


drafter = Role("drafter", Drafter, ("tokenry.decode.speculation",))


class Draft(Protocol):
    """The guesses for one text."""

    def draft(self, last_token: int, budget: int) -> TokenTree:
        """A tree whose root is the last committed token, at most `budget` tokens deep."""
        ...

    def update(self, tree: TokenTree, logits: Tensor, accepted: Accepted) -> None:
        """What the model said about the tree: logits [M, V], and the walk through it. The tree may
        have lost nodes since it was drafted."""


@runtime_checkable
class ReadingDraft(Protocol):
    """A draft that reads its trees itself, since it needs more than logits from the pass."""

    def read(self, state: DecodingState, tree: TokenTree) -> Tensor:
        """Logits after every node, [M, V]; columns of the cache behind the tree's are dropped."""
        ...


Prune = Callable[[Sequence[int], TokenTree], TokenTree]
"""(text so far, tree) -> the tree without nodes that cannot be accepted."""


@dataclass(frozen=True)
class Speculation:
    """A generated text and what it took.

    Args:
        ids: prompt and continuation.
        accept_lengths: tokens that each step added (accepted ones and the bonus token).
        nodes: tokens of this text read by each step.
        forward_calls: passes, the prompt's included, which gives the first token.
        seconds: of the whole call, all texts of the batch together; the first one with a drafter
            that fits its trees to the machine includes the measuring, unless `latency_curve` was
            called before.
        window_full: the text is as long as the model's window, which ended it.
    """

    ids: list[int]
    prompt_length: int
    accept_lengths: list[int]
    nodes: list[int]
    forward_calls: int
    seconds: float
    window_full: bool = False

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
    **options: Any,
) -> Speculation:
    """Continue the prompt `ids` ([T] or [1, T]) with at most `max_new_tokens` tokens; `options` are
    those of `speculate`."""
    if isinstance(ids, Tensor) and ids.ndim == 2 and ids.shape[0] != 1:
        raise InputError(f"one prompt at a time, got {ids.shape[0]}: use `speculate` for several")
    prompt = torch.as_tensor(ids, dtype=torch.long).reshape(-1).tolist()
    return speculate(model, [prompt], drafter, max_new_tokens, **options)[0]


def speculate(
    model: Any,
    prompts: Sequence[Sequence[int]],
    drafter: Drafter,
    max_new_tokens: int = 64,
    *,
    temperature: float = 0.0,
    top_p: float = 1.0,
    eos_token_id: int | Sequence[int] | None = None,
    processors: Sequence[Processor] = (),
    stopping: Sequence[Stopping] = (),
    row_steering: Sequence[tuple[Sequence[Processor], Sequence[Stopping]]] | None = None,
    steering_prompts: Sequence[Sequence[int]] | None = None,
    prune: Prune | None = None,
    cache: Any = None,
    generator: torch.Generator | None = None,
    kernels: bool | None = None,
    on_step: Callable[[TokenTree, Accepted], None] | None = None,
) -> list[Speculation]:
    """Continue every prompt with at most `max_new_tokens` tokens, the batch in one pass per step.

    A text that fills the model's window ends there; its `window_full` and a warning say so.

    Args:
        temperature: 0 is greedy.
        eos_token_id: None takes those of the model's generation settings, an empty list none.
        processors: transformers' LogitsProcessors; each sees, for every token of the text in turn,
            what plain decoding would show it, and never a rejected guess.
        stopping: transformers' StoppingCriteria, asked after every token. Both see one row at a
            time; those that must not be shared by the rows come in row_steering, (processors,
            stopping) of every prompt.
        steering_prompts: the prompts as they see them, such as with padding; None: as they are.
        prune: cuts guesses that cannot be accepted, such as those a constraint rejects, before the
            model reads them; trees that were sampled stay whole.
        cache: an empty one of a cache policy that keeps every token, for one prompt.
        kernels: whether to read with kernels for few rows (`packed`), which cost the linear layers'
            memory again; None uses them where they are faster on this machine.
        on_step: called with each tree and the walk through it.
    """
    started = time.perf_counter()
    check(model, prompts, max_new_tokens, cache)
    ends = end_tokens(model, eos_token_id)
    device = next(model.parameters()).device
    with quick_kernels(model, kernels):
        texts = []
        for row, prompt in enumerate(prompts):
            more = ((), ()) if row_steering is None else row_steering[row]
            choosing = Choosing(
                temperature, top_p, (*more[0], *processors), (*more[1], *stopping), ends, generator
            )
            limit = new_tokens_within(model, len(prompt), max_new_tokens)
            seen = prompt if steering_prompts is None else steering_prompts[row]
            draft = drafter.begin(model, prompt)
            texts.append(Text(list(prompt), list(seen), limit, choosing, draft, device))
        if len(texts) > 1 and isinstance(texts[0].draft, ReadingDraft):
            raise InputError(f"{type(drafter).__name__} drafts for one prompt at a time")
        state, passes = read_prompts(model, texts, drafter, cache)
        for text, logits in zip(texts, state.logits, strict=True):
            text.choose(TokenTree((0,), (-1,)), 0, logits)
            text.passes = passes
        alive = drop_finished(state, texts)
        while alive:
            step(state, alive, prune, on_step)
            alive = drop_finished(state, alive)
    seconds = time.perf_counter() - started
    results = [text.result(seconds, max_new_tokens) for text in texts]
    if any(text.window_full for text in results):
        warn_of_window(model)
    return results


def step(
    state: DecodingState,
    texts: list[Text],
    prune: Prune | None,
    on_step: Callable[[TokenTree, Accepted], None] | None,
) -> None:
    """Draft a tree for every text, read them in one pass, and keep what the model confirms."""
    trees = [text.draft.draft(text.last, text.budget - 1) for text in texts]
    trees = [tree.limited(text.budget - 1) for tree, text in zip(trees, texts, strict=True)]
    if prune is not None:  # a guess that was drawn has to be judged, or the distribution changes
        trees = [
            tree if tree.proposals is not None else prune(text.ids, tree)
            for tree, text in zip(trees, texts, strict=True)
        ]
    logits = read_trees(state, trees, texts)
    walks = [
        walk(tree, rows, partial(text.choose, tree))
        for text, tree, rows in zip(texts, trees, logits, strict=True)
    ]
    if state.undecided:
        longest = max(len(accepted.path) for accepted in walks)
        state.keep([[*accepted.path, *[-1] * (longest - len(accepted.path))] for accepted in walks])
    for text, tree, rows, accepted in zip(texts, trees, logits, walks, strict=True):
        text.draft.update(tree, rows[: len(tree)], accepted)
        text.accept_lengths.append(len(accepted.tokens))
        text.nodes.append(len(tree))
        text.passes += 1
        if on_step:
            on_step(tree, accepted)


def check(model: Any, prompts: Sequence[Sequence[int]], max_new_tokens: int, cache: Any) -> None:
    """Refuse what cannot be decoded."""
    if not prompts:
        raise InputError("no prompt: give at least one")
    if any(not len(prompt) for prompt in prompts):
        raise InputError("the prompt is empty: give at least one token to continue")
    in_range("max_new_tokens", max_new_tokens, "[1, inf)", integer=True)
    if cache is None:
        return
    if len(prompts) > 1:
        raise InputError(f"a cache policy goes with one prompt at a time here, not {len(prompts)}")
    if not all(
        getattr(layer, "is_croppable", False) for layer in compat.keep_windows(cache).layers
    ):
        raise InputError(
            "a draft takes rejected tokens back, which a cache that evicts or has a fixed size "
            f"({type(cache).__name__}) cannot do: use a policy that keeps every token, such as "
            "tokenselect"
        )


@dataclass(frozen=True)
class Choosing:
    """How the next token of a text is chosen from the model's logits, and when the text ends."""

    temperature: float
    top_p: float
    processors: Sequence[Processor]
    stopping: Sequence[Stopping]
    ends: frozenset[int]
    generator: torch.Generator | None


class Text:
    """One text of the batch while it grows."""

    def __init__(
        self,
        prompt: list[int],
        steering_prompt: list[int],
        new: int,
        choosing: Choosing,
        draft: Draft,
        device: torch.device,
    ):
        self.ids, self.prompt_length = prompt, len(prompt)
        self.choosing, self.draft = choosing, draft
        # what processors see: the prompt as they are shown it, and the new tokens
        self.tensor = torch.zeros(1, len(steering_prompt) + new, dtype=torch.long, device=device)
        self.tensor[0, : len(steering_prompt)] = torch.tensor(steering_prompt)
        self.hidden = len(steering_prompt) - len(prompt)  # tokens that the model does not read
        self.finished, self.cut_off, self.passes = False, False, 0
        self.accept_lengths: list[int] = []
        self.nodes: list[int] = []

    @property
    def last(self) -> int:
        return self.ids[-1]

    @property
    def budget(self) -> int:
        """Tokens that still fit."""
        return self.tensor.shape[1] - self.hidden - len(self.ids)

    @property
    def written(self) -> Tensor:
        """[1, T], as processors see it."""
        return self.tensor[:, : self.hidden + len(self.ids)]

    def choose(self, tree: TokenTree, node: int, logits: Tensor) -> int | None:
        """The next token, from the model's logits [V] at a node; None when the text has ended."""
        if self.finished:
            return None
        how = self.choosing
        scores = logits[None].clone() if how.processors else logits[None]
        for process in how.processors:
            scores = process(self.written, scores)
        token = draw(scores[0], how.temperature, how.top_p, how.generator, tree.proposed(node))
        self.tensor[0, self.hidden + len(self.ids)] = token
        self.ids.append(token)
        stopped = [bool(stop(self.written, scores)) for stop in how.stopping]  # all are asked
        ended = token in how.ends or any(stopped)
        self.cut_off = not ended and not self.budget
        self.finished = ended or self.cut_off
        return token

    def result(self, seconds: float, max_new_tokens: int) -> Speculation:
        return Speculation(
            self.ids,
            self.prompt_length,
            self.accept_lengths,
            self.nodes,
            self.passes,
            seconds,
            self.cut_off and len(self.ids) - self.prompt_length < max_new_tokens,
        )


def drop_finished(state: DecodingState, texts: list[Text]) -> list[Text]:
    """The texts that go on; the state keeps their rows only."""
    going = [row for row, text in enumerate(texts) if not text.finished]
    if going and len(going) < len(texts):
        state.select(torch.tensor(going))
    return [texts[row] for row in going]


def read_trees(state: DecodingState, trees: Sequence[TokenTree], texts: Sequence[Text]) -> Tensor:
    """Logits after every node of every text's tree, [B, M, V]; shorter trees fill up with junk."""
    if len(trees) == 1:
        draft = texts[0].draft
        read = draft.read if isinstance(draft, ReadingDraft) else read_tree
        return read(state, trees[0])[None]
    device = state.attention.device
    width = max(map(len, trees))
    tokens = torch.zeros(len(trees), width, dtype=torch.long)
    parents = torch.full_like(tokens, -1)
    for row, tree in enumerate(trees):
        tokens[row, : len(tree)] = torch.tensor(tree.tokens)
        parents[row, : len(tree)] = torch.tensor(tree.parents)
    return state.tree(tokens.to(device), parents.to(device))


def read_tree(state: DecodingState, tree: TokenTree) -> Tensor:
    """Logits after every node, [M, V]; without guesses, by the plain pass, which costs less."""
    device = state.attention.device
    tokens = torch.tensor(tree.tokens, device=device)
    if len(tree) == 1:
        return state.append(tokens)
    return state.tree(tokens, torch.tensor(tree.parents, device=device))


def read_prompts(
    model: Any, texts: Sequence[Text], drafter: Drafter, cache: Any
) -> tuple[DecodingState, int]:
    """The state after the prompts, and the number of passes it took. Of several prompts drafters
    do not see the logits."""
    if len(texts) > 1:
        batch = TokenBatch.from_ids([text.ids for text in texts], padding_side="left")
        device = texts[0].tensor.device
        return DecodingState.start(model, batch.ids.to(device), batch.attention.to(device)), 1
    ids, draft = torch.tensor([texts[0].ids], device=texts[0].tensor.device), texts[0].draft
    if not drafter.reads_prompt or ids.shape[1] == 1:
        return DecodingState.start(model, ids, cache=cache), 1
    state, calls = DecodingState.start(model, ids[:, :1], cache=cache), 1
    chunk = max(1, PROMPT_CHUNK // state.logits.shape[1])
    for start in range(1, ids.shape[1], chunk):
        part = ids[:, start : start + chunk]
        logits = state.append(part)[0]
        tokens = part[0].tolist()
        after = ids[0, start + 1 : start + 1 + len(tokens)].tolist()
        walked = Accepted(list(range(len(tokens))), after)
        draft.update(TokenTree.chain(tokens), logits, walked)
        calls += 1
    return state, calls


def end_tokens(model: Any, eos_token_id: int | Sequence[int] | None) -> frozenset[int]:
    if eos_token_id is None:
        settings = getattr(model, "generation_config", None)
        eos_token_id = getattr(settings, "eos_token_id", None)
    if eos_token_id is None:
        return frozenset()
    return frozenset([eos_token_id] if isinstance(eos_token_id, int) else eos_token_id)
