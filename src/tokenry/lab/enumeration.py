"""Every text that a constraint accepts, listed: distributions that are compared without sampling.

Q(y) = p(y) / Z over the accepted texts is the target; masking takes p(a|u) over the accepted tokens
alone; a sampler that remembers (ASAp) takes p(a|u) c~(ua) with what its trie knows. Only for
languages that can be listed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tokenry.decode.constraints.base import Constraint, State
from tokenry.decode.samplers.prefix_trie import Node
from tokenry.decode.samplers.request import Request, TextSampler
from tokenry.decode.samplers.samples import Samples
from tokenry.lab.token_rule import OddSum
from tokenry.tasks.worlds.toy_lm import NextToken, ToyLM, ToyState, odd_sum, total_variation

TOY_LIMIT = 5
Text = tuple[int, ...]


@dataclass(frozen=True)
class PromptedModel:
    """A language model behind a prompt, with a toy's verb; every text is read once."""

    model: Any
    prompt: list[int]
    table: dict[Text, Tensor] = field(default_factory=dict, repr=False)

    @torch.no_grad()
    def logits(self, text: Any) -> Tensor:
        if tuple(text) not in self.table:
            ids = torch.tensor([[*self.prompt, *text]])
            self.table[tuple(text)] = self.model(ids).logits[0, -1].float()
        return self.table[tuple(text)]


@dataclass(frozen=True)
class AcceptedTexts:
    """log p of the accepted tokens after every accepted prefix of fewer than `limit` tokens, the
    end included."""

    tree: dict[Text, dict[int, float]]
    eos: frozenset[int]

    @classmethod
    def of(cls, model: NextToken, constraint: Constraint, limit: int) -> AcceptedTexts:
        tree: dict[Text, dict[int, float]] = {}
        level: list[tuple[Text, State]] = [((), constraint.initial())]
        while level:
            text, state = level.pop()
            logprobs = model.logits(list(text)).double().log_softmax(-1)
            tokens = state.mask().nonzero()[:, 0].tolist()
            tree[text] = {token: float(logprobs[token]) for token in tokens}
            if len(text) + 1 < limit:
                going = [token for token in tokens if token not in constraint.eos]
                level += [((*text, token), state.advance(token)) for token in going]
        return cls(tree, constraint.eos)

    def exact_futures(self) -> Node:
        """A trie with c(u) itself in the place of its bound; the root's is Z."""

        def fill(text: Text, node: Node) -> float:
            total = 0.0
            for token, logprob in self.tree.get(text, {}).items():
                child = node.child(token)
                future = 1.0 if token in self.eos else fill((*text, token), child)
                total += math.exp(logprob) * future
            node.log_bound = math.log(total) if total > 0 else -math.inf
            return total

        root = Node()
        fill((), root)
        return root

    def distribution(self, root: Node | None = None) -> dict[Text, float]:
        """Of the texts that end, when tokens are as likely as p c~ and the last one must be the
        end. Without a trie that is masking, which does not know of the limit."""
        texts: dict[Text, float] = {}

        def walk(text: Text, node: Node | None, probability: float) -> None:
            scores = {}
            for token, logprob in self.tree[text].items():
                if root is None or token in self.eos or (*text, token) in self.tree:
                    child = node.children.get(token) if node else None
                    scores[token] = math.exp(logprob + (child.log_bound if child else 0.0)), child
            total = math.fsum(score for score, _ in scores.values())
            for token, (score, child) in scores.items():
                share = probability * score / total if total > 0 else 0.0
                if token in self.eos:
                    texts[text] = share
                elif (*text, token) in self.tree:
                    walk((*text, token), child, share)

        walk((), root, 1.0)
        ended = math.fsum(texts.values())
        return {text: p / ended for text, p in texts.items()}


def relative_entropy(p: dict[Text, float], q: dict[Text, float]) -> float:
    """KL(p || q) in nats, of distributions over texts."""
    return math.fsum(share * math.log(share / q[text]) for text, share in p.items() if share > 0)


def weighted_texts(samples: Samples) -> dict[Text, float]:
    """Each text with the sum of its normalised weights."""
    total: dict[Text, float] = {}
    for ids, weight in zip(samples.ids, samples.weights.tolist(), strict=True):
        if weight > 0:
            total[tuple(ids)] = total.get(tuple(ids), 0.0) + weight
    return total


def odd_sum_distance(sampler: TextSampler, model: ToyLM, texts: int, seed: int) -> float:
    """Total variation between so many weighted texts of a sampler and the toy model given an odd
    sum, within `TOY_LIMIT` tokens."""
    target, _ = model.conditional(odd_sum, TOY_LIMIT)
    state = ToyState.start(model, torch.zeros(1, 0, dtype=torch.long))
    generator = torch.Generator().manual_seed(seed)
    request = Request(state, OddSum(), max_new_tokens=TOY_LIMIT, generator=generator)
    return total_variation(weighted_texts(sampler(request, texts)), target)
