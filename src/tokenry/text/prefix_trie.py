"""PrefixTrie: statistics of every prefix of a set of sequences, one pass to write, one to read.

Each node is a prefix; it keeps how many sequences (with multiplicity) begin with it and the sum of
their values, so that `mean` is the average value of all sequences that share the prefix. Inserting
N sequences costs O(total tokens), and so does reading them back.

    trie = PrefixTrie.of([[1, 2, 3], [1, 2, 4], [1, 5]], values=[1, 0, 0])
    trie.mean([1, 2])                  # 0.5
    trie.means([1, 2, 3])              # [0.333..., 0.5, 1.0]
    trie.first_divergent([1, 2, 9])    # 2: no sequence goes on like this

The items are token ids, or anything else that can be a dictionary's key, such as characters.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field

from tokenry.core.errors import InputError

Items = Sequence[Hashable]


@dataclass
class PrefixTrie:
    """Nodes are numbered in the order in which they were first met; 0 is the empty prefix.

    children: per node, item -> child. count: per node, weight of the sequences that pass through.
    total: per node, sum of count * value over them. ended: per node, weight that ends there.
    """

    children: list[dict[Hashable, int]] = field(default_factory=lambda: [{}])
    count: list[float] = field(default_factory=lambda: [0.0])
    total: list[float] = field(default_factory=lambda: [0.0])
    ended: list[float] = field(default_factory=lambda: [0.0])

    @classmethod
    def of(cls, sequences: Iterable[Items], values: Iterable[float] | None = None) -> PrefixTrie:
        """A trie of the sequences; values: one for each of them (default 0)."""
        trie = cls()
        if values is None:
            for sequence in sequences:
                trie.insert(sequence)
        else:
            for sequence, value in zip(sequences, values, strict=True):
                trie.insert(sequence, value)
        return trie

    def __len__(self) -> int:
        """How many different prefixes there are, the empty one included."""
        return len(self.count)

    def insert(self, sequence: Items, value: float = 0.0, count: float = 1.0) -> list[int]:
        """Add a sequence `count` times; the nodes of its prefixes, longest last.

        Duplicates count: two equal sequences weigh twice. Raises InputError unless count > 0.
        """
        if not count > 0:
            raise InputError(f"a sequence must be inserted with a positive count, got {count}")
        nodes = [0]
        for item in sequence:
            below = self.children[nodes[-1]]
            if item not in below:
                below[item] = len(self.count)
                self.children.append({})
                for statistic in (self.count, self.total, self.ended):
                    statistic.append(0.0)
            nodes.append(below[item])
        for node in nodes:
            self.count[node] += count
            self.total[node] += count * value
        self.ended[nodes[-1]] += count
        return nodes[1:]

    def path(self, sequence: Items) -> list[int]:
        """Nodes of the non-empty prefixes of `sequence` that are in the trie, shortest first."""
        node, nodes = 0, []
        for item in sequence:
            child = self.children[node].get(item)
            if child is None:
                break
            nodes.append(child)
            node = child
        return nodes

    def find(self, prefix: Items) -> int | None:
        """The node of a prefix, or None when no sequence begins with it."""
        nodes = self.path(prefix)
        return None if len(nodes) < len(prefix) else nodes[-1] if nodes else 0

    def mean(self, prefix: Items = ()) -> float:
        """Average value of the sequences that begin with `prefix`.

        Raises InputError when there are none.
        """
        node = self.find(prefix)
        if node is None or not self.count[node]:  # the empty prefix of an empty trie
            raise InputError(f"no sequence in the trie begins with {list(prefix)}")
        return self.total[node] / self.count[node]

    def means(self, sequence: Items) -> list[float]:
        """`mean` of every non-empty prefix of an inserted sequence, one for each item."""
        nodes = self.path(sequence)
        if len(nodes) < len(sequence):
            raise InputError(
                f"the trie has no sequence that goes on after {list(sequence[: len(nodes)])} with "
                f"{sequence[len(nodes)]!r}: insert a sequence before reading its statistics"
            )
        return [self.total[node] / self.count[node] for node in nodes]

    def first_divergent(self, sequence: Items) -> int:
        """Index of the first item at which no sequence of the trie goes on like this one.

        len(sequence) when the whole of it is a prefix of (or equal to) one of them.
        """
        return len(self.path(sequence))

    def __contains__(self, sequence: Items) -> bool:
        """Whether exactly this sequence was inserted, not only a longer one."""
        node = self.find(sequence)
        return node is not None and self.ended[node] > 0
