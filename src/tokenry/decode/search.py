"""Search with a scorer: best-of-n, step by step or at the end, and beam search.

    best_of_n               n sampled completions, the highest score wins
    stepwise_beam_search    `candidates` continuations of one step each, scored, the best `width`
                            kept; again, until all have ended
    beam_search_policy      the likeliest completion under the model itself

A scorer is a function (prompt, completions) -> one number for each completion, whole or so far:
a value model's estimate, a process reward, a check of the answer.

Stepwise search goes on from the winner's key-value cache. Nothing is decoded to text and encoded
again, so the tokens that are continued are those that were scored.

Sources: Token-Supervised Value Models for Enhancing Mathematical Reasoning Capabilities of Large
Language Models (arXiv 2407.12863) for the stepwise beam; Simultaneous Multi-objective Alignment
Across Verifiable and Non-verifiable Rewards (arXiv 2510.01167) for going on from the cache; From r
to Q* (arXiv 2404.12358) for beam search on a preference-trained policy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tokenry.core.checks import in_range
from tokenry.core.errors import InputError, ShapeError
from tokenry.decode.rollouts import rollouts
from tokenry.model import compat
from tokenry.model.compat import own_distribution
from tokenry.model.decoding import DecodingState
from tokenry.model.modes import evaluating

Scorer = Callable[[list[int], list[list[int]]], Sequence[float] | Tensor]
StepEnd = Callable[[list[int]], bool]


@dataclass(frozen=True)
class Candidates:
    """Completions as token ids (an end token included) with their scores, best first."""

    ids: list[list[int]]
    scores: list[float]

    @property
    def best(self) -> list[int]:
        return self.ids[0]


def best_of_n(
    model: Any,
    prompt: Sequence[int],
    scorer: Scorer,
    n: int,
    *,
    max_new_tokens: int,
    ends: Collection[int] = (),
    temperature: float = 1.0,
    seed: int | torch.Generator = 0,
) -> Candidates:
    """n completions of one prompt, which is read once; of equal scores the earlier one wins.

    Args:
        prompt: token ids.
        ends: ids that end a completion.
    """
    in_range("n", n, "[1, inf)", integer=True)
    [drawn] = rollouts(
        model,
        [prompt],
        n,
        max_new_tokens=max_new_tokens,
        ends=ends,
        temperature=temperature,
        seed=seed,
    )
    return _ranked(drawn, _scores(scorer, list(prompt), drawn))


def stepwise_beam_search(
    model: Any,
    prompt: Sequence[int],
    scorer: Scorer,
    *,
    step_end: StepEnd,
    max_steps: int,
    width: int = 1,
    candidates: int = 5,
    max_step_tokens: int = 64,
    ends: Collection[int] = (),
    temperature: float = 1.0,
    seed: int | torch.Generator = 0,
) -> Candidates:
    """The beams that are left at the end, best first.

    A beam that has ended keeps its score and its place until better ones take it.

    width=1, candidates=1 is sampling; width=1 with more is guided decoding.

    Args:
        step_end: whether the completion so far ends a step (`step_delimiter` makes one from a
            text); a step is also over at one of `ends` and after max_step_tokens.
        width: beams kept.
        candidates: continuations sampled at each step, shared out among the beams; one that was
            drawn twice counts once.
    """
    in_range("candidates", candidates, "[1, inf)", integer=True)
    in_range("width", width, f"[1, {candidates}]", integer=True)
    in_range("max_steps", max_steps, "[0, inf)", integer=True)
    in_range("max_step_tokens", max_step_tokens, "[1, inf)", integer=True)
    in_range("temperature", temperature, "(0, inf)")
    generator = torch.Generator().manual_seed(seed) if isinstance(seed, int) else seed
    device = next(model.parameters()).device
    start = DecodingState.start(model, torch.tensor([list(prompt)], device=device))
    beams = [Beam(start, [], -math.inf, False)]
    for _ in range(max_steps):
        growing = [beam for beam in beams if not beam.ended]
        if not growing:
            break
        drawn: list[Candidate] = []
        for number, beam in enumerate(growing):
            share = candidates // len(growing) + (number < candidates % len(growing))
            drawn += sample_steps(
                beam, share, step_end, max_step_tokens, set(ends), temperature, generator
            )
        drawn = list({tuple(candidate.ids): candidate for candidate in drawn}.values())
        scores = _scores(scorer, list(prompt), [candidate.ids for candidate in drawn])
        pool: list[tuple[float, Beam | Candidate]] = [(b.score, b) for b in beams if b.ended]
        pool += zip(scores, drawn, strict=True)
        pool.sort(key=lambda entry: -entry[0])  # stable: of equal scores the earlier one
        beams = [one if isinstance(one, Beam) else one.beam(score) for score, one in pool[:width]]
    return _ranked([beam.ids for beam in beams], [beam.score for beam in beams])


def beam_search_policy(
    model: Any,
    prompts: Sequence[Sequence[int]],
    width: int,
    *,
    max_new_tokens: int,
    length_penalty: float = 0.0,
    ends: Sequence[int] = (),
) -> list[list[int]]:
    """The likeliest completion of each prompt that a beam of `width` finds.

    On a policy trained by preferences this is search guided by its own value function: up to the
    start's value, log pi(y) adds up rewards and values of the token-level problem. That theory has
    no length normalisation (length_penalty 0); at 1 log pi(y) is divided by the length. Width 1 is
    greedy. The end token, if there is one, is kept. The model's generation settings (penalties,
    suppressed tokens, ...) do not count.
    """
    if not prompts or not all(prompts):
        raise InputError("beam search needs prompts, each with at least one token")
    in_range("width", width, "[1, inf)", integer=True)
    in_range("max_new_tokens", max_new_tokens, "[1, inf)", integer=True)
    in_range("length_penalty", length_penalty, "(-inf, inf)")
    longest = max(len(prompt) for prompt in prompts)
    pad = ends[0] if ends else 0
    rows = [[pad] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
    real = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    compat.require_left_padding(model, torch.tensor(real))
    device = next(model.parameters()).device
    with evaluating(model), own_distribution(model):
        output = model.generate(
            input_ids=torch.tensor(rows, device=device),
            attention_mask=torch.tensor(real, device=device),
            num_beams=width,
            do_sample=False,
            max_new_tokens=max_new_tokens,
            **({"length_penalty": length_penalty} if width > 1 else {}),
            eos_token_id=list(ends) or None,
            pad_token_id=pad,
        )
    texts = []
    for row in output[:, longest:].tolist():
        cut = next((position + 1 for position, token in enumerate(row) if token in ends), len(row))
        texts.append(row[:cut])
    return texts


def step_delimiter(tokenizer: Any, text: str = "\n", window: int = 8) -> StepEnd:
    """A step ends where the completion's text ends in `text`; `window` tokens are looked at."""
    return lambda ids: tokenizer.decode(ids[-window:]).endswith(text)


