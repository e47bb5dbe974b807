"""Beams under a trie: the likeliest of a prompt's possible answers, instead of random ones.

    y_1 .. y_n = the n best of a beam search for log pi(y | x) among the texts of the trie

A policy that chooses one of many known items (a recommender's item codes, labels, names) seldom
samples the right one and samples the same one often; the beam gives n different valid answers, for
objectives over a list of them. They are not samples of the policy: expectations over them are not
the policy's. Each row knows its log-probability under the policy, column "beam_logprob" [rows].
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tokenry.core.batch import TokenBatch
from tokenry.core.checks import within
from tokenry.core.errors import ConstraintError, InputError
from tokenry.decode.constraints.base import Constraint
from tokenry.decode.samplers.beam import BeamSearch
from tokenry.decode.samplers.guard import start
from tokenry.decode.samplers.request import Request
from tokenry.learn.policy.rollouts import RolloutSettings
from tokenry.learn.policy.sources.base import Prompts, rollout_source
from tokenry.model.modes import evaluating
from tokenry.model.score import unwrap

Texts = Iterable[Sequence[int]]


class Trie(Constraint):
    """The language of some texts, as token ids without the end."""

    def __init__(self, texts: Texts, vocab_size: int, eos: Iterable[int]):
        self.vocab_size, self.eos = vocab_size, frozenset(eos)
        self.root: dict[Any, Any] = {}
        for text in texts:
            node = self.root
            for token in text:
                node = node.setdefault(int(token), {})
            node[None] = True  # a text ends here

    def initial(self) -> Branch:
        if not self.root:
            raise ConstraintError("a trie without texts: there is nothing to answer")
        return Branch(self, self.root)


@dataclass(frozen=True)
class Branch:
    """A node of the trie; the state of the constraint."""

    trie: Trie = field(repr=False)
    node: dict[Any, Any] | None  # None behind the end

    mask_cost = 1.0

    @property
    def complete(self) -> bool:
        return self.node is not None and None in self.node

    @property
    def finished(self) -> bool:
        return self.node is None

    def allows(self, token: int) -> bool:
        return (
            self.complete
            if token in self.trie.eos
            else self.node is not None and token in self.node
        )

    def mask(self) -> Tensor:
        mask = torch.zeros(self.trie.vocab_size, dtype=torch.bool)
        following = [token for token in self.node or () if token is not None]
        mask[following + (sorted(self.trie.eos) if self.complete else [])] = True
        return mask

    def advance(self, token: int) -> Branch:
        if not self.allows(token):
            raise ConstraintError(f"no text of the trie goes on with the token {token}")
        return Branch(self.trie, None if token in self.trie.eos else (self.node or {})[token])


def _examples() -> list[Any]:
    return [Beams([[5, 6, 7], [5, 6], [9], [8, 8, 8], [8, 4]])]


@rollout_source("beams", examples=_examples)
@dataclass(frozen=True)
class Beams:
    """The best `settings.samples` texts of a trie for each prompt, best first.

    Args:
        texts: token ids of each possible answer, without the end; or a function that gives them for
            a prompt's ids.
        beams: living prefixes of the search, >= 1; None: as many as samples.
    """

    texts: Texts | Callable[[list[int]], Texts]
    beams: int | None = None

    def __post_init__(self) -> None:
        within(self, "[1, inf)", "beams", integer=True, optional=True)

    @torch.no_grad()
    def __call__(self, policy: Any, prompts: Prompts, settings: RolloutSettings) -> TokenBatch:
        if not prompts.ends:
            raise InputError("beams under a trie need an end token: it tells a text from a prefix")
        vocabulary = len(unwrap(policy).get_output_embeddings().weight)
        shared = None if callable(self.texts) else Trie(self.texts, vocabulary, prompts.ends)
        search = BeamSearch(beams=self.beams)
        of, answers, logprobs = [], [], []
        with evaluating(policy):
            for number, prompt in enumerate(prompts.texts()):
                trie = shared
                if callable(self.texts):
                    trie = Trie(self.texts(prompt), vocabulary, prompts.ends)
                assert trie is not None
                request = Request(
                    start(policy, prompt),
                    trie,
                    prompt_ids=tuple(prompt),
                    max_new_tokens=settings.max_new_tokens,
                    temperature=settings.temperature,
                )
                best = search(request, settings.samples)
                rows = zip(best.ids, best.log_weights.tolist(), best.finished, strict=True)
                for ids, logprob, finished in rows:
                    if finished:
                        of.append(number)
                        answers.append([*ids, min(prompts.ends)])
                        logprobs.append(logprob)
                if number not in of:
                    raise InputError(
                        f"no text of the trie ends within max_new_tokens={settings.max_new_tokens} "
                        f"for prompt {number}"
                    )
        return prompts.batch(
            of, answers, beam_logprob=torch.tensor(logprobs, device=prompts.ids.device).float()
        )
