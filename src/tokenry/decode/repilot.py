"""complete_code: fill a hole in a program together with a completion engine.

    from tokenry.decode.constraints.jedi_engine import JediEngine

    with JediEngine() as engine:
        found = complete_code(loaded, before, after, engine, samples=4, eos=line_ends(tokenizer))
    found.texts, found.calls, found.pruned, found.forced

Each token is drawn from the model's (top-k, temperature) distribution and kept if the engine could
still complete the name that it is part of, else banned and drawn again: the distribution of a
step is p restricted to the feasible tokens. No step knows what it rules out later, so whole texts
are valid and not weighted; `generate` with a `Completion` constraint weighs them.

Where the engine leaves one way to go on, mode "constrain" lets the model spell it out in tokens of
its choice, and mode "insert" writes it down itself and has the model read it in one pass.

Source: Copiloting the Copilots: Fusing Large Language Models with Completion Engines for Automated
Program Repair (arXiv 2309.00608).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import TopKLogitsWarper

from tokenry.core.checks import in_range
from tokenry.core.errors import ConstraintError
from tokenry.decode.constraints.base import State
from tokenry.decode.constraints.completion import Completion, CompletionState, Mode
from tokenry.decode.constraints.completion_engine import CompletionEngine
from tokenry.decode.constraints.completion_memo import Memo
from tokenry.decode.generate import ends, prompt_ids
from tokenry.decode.samplers.base import DEAD, NOTHING, Step, TokenSampler, fitted_mask
from tokenry.decode.samplers.request import Processor, Request
from tokenry.decode.samplers.smc import smc
from tokenry.decode.samplers.survivors import draw_survivors
from tokenry.model.decoding import DecodingState
from tokenry.text.vocabulary import token_bytes

CHEAP_MASK = 64  # single checks that a mask may cost


@dataclass(frozen=True)
class CodeCompletions:
    """Texts for a hole, and what they took.

    Attributes:
        texts: of all samples.
        finished: whether each ended by itself.
        failed: samples that ran into a place where no token was feasible, whose texts stop there.
        calls: questions to the engine.
        remembered: questions that the memory and the refused prefixes saved.
        spared: questions that the memory and the refused prefixes saved.
        pruned: tokens refused.
        forced: tokens settled by an active completion.
        tokens: of all texts.
        passes: of the model, the prompt's included.
    """

    texts: list[str]
    ids: list[list[int]]
    finished: list[bool]
    failed: int
    calls: int
    remembered: int
    spared: int
    pruned: int
    forced: int
    tokens: int
    passes: int
    seconds: float


def complete_code(
    loaded: tuple[Any, Any],
    prefix: str,
    suffix: str = "",
    engine: CompletionEngine | None = None,
    *,
    samples: int = 1,
    max_new_tokens: int = 64,
    temperature: float = 1.0,
    top_k: int = 50,
    context_tokens: int | None = None,
    mode: Mode = "constrain",
    whole_names: bool = False,
    eos: Sequence[int] | None = None,
    memo: Memo | None = None,
    seed: int | torch.Generator = 0,
) -> CodeCompletions:
    """`samples` texts between `prefix`, which the model reads, and `suffix`, which only the engine
    sees.

    Args:
        loaded: (model, tokenizer).
        engine: None completes without one.
        mode: see `Completion`.
        whole_names: see `Completion`.
        memo: see `Completion`.
        top_k: 0 keeps all tokens.
        context_tokens: how many of the prefix's last tokens the model reads (None: all); the engine
            sees the whole file.
        eos: ids that end a text (default: the model's); those of `line_ends` end a line.
    """
    model, tokenizer = loaded
    in_range("samples", samples, "[1, inf)", integer=True)
    in_range("max_new_tokens", max_new_tokens, "[1, inf)", integer=True)
    in_range("top_k", top_k, "[0, inf)", integer=True)
    in_range("context_tokens", context_tokens, "[1, inf)", integer=True, optional=True)
    in_range("temperature", temperature, "(0, inf)")
    started = time.perf_counter()
    memo = Memo() if memo is None else memo
    before = Memo(**{name: getattr(memo, name) for name in COUNTS})
    constraint = Completion(
        engine or Oblivious(),
        tokenizer,
        prefix=prefix,
        suffix=suffix,
        mode=mode if engine else "off",
        whole_names=whole_names and engine is not None,
        eos=ends(*loaded) if eos is None else eos,
        memo=memo,
    )
    ids = prompt_ids(tokenizer, prefix)
    ids = ids if context_tokens is None else ids[-context_tokens:]
    only_top: list[Processor] = [TopKLogitsWarper(top_k)] if top_k else []  # pyright: ignore
    request = Request(
        DecodingState.start(model, torch.tensor([ids], device=next(model.parameters()).device)),
        constraint,
        prompt_ids=tuple(ids),
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        must_end=False,
        processors=only_top,
        generator=torch.Generator().manual_seed(seed) if isinstance(seed, int) else seed,
    )
    rows = (inserted if mode == "insert" else drawn)(request, tokenizer, samples)
    for row in rows.dead:
        state = replay(constraint, row)
        if not state.undecided:
            memo.bury((state.before, suffix))
    return CodeCompletions(
        texts=[constraint_text(constraint, row) for row in rows.ids],
        ids=rows.ids,
        finished=rows.finished,
        failed=len(rows.dead),
        tokens=sum(len(row) for row in rows.ids) + sum(rows.finished),
        passes=rows.passes,
        seconds=time.perf_counter() - started,
        **{name: getattr(memo, name) - getattr(before, name) for name in COUNTS},
    )


COUNTS = ("calls", "remembered", "spared", "pruned", "forced")


@dataclass
class Rows:
    """Sampled texts.

    Attributes:
        dead: those after which no token was left.
    """

    ids: list[list[int]]
    finished: list[bool]
    dead: list[list[int]]
    passes: int


def drawn(request: Request, tokenizer: Any, samples: int) -> Rows:
    """All texts at once, token by token."""
    texts = smc(
        request.rows(),
        request.constraint,
        particles=samples,
        max_new_tokens=request.max_new_tokens,
        sampler=FirstFeasible(tokenizer),
        temperature=request.temperature,
        weighted=False,
        must_end=False,
        processors=request.processors,
        prompt_ids=request.prompt_ids,
        generator=request.generator,
    )
    dead = [row for row, w in zip(texts.ids, texts.log_weights.tolist(), strict=True) if w == DEAD]
    return Rows(texts.ids, texts.finished, dead, texts.passes)


def inserted(request: Request, tokenizer: Any, samples: int) -> Rows:
    """One text after the other; what an active completion wants is read in one pass."""
    rows = Rows([], [], [], 1)
    sampler = FirstFeasible(tokenizer)
    for _ in range(samples):
        decoding, ids, ended = request.rows(), [], False
        state = request.constraint.begin(request.prompt_ids)
        assert isinstance(state, CompletionState)
        while len(ids) < request.max_new_tokens:
            more = spell(tokenizer, state.pending)[: request.max_new_tokens - len(ids)]
            if not more:
                logprobs = request.logprobs(decoding, [ids])
                step = sampler.step(logprobs[0], state, request.generator)
                if step.token == NOTHING:
                    rows.dead.append(ids)
                    break
                if step.token in request.constraint.eos:
                    ended = True
                    break
                more = [step.token]
            for token in more:
                state = state.advance(token)
            ids = [*ids, *more]
            if len(ids) < request.max_new_tokens:
                decoding.append(torch.tensor([more]))
                rows.passes += 1
        rows.ids.append(ids)
        rows.finished.append(ended)
    return rows


@dataclass(frozen=True)
class FirstFeasible(TokenSampler):
    """The first accepted token of draws without replacement: exact in each step, without a weight.

    The weight of `AWRS` takes one check more, and a check is what is expensive here.

    Args:
        tokenizer: with it, an active completion of which the model's top-k has no token is written
            down in the tokenizer's own tokens; without, the text fails there.
    """

    tokenizer: Any = None

    def steps(
        self, logprobs: Tensor, states: Sequence[State], generator: torch.Generator
    ) -> list[Step]:
        steps = []
        for draws, state in zip(draw_survivors(logprobs, generator), states, strict=True):
            checks = masks = 0
            if state.mask_cost <= CHEAP_MASK:
                draws.keep(fitted_mask(state, logprobs.shape[-1]))
                masks = 1
            while (token := draws.draw()) is not None or draws.descend():
                if token is None:
                    continue  # all that floats can hold was refused: on to the still less likely
                checks += 1
                if state.allows(token):
                    break
                draws.ban(token)
            if token is None and self.tokenizer is not None:
                token = next(iter(spell(self.tokenizer, getattr(state, "pending", b""))), None)
            weight = DEAD if token is None else 0.0
            steps.append(Step(NOTHING if token is None else token, weight, checks, masks))
        return steps


class Oblivious:
    """An engine that can never tell: nothing is refused."""

    def complete(self, text: str, caret: int) -> None:
        return None


def line_ends(tokenizer: Any) -> list[int]:
    """The tokens that end a line, of nothing but white space and a line break among it."""
    ids = [
        token
        for token, piece in enumerate(token_bytes(tokenizer))
        if b"\n" in piece and not piece.strip()
    ]
    if not ids:
        raise ConstraintError("no token of this vocabulary is a line break")
    return ids


def spell(tokenizer: Any, text: bytes) -> list[int]:
    """Tokens whose bytes are `text`: the tokenizer's own, or the longest ones that fit."""
    if not text:
        return []
    spelling = token_bytes(tokenizer)
    try:
        ids = tokenizer(text.decode(), add_special_tokens=False)["input_ids"]
    except UnicodeDecodeError:
        ids = []
    if b"".join(spelling[token] for token in ids) == text:
        return ids
    known = {piece: token for token, piece in enumerate(spelling) if piece and piece in text}
    ids, at = [], 0
    while at < len(text):
        length = next(n for n in range(len(text) - at, 0, -1) if text[at : at + n] in known)
        ids.append(known[text[at : at + length]])
        at += length
    return ids


def replay(constraint: Completion, ids: Sequence[int]) -> CompletionState:
    """The state after a text."""
    state = constraint.initial()
    for token in ids:
        state = state.advance(token)
    return state


def constraint_text(constraint: Completion, ids: Sequence[int]) -> str:
    """What tokens spell; a character cut at the end is left out."""
    return b"".join(constraint.spelling[token] for token in ids).decode(errors="ignore")