@dataclass
class Beam:
    """A prefix of the search.

    Attributes:
        state: its own cache, of one row, with next-token logits.
    """

    state: DecodingState
    ids: list[int]
    score: float
    ended: bool


@dataclass
class Candidate:
    """One sampled step: row `row` of `state`, whose last `excess` columns are not its own."""

    state: DecodingState
    row: int
    excess: int
    next_logits: Tensor
    ids: list[int]
    ended: bool

    def beam(self, score: float) -> Beam:
        """The candidate with a cache of its own, cut where its step ended."""
        state = self.state.copy()
        state.select(torch.tensor([self.row]))
        state.crop(self.excess)
        state.next_logits = self.next_logits[None]
        return Beam(state, self.ids, score, self.ended)


def sample_steps(
    beam: Beam,
    count: int,
    step_end: StepEnd,
    max_step_tokens: int,
    ends: set[int],
    temperature: float,
    generator: torch.Generator,
) -> list[Candidate]:
    """`count` sampled continuations of a beam by one step.

    They grow in one batch. One whose step is over is fed along until the others are, and its
    superfluous columns are cut off if it is chosen.
    """
    state = beam.state.copy()
    state.fork(count)
    texts = [list(beam.ids) for _ in range(count)]
    candidates: dict[int, Candidate] = {}
    lengths: dict[int, int] = {}
    for _ in range(max_step_tokens):
        probabilities = (state.logits / temperature).softmax(-1).cpu()
        tokens = torch.multinomial(probabilities, 1, generator=generator)[:, 0]
        state.append(tokens.to(state.attention.device))
        for row in range(count):
            if row in candidates:
                continue
            texts[row].append(int(tokens[row]))
            ended = texts[row][-1] in ends
            if ended or step_end(texts[row]):
                candidates[row] = Candidate(state, row, 0, state.logits[row], texts[row], ended)
                lengths[row] = state.length
        if len(candidates) == count:
            break
    for row in set(range(count)) - set(candidates):  # cut off in the middle of a step
        candidates[row] = Candidate(state, row, 0, state.logits[row], texts[row], False)
        lengths[row] = state.length
    for row, candidate in candidates.items():
        candidate.excess = state.length - lengths[row]
    return [candidates[row] for row in range(count)]


def _scores(scorer: Scorer, prompt: list[int], completions: list[list[int]]) -> list[float]:
    given = scorer(prompt, completions)
    scores = [float(score) for score in given]
    if len(scores) != len(completions):
        raise ShapeError(f"the scorer gave {len(scores)} scores for {len(completions)} completions")
    if any(math.isnan(score) for score in scores):
        raise InputError("the scorer gave a score that is not a number")
    return scores


def _ranked(ids: list[list[int]], scores: list[float]) -> Candidates:
    order = sorted(range(len(ids)), key=lambda index: -scores[index])
    return Candidates([ids[index] for index in order], [scores[index] for index in order])
