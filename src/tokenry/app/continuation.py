"""Continuing a prompt in the four ways of `tokenry generate`, with one kind of result.

sampled   weighted particles under a constraint (AWRS, masking)
drafted   a drafter guesses, the model verifies: several tokens per pass
cached    plain decoding on a bounded key-value cache
bytewise  byte by byte, by one model or the mean of several
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tokenry.core.checks import in_range
from tokenry.core.errors import ConstraintError
from tokenry.decode.constraints.base import Constraint, State
from tokenry.decode.generate import dead_end, ends, generate, prompt_ids, text_sampler_of
from tokenry.decode.samplers.base import DEAD
from tokenry.decode.samplers.request import Processor, TextSampler
from tokenry.decode.samplers.smc import SMC
from tokenry.decode.speculation.latency import for_one_request
from tokenry.decode.speculation.speculate import generate_with_drafter
from tokenry.decode.speculation.tree import TokenTree
from tokenry.decode.window import new_tokens_within, warn_of_window
from tokenry.model.compat import own_distribution
from tokenry.text.whole import whole_text

if TYPE_CHECKING:
    from tokenry.app.decoding import Methods

OnToken = Callable[[list[int]], None]  # the new ids so far, of the first text


@dataclass(frozen=True)
class Limits:
    """How long and how a text goes on; temperature 0 takes the likeliest token."""

    max_new_tokens: int = 64
    temperature: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        in_range("max_new_tokens", self.max_new_tokens, "[1, inf)", integer=True)
        in_range("temperature", self.temperature, "[0, inf)")


@dataclass(frozen=True)
class Continuation:
    """Texts with their log weights, the one to show, and what they took.

    log_evidence: estimated log probability of the constraint; None where it is not estimated.
    """

    text: str
    texts: list[str]
    log_weights: list[float]
    ids: list[list[int]]
    log_evidence: float | None
    seconds: float
    forward_passes: int
    tokens: int
    checks_per_token: float
    finished: bool

    def cut(self, shorten: Callable[[str], str]) -> Continuation:
        """The same with every text shortened."""
        return replace(self, text=shorten(self.text), texts=[shorten(t) for t in self.texts])

    def to_dict(self) -> dict[str, Any]:
        """What `tokenry generate --json` prints."""
        samples = zip(self.texts, self.log_weights, self.ids, strict=True)
        return {
            "text": self.text,
            "samples": [{"text": t, "log_weight": w, "tokens": ids} for t, w, ids in samples],
            "log_evidence": self.log_evidence,
            "tokens": self.tokens,
            "seconds": round(self.seconds, 3),
            "forward_passes": self.forward_passes,
            "tokens_per_pass": self.tokens / max(self.forward_passes, 1),
            "checks_per_token": self.checks_per_token,
            "finished": self.finished,
        }


def continued(
    loaded: tuple[Any, Any],
    prompt: Any,
    constraint: Constraint | None,
    limits: Limits,
    how: Methods,
    must_end: bool = True,
    on_token: OnToken | None = None,
    processors: Sequence[Processor] = (),
) -> Continuation:
    """By the drafter, else by the cache policy, else by the sampler of `how`."""
    common = (loaded, prompt, constraint, limits)
    if how.drafter is not None:
        return drafted(*common, how.drafter, must_end, on_token, processors, how.policy)
    if how.policy is not None:
        return cached(*common, how.policy, must_end, on_token, processors)
    weighted = constraint is not None or how.critic is not None
    sampler = how.sampler or ("awrs" if weighted else "mask")
    return sampled(*common, sampler, how.particles, must_end, on_token, processors, how.critic)


def sampled(
    loaded: tuple[Any, Any],
    prompt: Any,
    constraint: Constraint | None,
    limits: Limits,
    sampler: str | TextSampler = "awrs",
    particles: int = 1,
    must_end: bool = True,
    on_token: OnToken | None = None,
    processors: Sequence[Processor] = (),
    critic: Callable[[str], float] | None = None,
) -> Continuation:
    """Particles under a constraint. must_end: a text that the limit cuts off counts for nothing.
    critic: log potential of a text."""
    greedy = limits.temperature == 0

    def potential(ids: list[int], ended: bool) -> float:
        return float(critic(loaded[1].decode(ids))) if critic else 0.0

    chosen = text_sampler_of("greedy" if greedy else sampler)
    if critic is not None and isinstance(chosen, SMC):
        chosen = replace(chosen, critic=potential)
    result = generate(
        loaded,
        prompt,
        constraint,
        chosen,
        particles,
        limits.max_new_tokens,
        1.0 if greedy else limits.temperature,
        limits.seed,
        processors,
        must_end=constraint is not None and must_end,
        progress=None
        if on_token is None
        else lambda _, texts: on_token(max(texts, key=len, default=[])),
    )
    log_weights = result.log_weights.tolist()
    if max(log_weights) == DEAD:
        raise unfinished(loaded, prompt, constraint, limits, result.ids)
    texts = [whole_text(loaded[1], ids) for ids in result.ids]
    return Continuation(
        text=texts[result.best],
        texts=texts,
        log_weights=log_weights,
        ids=result.ids,
        log_evidence=None if greedy else result.log_evidence,
        seconds=result.seconds,
        forward_passes=result.passes,
        tokens=result.tokens,
        checks_per_token=result.checks_per_token,
        finished=result.finished[result.best],
    )


def drafted(
    loaded: tuple[Any, Any],
    prompt: Any,
    constraint: Constraint | None,
    limits: Limits,
    drafter: Any,
    must_end: bool = True,
    on_token: OnToken | None = None,
    processors: Sequence[Processor] = (),
    policy: Any = None,
) -> Continuation:
    """One text, as plain decoding would give it, with several tokens per pass; guesses that the
    constraint rejects are cut before the model reads them. The machine's times are measured only
    for a text that is long enough to win that back."""
    model, tokenizer = loaded
    ids = prompt_ids(tokenizer, prompt)

    def watch(text: Tensor, _: Tensor) -> bool:
        if on_token is not None:
            on_token(text[0, len(ids) :].tolist())
        return False

    masks = [] if constraint is None else [ConstraintMask(constraint, ids, tokenizer)]
    with for_one_request(model, limits.max_new_tokens) as kernels:
        result = generate_with_drafter(
            model,
            ids,
            drafter,
            limits.max_new_tokens,
            temperature=limits.temperature,
            eos_token_id=ends(*loaded),
            processors=[*processors, *masks],
            stopping=[watch],
            prune=masks[0].prune if masks else None,
            cache=None if policy is None else policy.cache(model),
            generator=torch.Generator().manual_seed(limits.seed),
            kernels=kernels,
        )
    if must_end and not ended(loaded, result.new_ids):
        raise unfinished(loaded, prompt, constraint, limits, [result.new_ids])
    return one_text(loaded, result.new_ids, result.seconds, result.forward_calls)


def cached(
    loaded: tuple[Any, Any],
    prompt: Any,
    constraint: Constraint | None,
    limits: Limits,
    policy: Any,
    must_end: bool = True,
    on_token: OnToken | None = None,
    processors: Sequence[Processor] = (),
) -> Continuation:
    """One text on a bounded key-value cache, by transformers' own generate."""
    model, tokenizer = loaded
    ids = torch.tensor([prompt_ids(tokenizer, prompt)], device=next(model.parameters()).device)
    limit = new_tokens_within(model, ids.shape[1], limits.max_new_tokens)
    watched: list[int] = []

    def watch(text: Tensor, scores: Tensor) -> Tensor:
        watched[:] = text[0, ids.shape[1] :].tolist()
        if on_token is not None and watched:
            on_token(watched)
        return scores

    started = time.perf_counter()
    sampling: dict[str, Any] = {"do_sample": False}
    if limits.temperature > 0:
        sampling = {"do_sample": True, "temperature": limits.temperature, "top_k": 0, "top_p": 1.0}
    with torch.random.fork_rng(), torch.inference_mode(), own_distribution(model):
        torch.manual_seed(limits.seed)  # transformers draws from the global generator
        output = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            past_key_values=policy.cache(model),
            max_new_tokens=limit,
            eos_token_id=ends(*loaded),
            pad_token_id=tokenizer.pad_token_id or ends(*loaded)[0],
            logits_processor=[
                *processors,
                *([ConstraintMask(constraint, ids[0].tolist(), tokenizer)] if constraint else []),
                watch,
            ],
            **sampling,
        )
    new = output[0, ids.shape[1] :].tolist()
    if on_token is not None:
        on_token(new)
    if not ended(loaded, new) and must_end:
        raise unfinished(loaded, prompt, constraint, limits, [new])
    if not ended(loaded, new) and limit < limits.max_new_tokens:
        warn_of_window(model)
    return one_text(loaded, new, time.perf_counter() - started, len(new))


