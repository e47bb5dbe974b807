"""Token Recycling: draft from the tokens that were likely the last time, accepted or not.

A table M ∈ Z^{V×k} keeps, for every token v of the vocabulary, the k most probable successors that
the model gave after v when v was last read, anywhere, also in rejected branches. A template of rank
paths is unrolled from the last token x:

    tok[root] = x,    tok[n] = M[tok[parent(n)], rank(n)],

verified in one pass, and every node writes its row: M[tok[n]] ← top-k of logits[n]. Of nodes with
the same token the accepted one wins, then the last. The table lives on across prompts.

Source: Turning Trash into Treasure: Accelerating Inference of Large Language Models with Token
Recycling (arXiv 2408.08696). Ours: nodes below a token that was never read are not drafted. The
table keeps the successors' probabilities too, and the tree is cut to the nodes that pay on this
machine (see `tree`): a guess that had probability p is expected to be accepted with rate
p · (h + 3) / (s + 4), where of the guesses in its range of p so far h were accepted and s is the
sum of their p. (Counted on SmolLM2, the rate follows p; rank and depth add little to it.)
"""

import itertools
import os
from bisect import bisect
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from tokenry.core.errors import InputError, VocabularyError
from tokenry.core.registry import drafter
from tokenry.decode.speculation.speculate import latency_curve
from tokenry.decode.speculation.tree import TokenTree, TreeTemplate, best_size
from tokenry.decode.speculation.verify import Accepted

RANGES = (0.1, 0.3, 0.6, 0.9)
OBSERVED = 0.5  # what a successor that was only seen in the prompt's text counts as


class AdjacencyMatrix:
    """Likely successors of every token.

    ids: [V, k] int32. probs: [V, k], their probabilities when they were last predicted, 0 where
    nothing is known. Both are zero at first.
    """

    def __init__(self, vocab_size: int, k: int = 8):
        if not 1 <= k <= vocab_size:
            raise InputError(f"k must be between 1 and the vocabulary's {vocab_size}, got {k}")
        self.ids = torch.zeros(vocab_size, k, dtype=torch.int32)
        self.probs = torch.zeros(vocab_size, k)

    def successors(self, tokens: Tensor) -> Tensor:
        """[n] -> [n, k] ids, the most probable first."""
        return self.ids[tokens].long()

    def row(self, token: int) -> list[tuple[int, float]]:
        """Known successors of one token and their probabilities."""
        pairs = zip(self.ids[token].tolist(), self.probs[token].tolist(), strict=True)
        return [pair for pair in pairs if pair[1] > 0]

    def update(self, tokens: Sequence[int], logits: Tensor) -> None:
        """Write each token's row from what the model predicts after it, [n, V]. Of repeated tokens
        the last one stays."""
        last = {token: node for node, token in enumerate(tokens)}
        rows = logits if len(last) == len(tokens) else logits[list(last.values())]
        rows = rows.float()
        values, ids = top(rows, self.ids.shape[1])
        place = torch.tensor(list(last))
        self.ids[place] = ids.to("cpu", torch.int32)
        self.probs[place] = (values - rows.logsumexp(-1, keepdim=True)).exp().cpu()

    def observe(self, text: Sequence[int]) -> None:
        """Move each token's actual successor to the front of its row, in the text's order."""
        rows: dict[int, list[tuple[int, float]]] = {}
        for token, after in itertools.pairwise(text):
            known = rows[token] if token in rows else self.row(token)
            others = [pair for pair in known if pair[0] != after]
            mine = max([OBSERVED, *(p for other, p in known if other == after)])
            rows[token] = [(after, mine), *others][: self.ids.shape[1]]
        for token, row in rows.items():
            ids, probs = zip(*row, strict=True)
            self.ids[token, : len(row)] = torch.tensor(ids, dtype=torch.int32)
            self.probs[token, : len(row)] = torch.tensor(probs)

    def save(self, path: str | Path) -> None:
        """Write the table as safetensors; nothing is left at `path` when that fails."""
        from safetensors.torch import save_file

        part = Path(f"{path}.part")
        try:
            save_file({"ids": self.ids, "probs": self.probs}, part)
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | Path) -> "AdjacencyMatrix":
        from safetensors.torch import load_file

        try:
            stored = load_file(path)
            ids, probs = stored["ids"], stored["probs"]
            whole = ids.ndim == 2 and ids.shape == probs.shape and len(ids)
            if not whole or not 0 <= int(ids.min()) <= int(ids.max()) < len(ids):
                raise ValueError("the table does not fit itself")
        except Exception as error:
            raise InputError(f"{path} holds no table of successors: {error}") from error
        table = cls(*ids.shape)
        table.ids, table.probs = ids.to(torch.int32), probs.float()
        return table


class Memory:
    """What a drafter has learned: the table, how far its probabilities hold, the machine."""

    def __init__(self, table: AdjacencyMatrix | None = None):
        self.table = table
        self.accepted, self.expected = [3.0] * (len(RANGES) + 1), [4.0] * (len(RANGES) + 1)
        self.latency: dict[int, float] = {}
        self.drafted: tuple[TokenTree, list[float]] | None = (
            None  # the last tree and its guesses' p
        )

    def rate(self, prob: float) -> float:
        """How often a guess of this probability is accepted once its parent is."""
        kind = bisect(RANGES, prob)
        return min(0.99, prob * self.accepted[kind] / self.expected[kind])


