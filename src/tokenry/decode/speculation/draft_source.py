"""Where a draft tree's distributions come from: a small model, a function, or a learned table.

A source reads one text. `root` takes the tokens that were added to it and gives the logits of the
next one; `below` goes on from nodes of a tree, many in one call; `settle` says which of these nodes
have become part of the text. A model keeps its own KV cache meanwhile: the nodes of all levels lie
behind the text, each seeing its ancestors only, and the path that was taken is moved to the front.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from tokenry.core.errors import InputError, VocabularyError
from tokenry.decode.speculation.recycling import AdjacencyMatrix, likely
from tokenry.decode.speculation.tree import TokenTree
from tokenry.decode.speculation.verify import Accepted
from tokenry.model import compat
from tokenry.model.decoding import DecodingState

DraftFunction = Callable[[Tensor], Tensor]
"""Texts [n, T] -> logits of their next tokens, [n, V]."""

ENDLESS = 1 << 30


class Drafted(Protocol):
    """What a source has to know of a tree that is growing: node 0 is the root."""

    tokens: list[int]
    parents: list[int]
    depths: list[int]


class Source(Protocol):
    """The draft, for one text.

    Attributes:
        window: tokens that it can read.
    """

    window: int

    def root(self, tokens: list[int]) -> Tensor:
        """Logits [V] after the text, of which `tokens` are new."""
        ...

    def below(self, tree: Drafted, nodes: list[int]) -> Tensor:
        """Logits [n, V] after nodes of one depth, whose parents were read before."""
        ...

    def settle(self, path: list[int]) -> None:
        """These nodes, from the root's child down, have become part of the text, the other ones
        that were read are void."""

    def learn(self, tree: TokenTree, logits: Tensor, accepted: Accepted) -> None: ...


def source_of(
    draft: Any, vocab_size: int, prompt: Sequence[int], table: AdjacencyMatrix | None
) -> Source:
    """The source for a draft model, a function, or (None) the table, with its vocabulary checked
    against the target's."""
    if draft is None:
        assert table is not None
        check_vocabulary("the drafter's table", len(table.ids), vocab_size)
        table.observe(prompt)
        return TableSource(table)
    if not hasattr(draft, "config"):
        return FunctionSource(draft, vocab_size)
    check_vocabulary("the draft model", draft.config.get_text_config().vocab_size, vocab_size)
    source = ModelSource(draft)
    if len(prompt) >= source.window:
        raise InputError(
            f"the prompt has {len(prompt)} tokens, the draft model reads {source.window}: "
            "shorten it, or draft with a model of a longer window"
        )
    return source


class ModelSource:
    """A causal model with a cache of its own: one pass for the new tokens, one for each level."""

    def __init__(self, model: Any):
        self.model = model
        self.window = compat.window(model) or ENDLESS
        self.state: DecodingState | None = None
        self.seen: dict[int, list[int]] = {}  # node -> columns behind the text that it sees
        self.depths: list[int] = []  # of the nodes read

    def root(self, tokens: list[int]) -> Tensor:
        ids = torch.tensor([tokens], device=next(self.model.parameters()).device)
        self.seen, self.depths = {0: []}, []
        if self.state is None:
            self.state = DecodingState.start(self.model, ids)
        else:
            self.state.append(ids)
        return self.state.logits[0]

    @torch.inference_mode()
    def below(self, tree: Drafted, nodes: list[int]) -> Tensor:
        assert self.state is not None
        prefix, device = self.state.length, self.state.attention.device
        start = len(self.depths)
        self.depths += [tree.depths[node] for node in nodes]
        allowed = torch.zeros(len(nodes), prefix + len(self.depths), dtype=torch.bool)
        allowed[:, :prefix] = True
        for row, node in enumerate(nodes):
            self.seen[node] = [*self.seen[tree.parents[node]], start + row]
            allowed[row, [prefix + column for column in self.seen[node]]] = True
        behind = prefix - 1 + torch.tensor(self.depths)
        positions = behind[start:]
        columns = torch.cat([torch.arange(prefix), behind])
        mask = compat.mask_argument(
            self.model,
            allowed[None].to(device),
            positions[None].to(device),
            columns[None].to(device),
        )
        output = self.model(
            input_ids=torch.tensor([[tree.tokens[node] for node in nodes]], device=device),
            attention_mask=mask,
            position_ids=positions[None].to(device),
            past_key_values=self.state.cache,
            use_cache=True,
        )
        return output.logits[0]

    @torch.inference_mode()
    def settle(self, path: list[int]) -> None:
        if self.state is None:
            return
        prefix = self.state.length
        columns = self.seen[path[-1]] if path else []
        index = torch.tensor([columns], dtype=torch.long, device=self.state.attention.device)
        compat.keep_columns(self.state.cache, prefix, index)
        more = self.state.attention.new_ones(1, len(columns))
        self.state.attention = torch.cat([self.state.attention, more], dim=1)
        self.seen, self.depths = {}, []

    def learn(self, tree: TokenTree, logits: Tensor, accepted: Accepted) -> None:
        pass


class FunctionSource:
    """A function of texts, which it sees whole."""

    window = ENDLESS

    def __init__(self, function: DraftFunction, vocab_size: int):
        self.function, self.vocab_size = function, vocab_size
        self.text: list[int] = []
        self.paths: dict[int, list[int]] = {}

    def root(self, tokens: list[int]) -> Tensor:
        self.text += tokens
        self.paths = {0: []}
        return self._logits([self.text])[0]

    def below(self, tree: Drafted, nodes: list[int]) -> Tensor:
        for node in nodes:
            self.paths[node] = [*self.paths[tree.parents[node]], tree.tokens[node]]
        return self._logits([[*self.text, *self.paths[node]] for node in nodes])

    def settle(self, path: list[int]) -> None:
        if path:
            self.text += self.paths[path[-1]]

    def learn(self, tree: TokenTree, logits: Tensor, accepted: Accepted) -> None:
        pass

    def _logits(self, texts: list[list[int]]) -> Tensor:
        logits = self.function(torch.tensor(texts))
        if logits.shape != (len(texts), self.vocab_size):
            raise VocabularyError(
                f"the draft function must give logits [{len(texts)}, {self.vocab_size}] for "
                f"{len(texts)} texts and the model's vocabulary, got {list(logits.shape)}"
            )
        return logits


class TableSource:
    """What followed each token when it was last read, learned from every pass of the target."""

    window = ENDLESS

    def __init__(self, table: AdjacencyMatrix):
        self.table = table

    def root(self, tokens: list[int]) -> Tensor:
        return self._logits(tokens[-1:])[0]

    def below(self, tree: Drafted, nodes: list[int]) -> Tensor:
        return self._logits([tree.tokens[node] for node in nodes])

    def settle(self, path: list[int]) -> None:
        pass

    def learn(self, tree: TokenTree, logits: Tensor, accepted: Accepted) -> None:
        probs, ids = likely(logits, self.table.ids.shape[1])
        self.table.write(tree.tokens, ids, probs, accepted)

    def _logits(self, tokens: list[int]) -> Tensor:
        rows = torch.tensor(tokens)
        probs = torch.zeros(len(tokens), len(self.table.ids))
        # unknown successors have token 0 and probability 0
        probs.scatter_reduce_(1, self.table.successors(rows), self.table.probs[rows], "amax")
        return probs.log()


def check_vocabulary(what: str, size: int, expected: int) -> None:
    if size != expected:
        raise VocabularyError(
            f"{what} has {size} tokens, the model {expected}: a draft must have the same "
            "vocabulary, token by token"
        )
