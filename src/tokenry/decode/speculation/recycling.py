"""Token Recycling: draft from the tokens that were likely the last time, accepted or not.

A table M ∈ Z^{V×k} keeps, for every token v of the vocabulary, the k most probable successors that
the model gave after v when v was last read, anywhere, also in rejected branches. A template of rank
paths is unrolled from the last token x:

    tok[root] = x,    tok[n] = M[tok[parent(n)], rank(n)],

verified in one pass, and every node writes its row: M[tok[n]] ← top-k of logits[n]. Of nodes with
the same token the accepted one wins, then the last. The table lives on across prompts.

Source: Turning Trash into Treasure: Accelerating Inference of Large Language Models with Token
Recycling (arXiv 2408.08696). Ours: nodes below a token that was never read are not drafted. The
table keeps the successors' probabilities too, and by default the tree is not the template but grows
where it pays on this machine (see `tree_expansion`).
"""

import itertools
from bisect import bisect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from tokenry.core.checks import in_range, one_of, within
from tokenry.core.errors import InputError, VocabularyError
from tokenry.core.files import replacing
from tokenry.decode.speculation.latency import latency_curve
from tokenry.decode.speculation.speculate import drafter
from tokenry.decode.speculation.tree import TokenTree, TreeTemplate
from tokenry.decode.speculation.tree_expansion import Calibration, Guess, expand_tree
from tokenry.decode.speculation.verify import Accepted

RANGES = (0.1, 0.3, 0.6, 0.9)
OBSERVED = 0.5  # what a successor that was only seen in the prompt's text counts as


class AdjacencyMatrix:
    """Likely successors of every token.

    Attributes:
        ids: [V, k] int32.
        probs: [V, k], their probabilities when they were last predicted, 0 where nothing is known.
            Both are zero at first.
    """

    def __init__(self, vocab_size: int, k: int = 8):
        in_range("k", k, f"[1, {vocab_size}]", integer=True)
        self.ids = torch.zeros(vocab_size, k, dtype=torch.int32)
        self.probs = torch.zeros(vocab_size, k)

    def successors(self, tokens: Tensor) -> Tensor:
        """[n] -> [n, k] ids, the most probable first."""
        return self.ids[tokens].long()

    def known(self, token: int) -> list[int]:
        """Known successors of one token."""
        return [successor for successor, _ in self.row(token)]

    def row(self, token: int) -> list[tuple[int, float]]:
        """Known successors of one token and their probabilities."""
        pairs = zip(self.ids[token].tolist(), self.probs[token].tolist(), strict=True)
        return [pair for pair in pairs if pair[1] > 0]

    def write(self, tokens: Sequence[int], ids: Tensor, probs: Tensor, accepted: Accepted) -> None:
        """Write the rows of a tree's tokens, [M, k] each: of repeated tokens the accepted one
        stays, then the last."""
        writer = {tokens[node]: node for node in (*range(len(tokens)), *accepted.path)}
        written, rows = torch.tensor(list(writer)), list(writer.values())
        self.ids[written] = ids[rows].to(torch.int32)
        self.probs[written] = probs[rows]

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

        with replacing(Path(path)) as temporary:
            save_file({"ids": self.ids, "probs": self.probs}, temporary)

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


@dataclass
class SuccessorMemory:
    """What a drafter has learned: the table, and how far its probabilities hold."""

    table: AdjacencyMatrix | None = None
    calibration: Calibration = field(default_factory=Calibration)


@drafter("recycling", paper=67)
@dataclass(frozen=True)
class TokenRecycling:
    """Drafts from recycled tokens; needs no second model and no training.

    Args:
        k: successors kept per token; the paper's is 8.
        nodes: how many to draft; None takes as many as pay on this machine, best first.
        template: the paper's way, these nodes of ranks, always.
        learn_prompt: "tokens" reads successors off the prompt's text, "logits" takes the model's
            predictions on it (costs the output layer on the whole prompt), "nothing" is the paper's
            code.
        memory: what it has learned so far; replace it to start cold.
    """

    k: int = 8
    nodes: int | None = None
    template: TreeTemplate | None = field(default=None, repr=False)
    learn_prompt: Literal["nothing", "tokens", "logits"] = "tokens"
    memory: SuccessorMemory = field(default_factory=SuccessorMemory, repr=False, compare=False)

    def __post_init__(self) -> None:
        within(self, "[1, inf)", "k", integer=True)
        within(self, "[0, inf)", "nodes", integer=True, optional=True)
        one_of("TokenRecycling.learn_prompt", self.learn_prompt, ("nothing", "tokens", "logits"))

    @property
    def reads_prompt(self) -> bool:
        return self.learn_prompt == "logits"

    @property
    def table(self) -> AdjacencyMatrix:
        if self.memory.table is None:
            raise InputError("the drafter has no table yet: call begin(model, prompt) first")
        return self.memory.table

    def begin(self, model: Any, prompt: Sequence[int]) -> "RecyclingDraft":
        self.memory.table = table_for(model, self.memory.table, self.k)
        if self.learn_prompt == "tokens":
            self.table.observe(prompt)
        sized = self.nodes is None and self.template is None
        return RecyclingDraft(self, latency_curve(model) if sized else {})


class RecyclingDraft:
    """One text's drafts from the drafter's table."""

    def __init__(self, drafter: TokenRecycling, latency: Mapping[int, float]):
        self.drafter, self.latency = drafter, latency
        self.table, self.calibration = drafter.table, drafter.memory.calibration
        self.last = 0

    def draft(self, last_token: int, budget: int) -> TokenTree:
        if self.drafter.template is not None:
            return self.drafter.template.unroll(last_token, self.table.known, budget)
        self.last = last_token
        nodes = self.drafter.nodes
        return expand_tree(
            last_token, self, self.calibration, budget, nodes=nodes, latency=self.latency
        )

    def root(self) -> int:
        return self.last

    def guesses(self, cursor: int) -> list[Guess]:
        """A cursor is the token itself."""
        return [Guess(t, p, bisect(RANGES, p), cursor) for t, p in self.table.row(cursor)]

    def after(self, guess: Guess) -> int:
        return guess.token

    def update(self, tree: TokenTree, logits: Tensor, accepted: Accepted) -> None:
        probs, ids = likely(logits, self.drafter.k)
        self.table.write(tree.tokens, ids, probs, accepted)
        if tree.notes:
            self.calibration.learn(tree, accepted)


def table_for(model: Any, table: AdjacencyMatrix | None, k: int) -> AdjacencyMatrix:
    """The table, made if there is none; VocabularyError if it is another model's."""
    size = model.config.get_text_config().vocab_size
    table = AdjacencyMatrix(size, min(k, size)) if table is None else table
    if len(table.ids) != size:
        raise VocabularyError(
            f"the drafter's table is for {len(table.ids)} tokens, the model has {size}: "
            "give each model a drafter of its own"
        )
    return table


def likely(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k most probable tokens' probabilities and ids, [n, V] -> [n, k] on the CPU."""
    probs, ids = top(logits.float().softmax(-1), min(k, logits.shape[1]))
    return probs.cpu(), ids.cpu()


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