@drafter("recycling", paper=67)
@dataclass(frozen=True)
class TokenRecycling:
    """Drafts from recycled tokens; needs no second model and no training.

    k: successors kept per token; the paper's is 8. template: the nodes to choose from. nodes: how
    many to draft; None chooses by the measured latencies, 80 is the paper's tree. learn_prompt:
    "tokens" reads successors off the prompt's text, "logits" takes the model's predictions on it
    (costs the output layer on the whole prompt), "nothing" is the paper's code. memory: what it has
    learned so far; replace it to start cold.
    """

    k: int = 8
    template: TreeTemplate = field(default_factory=TreeTemplate.default, repr=False)
    nodes: int | None = None
    learn_prompt: Literal["nothing", "tokens", "logits"] = "tokens"
    memory: Memory = field(default_factory=Memory, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.k < 1 or (self.nodes is not None and self.nodes < 0):
            raise InputError(f"k must be >= 1 and nodes >= 0, got {self.k} and {self.nodes}")

    @property
    def reads_prompt(self) -> bool:
        return self.learn_prompt == "logits"

    @property
    def table(self) -> AdjacencyMatrix:
        if self.memory.table is None:
            raise InputError("the drafter has no table yet: call begin(model, prompt) first")
        return self.memory.table

    def begin(self, model: Any, prompt: Sequence[int]) -> None:
        size = model.config.get_text_config().vocab_size
        if self.memory.table is None:
            self.memory.table = AdjacencyMatrix(size, min(self.k, size))
        if len(self.table.ids) != size:
            raise VocabularyError(
                f"the drafter's table is for {len(self.table.ids)} tokens, the model has {size}: "
                "give each model a drafter of its own"
            )
        if self.nodes is None:
            self.memory.latency = latency_curve(model)
        if self.learn_prompt == "tokens":
            self.table.observe(prompt)

    def draft(self, last_token: int, room: int) -> TokenTree:
        """The template's most probable nodes, unrolled from `last_token`."""
        template, memory = self.template, self.memory
        rows: dict[int, list[tuple[int, float]]] = {}
        found = {0: (last_token, 0.0, 1.0)}  # node -> token, its p, how often its path is accepted
        for node in range(1, len(template) + 1):
            parent = found.get(template.parents[node])
            if parent is None or template.depths[node] > room:
                continue
            if parent[0] not in rows:
                rows[parent[0]] = self.table.row(parent[0])
            if template.ranks[node] < len(rows[parent[0]]):
                token, prob = rows[parent[0]][template.ranks[node]]
                found[node] = (token, prob, parent[2] * memory.rate(prob))
        order = sorted(list(found)[1:], key=lambda node: -found[node][2])
        if self.nodes is None:
            size = best_size([found[node][2] for node in order], memory.latency)
        else:
            size = self.nodes
        kept = [0, *sorted(order[:size])]
        place = {-1: -1} | {node: at for at, node in enumerate(kept)}
        tree = TokenTree(
            tuple(found[node][0] for node in kept),
            tuple(place[template.parents[node]] for node in kept),
        )
        memory.drafted = tree, [found[node][1] for node in kept]
        return tree

    def update(self, tree: TokenTree, logits: Tensor, accepted: Accepted) -> None:
        writer = {tree.tokens[node]: node for node in (*range(len(tree)), *accepted.path)}
        self.table.update(list(writer), logits[list(writer.values())])
        if self.memory.drafted and self.memory.drafted[0] is tree:
            self._count(tree, self.memory.drafted[1], accepted)

    def _count(self, tree: TokenTree, probs: list[float], accepted: Accepted) -> None:
        """Count the guesses that were put to the test: those below accepted nodes."""
        truth = dict(zip(accepted.path, accepted.tokens, strict=False))
        for node in range(1, len(tree)):
            if (parent := tree.parents[node]) in truth:
                kind = bisect(RANGES, probs[node])
                self.memory.accepted[kind] += tree.tokens[node] == truth[parent]
                self.memory.expected[kind] += probs[node]


def top(logits: Tensor, k: int, width: int = 128) -> tuple[Tensor, Tensor]:
    """topk over a large vocabulary, [n, V] -> values and ids [n, k]: the k largest lie in the k
    blocks of columns with the largest maxima, and maxima are much cheaper than a sort."""
    blocks = logits.shape[1] // width
    if blocks <= k:
        values, ids = logits.topk(k)
        return values, ids
    whole = blocks * width
    best = logits[:, :whole].unflatten(1, (blocks, width)).amax(-1).topk(k).indices  # [n, k]
    inside = torch.arange(width, device=logits.device)
    columns = (best[..., None] * width + inside).flatten(1)  # [n, k · width]
    rest = torch.arange(whole, logits.shape[1], device=logits.device).expand(len(logits), -1)
    columns = torch.cat([columns, rest], dim=1)
    values, where = logits.gather(1, columns).topk(k)
    return values, columns.gather(1, where)
