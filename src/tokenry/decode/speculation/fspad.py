"""FSPAD: drafts from the model's own last hidden states, which the drafted token helps to read.

A head of one decoder layer (`tokenry.model.heads.fspad`, which has its equations) continues the
features f of the target model instead of its tokens. Behind the last accepted token it runs on the
features that it predicts itself, and its guesses form a tree: with q_n the product of the head's
probabilities down to node n,

    at every depth the `breadth` likeliest nodes (by q) get their `breadth` likeliest tokens,
    and the `nodes` likeliest nodes of all are verified in one pass.

That pass gives the true features of the accepted tokens, which replace the predicted ones.

Source: Boosting Lossless Speculative Decoding via Feature Sampling and Partial Alignment
Distillation (arXiv 2408.15562), whose head's formulas are reconstructed; the tree is that of
EAGLE-2: Faster Inference of Language Models with Dynamic Draft Trees (arXiv 2406.16858).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn.functional import linear

from tokenry.core.checks import within
from tokenry.decode.speculation.latency import latency_curve
from tokenry.decode.speculation.mtp import draft_generator
from tokenry.decode.speculation.speculate import drafter
from tokenry.decode.speculation.tree import TokenTree, best_size
from tokenry.decode.speculation.verify import Accepted
from tokenry.model.decoding import DecodingState
from tokenry.model.heads.fspad import FeatureHead, KeyValues, features_of
from tokenry.model.output import last_hidden


@drafter("fspad", paper=91)
@dataclass(frozen=True)
class FSPAD:
    """Drafts by a small head on the model's features; needs a trained one (`train_feature_head`).

    The prompt is read a second time, for its features.

    Args:
        head: None makes an untrained one, whose drafts are as good as none.
        nodes: drafts verified in a pass, the paper's 60; None takes as many as pay by the machine's
            measured time of a pass, which on a processor is a handful.
        depth: of the tree, 6 in the paper.
        breadth: children of a node and paths continued per depth, 10 in the paper; 1 drafts a
            chain.
        temperature: above 0 drafts a chain whose tokens are drawn, and the tree carries the
            distributions that they were drawn from, which pays when the text is sampled too.
        seed: of these draws.
    """

    head: FeatureHead | None = field(default=None, compare=False)
    nodes: int | None = 60
    depth: int = 6
    breadth: int = 10
    temperature: float = 0.0
    seed: int = 0
    reads_prompt: bool = field(default=False, init=False)
    generator: torch.Generator = field(init=False, repr=False, compare=False)
    untrained: WeakKeyDictionary[Any, FeatureHead] = field(
        default_factory=WeakKeyDictionary, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        within(self, "[1, inf)", "depth", "breadth", integer=True)
        within(self, "[1, inf)", "nodes", integer=True, optional=True)
        within(self, "[0, inf)", "temperature")
        within(self, "[0, inf)", "seed", integer=True)
        object.__setattr__(self, "generator", draft_generator(self.seed))

    def begin(self, model: Any, prompt: Sequence[int]) -> FeatureDraft:
        head = self.head
        if head is None:
            if model not in self.untrained:
                self.untrained[model] = FeatureHead.of(model)
            head = self.untrained[model]
        head.check(model)
        latency = latency_curve(model) if self.nodes is None else {}
        return FeatureDraft(self, head, model, prompt, latency)


class FeatureDraft:
    """One text: its features so far, in the head's memory."""

    @torch.inference_mode()
    def __init__(
        self,
        settings: FSPAD,
        head: FeatureHead,
        model: Any,
        prompt: Sequence[int],
        latency: dict[int, float],
    ):
        self.settings, self.head, self.latency = settings, head, latency
        self.embed = model.get_input_embeddings()
        self.output = head.output_head(model)
        self.device = self.embed.weight.device
        self.memory: KeyValues | None = None  # of pairs (feature, token after it) of the text
        ids = torch.tensor([list(prompt)], device=self.device)
        # new: features that the head has not read yet [n, d]; follow: the tokens after them, but
        # for the last one's, which `draft` is told
        self.new = features_of(model, ids, torch.ones_like(ids))[0]
        self.follow = list(prompt[1:])
        self.seen: Tensor | None = None  # features of the tree in hand, [M, d]

    @torch.inference_mode()
    def draft(self, last_token: int, budget: int) -> TokenTree:
        feature, logits = self._read_text([*self.follow, last_token])
        self.new, self.follow = self.new[:0], []
        depth = min(self.settings.depth, budget)
        if self.settings.temperature:
            return self._sampled_chain(last_token, depth, feature, logits)
        return self._tree(last_token, depth, feature, logits)

    @torch.inference_mode()
    def read(self, state: DecodingState, tree: TokenTree) -> Tensor:
        """The pass over the tree, which also gives the features."""
        with last_hidden(state.model) as caught:
            logits = state.tree(
                torch.tensor(tree.tokens, device=self.device),
                torch.tensor(tree.parents, device=self.device),
            )
        self.seen = caught[-1][0]
        return logits

    def update(self, tree: TokenTree, logits: Tensor, accepted: Accepted) -> None:
        if self.seen is not None:
            self.new = self.seen[accepted.path]
            self.follow = accepted.tokens[: len(accepted.path) - 1]
            self.seen = None

    def _read_text(self, follow: list[int]) -> tuple[Tensor, Tensor]:
        """Take the new pairs into the memory; predicted feature and logits at the end, [1, .]."""
        start = 0 if self.memory is None else self.memory[0].shape[2]
        positions = torch.arange(start, start + len(follow), device=self.device)
        known = torch.arange(start + len(follow), device=self.device)
        feature, answer = self._step(self.new, follow, positions, known <= positions[:, None])
        return feature[-1:], self._logits(answer[-1:])

    def _step(
        self, features: Tensor, tokens: Sequence[int], positions: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Run the head on pairs [n] and hold their keys; predicted features and answers [n, d]."""
        embedded = self.embed(torch.tensor(tokens, device=self.device))
        feature, answer, self.memory = self.head(
            features[None], embedded[None], self.memory, positions[None], mask[None, None]
        )
        return feature[0], answer[0]

    def _logits(self, answer: Tensor) -> Tensor:
        weight, bias = self.output.weight, self.output.bias
        return self.output.shaped(linear(answer.to(weight.dtype), weight, bias).float())

    def _tree(self, last: int, depth: int, feature: Tensor, logits: Tensor) -> TokenTree:
        settings, memory = self.settings, self.memory
        assert memory is not None
        start = memory[0].shape[2]  # pairs of the text
        tokens, parents, worth = [last], [-1], [1.0]
        frontier = [0]
        stored: list[int] = []  # nodes whose pairs stand behind the text's in the memory
        lines: dict[int, list[int]] = {0: []}  # of nodes held: the way down to them
        for level in range(1, depth + 1):
            likely, ids = logits.softmax(-1).topk(min(settings.breadth, logits.shape[-1]))
            breadth, first = likely.shape[1], len(tokens)
            q = likely * torch.tensor([[worth[node]] for node in frontier], device=self.device)
            tokens += self.head.to_ids(ids.flatten().tolist())
            parents += [node for node in frontier for _ in range(breadth)]
            worth += q.flatten().tolist()
            if level == depth:
                break
            best = q.flatten().sort(descending=True, stable=True).indices[: settings.breadth]
            frontier = [first + at for at in best.tolist()]
            stored += frontier
            for node in frontier:
                lines[node] = [*lines[parents[node]], node]
            inside = torch.tensor([[h in lines[node] for h in stored] for node in frontier])
            seen = torch.ones(len(frontier), start, dtype=torch.bool)
            feature, answer = self._step(
                feature[best // breadth],
                [tokens[node] for node in frontier],
                torch.full((len(frontier),), start + level - 1, device=self.device),
                torch.cat([seen, inside], dim=1).to(self.device),
            )
            logits = self._logits(answer)
        self.memory = memory  # the guesses' pairs are forgotten
        order = sorted(range(1, len(tokens)), key=lambda node: -worth[node])
        size = settings.nodes
        if size is None:
            size = best_size([worth[node] for node in order], self.latency)
        kept = [0, *sorted(order[:size])]
        index_of = {node: at for at, node in enumerate(kept)}
        return TokenTree(
            tuple(tokens[node] for node in kept),
            tuple(-1 if node == 0 else index_of[parents[node]] for node in kept),
        )

    def _sampled_chain(self, last: int, depth: int, feature: Tensor, logits: Tensor) -> TokenTree:
        memory = self.memory
        assert memory is not None
        start, tokens = memory[0].shape[2], [last]
        size = self.embed.num_embeddings
        rows = [torch.zeros(size)]
        depth = min(depth, self.settings.nodes or depth)
        for level in range(1, depth + 1):
            probs = (logits[0] / self.settings.temperature).softmax(-1).cpu()
            drawn = int(torch.multinomial(probs, 1, generator=self.settings.generator))
            rows.append(self.head.spread(probs, size))
            tokens += self.head.to_ids([drawn])
            if level < depth:
                position = torch.tensor([start + level - 1], device=self.device)
                mask = torch.ones(1, start + level, dtype=torch.bool, device=self.device)
                feature, answer = self._step(feature, tokens[-1:], position, mask)
                logits = self._logits(answer)
        self.memory = memory
        parents = tuple(range(-1, len(tokens) - 1))
        return TokenTree(tuple(tokens), parents, proposals=torch.stack(rows))
