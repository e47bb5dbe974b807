"""TrieCache: what followed every token, as counted branches of a few tokens.

For each token a trie of the branches seen after it; a node's count is how often its branch was
walked. A text of n tokens writes n branches of at most `branch_length` tokens. They are written
token by token, by extending the branches that are still open, so that a text can be read back while
it is being generated and every token costs the same.

    cache = TrieCache(branch_length=12)
    cache.put(ids)                   # a whole text
    stream = cache.stream()          # a text that is still growing
    stream.extend([5, 8])
    cache.find([5])                  # the node behind which the continuations of 5 hang

Pruning halves the counts above 1 and drops the nodes that have none to halve, so branches that are
seen again and again stay. It comes by itself when trees grow beyond `tree_nodes`, or all trees
together beyond `max_nodes`.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from tokenry.core.checks import in_range
from tokenry.core.errors import InputError
from tokenry.core.files import replacing

PRUNE_AFTER = 1024  # changed trees


class Node:
    """A token in a trie: how often it was reached, and what followed."""

    __slots__ = ("children", "count")

    def __init__(self, count: float = 0.0):
        self.count = count
        self.children: dict[int, Node] = {}


class Tree(Node):
    """What followed one token.

    Attributes:
        size: its nodes.
    """

    __slots__ = ("size",)

    def __init__(self, count: float = 0.0):
        super().__init__(count)
        self.size = 0


class TrieCache:
    """Counted branches after every token.

    Args:
        branch_length: tokens kept after each token.
        tree_nodes: how large one token's tree may be when it is pruned; None for no limit.
        max_nodes: the same for all trees together; a node takes some 200 bytes.
        vocab_size: of the model whose tokens these are, None until that is known.
    """

    def __init__(
        self,
        branch_length: int = 12,
        tree_nodes: int | None = 512,
        max_nodes: int | None = 1 << 20,
        vocab_size: int | None = None,
    ):
        in_range("branch_length", branch_length, "[1, inf)", integer=True)
        for name, limit in (("tree_nodes", tree_nodes), ("max_nodes", max_nodes)):
            in_range(name, limit, "[1, inf)", integer=True, optional=True)
        self.branch_length, self.vocab_size = branch_length, vocab_size
        self.tree_nodes, self.max_nodes = tree_nodes, max_nodes
        self.trees: dict[int, Tree] = {}
        self.nodes = 0
        self.changed: set[int] = set()

    def put(self, text: Iterable[int]) -> None:
        """Write the branches of a whole text."""
        self.stream().extend(text)

    def stream(self) -> Stream:
        """To write a text while it grows."""
        return Stream(self)

    def find(self, tokens: Sequence[int]) -> Node | None:
        """The node that these tokens lead to, from the first one's tree; None if they were never
        seen in this order."""
        node: Node | None = self.trees.get(tokens[0]) if tokens else None
        for token in tokens[1:]:
            if node is None:
                break
            node = node.children.get(token)
        return node

    def prune(self, tokens: Iterable[int] | None = None) -> None:
        """Halve the counts above 1 and drop other nodes, in these tokens' trees or in all."""
        for token in list(self.trees if tokens is None else tokens):
            tree = self.trees.get(token)
            if tree is not None:
                tree.size = halve(tree)
                if not tree.size:
                    del self.trees[token]
        # counted anew: open streams may have gone on below nodes that were dropped
        self.nodes = sum(tree.size for tree in self.trees.values())

    def tidy(self) -> None:
        """Prune what has grown too large, if it is time to look."""
        if len(self.changed) >= PRUNE_AFTER:
            limit = self.tree_nodes
            known = [token for token in self.changed if token in self.trees]
            self.prune([t for t in known if limit is not None and self.trees[t].size > limit])
            self.changed = set()
        if self.max_nodes is not None and self.nodes > self.max_nodes:
            while self.nodes > self.max_nodes // 2:  # not to be back here soon
                self.prune()

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, whole or not at all."""
        from safetensors.torch import save_file

        tokens: list[int] = []
        depths: list[int] = []
        counts: list[float] = []
        waiting: list[tuple[int, int, Node]]
        waiting = [(t, 0, tree) for t, tree in reversed(self.trees.items())]
        while waiting:  # children come right after their parent, one level deeper
            token, depth, node = waiting.pop()
            tokens.append(token)
            depths.append(depth)
            counts.append(node.count)
            waiting += [(t, depth + 1, child) for t, child in reversed(node.children.items())]
        settings = {
            "branch_length": self.branch_length,
            "tree_nodes": self.tree_nodes,
            "max_nodes": self.max_nodes,
            "vocab_size": self.vocab_size,
        }
        arrays = {
            "tokens": torch.tensor(tokens, dtype=torch.int32),
            "depths": torch.tensor(depths, dtype=torch.int32),
            "counts": torch.tensor(counts, dtype=torch.float32),
        }
        with replacing(Path(path)) as temporary:
            save_file(arrays, temporary, metadata={"trie": json.dumps(settings)})

    @classmethod
    def load(cls, path: str | Path) -> TrieCache:
        """Read what `save` wrote.

        Raises:
            InputError: a file that is none of these.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="pt") as file:
                cache = cls(**json.loads(file.metadata()["trie"]))
                arrays = [file.get_tensor(name).tolist() for name in ("tokens", "depths", "counts")]
            above: list[Node] = []
            for token, depth, count in zip(*arrays, strict=True):
                if not 0 <= depth <= len(above) or not 0 <= token < (cache.vocab_size or 1 << 31):
                    raise ValueError("the nodes do not form tries")
                del above[depth:]
                if depth == 0:
                    above.append(cache.trees.setdefault(token, Tree(count)))
                else:
                    node = above[-1].children[token] = Node(count)
                    above.append(node)
                    tree = above[0]
                    assert isinstance(tree, Tree)
                    tree.size += 1
                    cache.nodes += 1
        except FileNotFoundError:
            raise InputError(f"there is no file {path}") from None
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path} is not a file of TrieCache.save: {error}") from error
        return cache


class Stream:
    """Writes one text: every new token extends the branches that are still open."""

    def __init__(self, cache: TrieCache):
        self.cache = cache
        self.open: deque[tuple[Tree, Node]] = deque(maxlen=cache.branch_length)

    def extend(self, tokens: Iterable[int]) -> None:
        cache, branches = self.cache, self.open
        for token in tokens:
            for at, (tree, node) in enumerate(branches):
                child = node.children.get(token)
                if child is None:
                    child = node.children[token] = Node()
                    tree.size += 1
                    cache.nodes += 1
                child.count += 1
                branches[at] = tree, child
            tree = cache.trees.get(token)
            if tree is None:
                tree = cache.trees[token] = Tree()
            branches.append((tree, tree))
            cache.changed.add(token)
        cache.tidy()


def halve(node: Node) -> int:
    """Halve the counts below `node`, dropping those up to 1; the number of nodes that are left."""
    left, waiting = 0, [node]
    while waiting:
        above = waiting.pop()
        above.children = {t: child for t, child in above.children.items() if child.count > 1}
        for child in above.children.values():
            child.count /= 2
            left += 1
            waiting.append(child)
    return left