def bytewise(
    models: Sequence[tuple[Any, Any]],
    prompt: Any,
    limits: Limits,
    stop: Sequence[str] = (),
    on_text: Callable[[str], None] | None = None,
) -> Continuation:
    """One text of at most `limits.max_new_tokens` bytes, whose ids are its bytes."""
    from tokenry.decode.bytes import ByteEnsemble, ByteModel, complete

    started = time.perf_counter()
    members = [ByteModel(*loaded) for loaded in models]
    is_text = isinstance(prompt, str)  # else chat messages, each model with its own template
    context = [] if is_text else [prompt_ids(tokenizer, prompt) for _, tokenizer in models]
    alone = len(members) == 1
    result = complete(
        members[0] if alone else ByteEnsemble(members),
        prompt if is_text else "",
        limits.max_new_tokens,
        temperature=limits.temperature,
        seed=limits.seed,
        stop=stop,
        context=context[0] if alone and context else context,
        on_text=on_text,
    )
    return Continuation(
        text=result.text,
        texts=[result.text],
        log_weights=[result.logprob],
        ids=[list(result.data)],
        log_evidence=None,
        seconds=time.perf_counter() - started,
        forward_passes=result.passes.calls,
        tokens=len(result.data),
        checks_per_token=0.0,
        finished=result.ended,
    )


def one_text(loaded: tuple[Any, Any], ids: list[int], seconds: float, passes: int) -> Continuation:
    """The result of a decoding that has one text and no weights."""
    finished = ended(loaded, ids)
    text = whole_text(loaded[1], ids)
    return Continuation(
        text=text,
        texts=[text],
        log_weights=[0.0],
        ids=[ids[:-1] if finished else ids],
        log_evidence=None,
        seconds=seconds,
        forward_passes=passes,
        tokens=len(ids),
        checks_per_token=0.0,
        finished=finished,
    )


def ended(loaded: tuple[Any, Any], ids: Sequence[int]) -> bool:
    return bool(ids) and ids[-1] in ends(*loaded)


def unfinished(
    loaded: tuple[Any, Any],
    prompt: Any,
    constraint: Constraint | None,
    limits: Limits,
    texts: Sequence[Sequence[int]],
) -> ConstraintError:
    """That no text was done within the limit: none satisfies the constraint, or none has ended."""
    model, tokenizer = loaded
    before = prompt_ids(tokenizer, prompt)
    limit = new_tokens_within(model, len(before), limits.max_new_tokens)
    if limit < limits.max_new_tokens:
        within = f"the {limit} tokens that the model's window has behind the prompt"
        advice = "shorten the prompt"
    else:
        within = f"{limit} tokens"
        advice = "raise --max-new-tokens"
    complete = [
        ids for ids in texts if constraint is not None and satisfied(constraint, before, ids)
    ]
    longest = max(complete or texts, key=len)
    example = f"{whole_text(tokenizer, longest)[:80]!r}"
    if complete:
        return ConstraintError(
            f"the text satisfies the constraint and has not ended within {within} ({example}): "
            f"--steer ending ends it there; or {advice}"
        )
    return ConstraintError(
        f"no text satisfied the constraint within {within}, for example {example}: {advice}, or "
        "prompt for something shorter"
    )


def satisfied(constraint: Constraint, prompt: Sequence[int], ids: Sequence[int]) -> bool:
    """Whether the text may end here."""
    state = constraint.begin(prompt)
    for token in ids:
        if not state.allows(token):
            return False
        state = state.advance(token)
    return state.complete


class ConstraintMask:
    """Any constraint as a logits processor, the last one, for a row that goes on from `prompt`."""

    def __init__(self, constraint: Constraint, prompt: Sequence[int], tokenizer: Any):
        self.tokenizer = tokenizer
        self.start = self.read = len(prompt)
        self.state: State = constraint.begin(prompt)

    def after(self, text: Sequence[int]) -> State:
        """The constraint's state after prompt and text so far."""
        for token in text[self.read :]:
            self.state = self.state.advance(token)
        self.read = len(text)
        return self.state

    def prune(self, text: Sequence[int], tree: TokenTree) -> TokenTree:
        """The tree without guesses that the constraint rejects; its root is the text's last
        token."""
        states = {0: self.after(text)}
        for node in range(1, len(tree)):
            parent = states.get(tree.parents[node])
            if parent is not None and parent.allows(tree.tokens[node]):
                states[node] = parent.advance(tree.tokens[node])
        return tree if len(states) == len(tree) else tree.select(list(states))

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Logits [1, V] with the refused tokens at -inf, after `input_ids` [1, T].

        Raises ConstraintError where no token is left: the constraint refuses all, or those that the
        processors before it have left."""
        text = input_ids[0].tolist()
        self.after(text)
        mask = self.state.mask().to(scores.device)
        mask = torch.nn.functional.pad(mask, (0, max(0, scores.shape[1] - len(mask))))
        allowed = scores.masked_fill(~mask[: scores.shape[1]], float("-inf"))
        if not bool((allowed > float("-inf")).any()):
            raise dead_end(self.tokenizer, text[self.start :])
        return allowed
