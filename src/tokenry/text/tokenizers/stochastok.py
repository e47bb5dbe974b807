"""StochasTok: splits tokens at random into two that spell the same, to show what tokens hold.

With bytes(v) the bytes of vocabulary entry v, the splits of v are

    S(v) = { (a, b) in V x V : bytes(a) bytes(b) = bytes(v), neither empty },

every cut, not only the one that BPE merged. A text of N tokens gets floor(p N) attempts; each
draws a place i uniformly in the current sequence and, if S of its token is not empty, puts a
uniformly drawn pair of S in its place. Parts can be split again. The vocabulary, the model and
inference stay as they are: only training text is expanded, before it is cut into blocks.

Source: "StochasTok: Improving Fine-Grained Subword Understanding in LLMs" (arXiv 2506.01687),
section 3. Ours: special and added tokens are neither split nor produced, and where several
entries have the same bytes the split uses the ordinary one with the lowest id.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from tokenry.core.checks import within
from tokenry.core.errors import InputError
from tokenry.text.tokenizers.base import Draws, WrappedTokenizer
from tokenry.text.tokenizers.base import tokenizer as registered
from tokenry.text.vocabulary import BYTE_FALLBACK, token_bytes

SplitTable = dict[int, list[tuple[int, int]]]


def build_split_table(tokenizer: Any) -> SplitTable:
    """S for every id that has a split. Time: the sum of the entries' lengths, by a map of bytes."""
    entries = token_bytes(tokenizer)
    added = set(tokenizer.added_tokens_decoder)
    usable = [v for v, spelled in enumerate(entries) if spelled and v not in added]
    # an ordinary entry is preferred to the byte fallback "<0x41>" that spells the same
    names = tokenizer.convert_ids_to_tokens(usable)
    fallback = {v for v, name in zip(usable, names, strict=True) if BYTE_FALLBACK.fullmatch(name)}
    by_bytes: dict[bytes, int] = {}
    for v in sorted(usable, key=lambda v: (v in fallback, v)):
        by_bytes.setdefault(entries[v], v)
    table = {}
    for v in usable:
        whole = entries[v]
        cuts = (
            (by_bytes.get(whole[:cut]), by_bytes.get(whole[cut:])) for cut in range(1, len(whole))
        )
        pairs = [(a, b) for a, b in cuts if a is not None and b is not None]
        if pairs:
            table[v] = pairs
    return table


def split_tokens(
    ids: Sequence[int],
    table: SplitTable,
    p: float,
    generator: torch.Generator | None = None,
    max_splits: int | None = None,
) -> tuple[list[int], list[int]]:
    """The expanded ids, and for each the index of the token in `ids` that it comes from.

    The tokens stand in slots in the order of their making, linked in the order of the text: a
    split keeps its slot for the left part and opens one for the right part. Slots and places in
    the text are in one-to-one correspondence at every attempt, so a uniform slot is a uniform
    place, and an attempt takes constant time where inserting into a list would take a time
    proportional to its length.
    """
    slots = list(ids)
    after = list(range(1, len(slots) + 1))
    origin = list(range(len(slots)))
    if not slots:
        return [], []
    after[-1] = -1
    attempts = int(p * len(slots) + 1e-9)  # 0.29 * 100 is 28.999...
    draws = torch.rand(attempts, 2, generator=generator, dtype=torch.float64).tolist()
    left = attempts if max_splits is None else max_splits
    for place, choice in draws:
        if left == 0:
            break
        slot = int(place * len(slots))
        pairs = table.get(slots[slot])
        if pairs is None:
            continue
        slots[slot], right = pairs[int(choice * len(pairs))]
        after.append(after[slot])
        after[slot] = len(slots)
        slots.append(right)
        origin.append(origin[slot])
        left -= 1
    expanded, sources, slot = [], [], 0
    while slot != -1:
        expanded.append(slots[slot])
        sources.append(origin[slot])
        slot = after[slot]
    return expanded, sources


@registered("stochastok", paper=181, examples=lambda: _examples())
@dataclass(frozen=True)
class StochasTok:
    """Stochastic splits for any fast tokenizer: `StochasTok(p=0.1).wrap(tokenizer)(texts)`.

    p: attempts per token, in [0, 100]; the paper's default is 0.1, so a text grows by at most a
        tenth. 100 leave hardly a token that could be split any further.
    max_splits: cap on the successful splits of one text, whole, in [0, inf); None for no cap.
    seed: of the wrapped tokenizer's own stream of draws, used when a call brings no generator;
        whole, in [0, 9e18].
    """

    p: float = 0.1
    max_splits: int | None = None
    seed: int = 0

    lossless: ClassVar[bool] = True
    random: ClassVar[bool] = True

    def __post_init__(self) -> None:
        within(self, "[0, 100]", "p")
        within(self, "[0, inf)", "max_splits", integer=True, optional=True)
        within(self, "[0, 9e18]", "seed", integer=True)

    def wrap(self, tokenizer: Any) -> "StochasticTokenizer":
        """`tokenizer` with this method's splits. VocabularyError if its bytes are unknown."""
        return StochasticTokenizer(tokenizer, self, build_split_table(tokenizer))


@dataclass
class StochasticTokenizer(WrappedTokenizer):
    """A tokenizer whose tokens are split at random."""

    tokenizer: Any
    method: StochasTok
    table: SplitTable = field(repr=False)
    generator: torch.Generator = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.generator = torch.Generator().manual_seed(self.method.seed)

    def expand(self, ids: Sequence[int], generator: Draws = None) -> list[int]:
        """`ids` with some tokens split. generator: None: this tokenizer's own stream."""
        return self.traced(ids, generator)[0]

    def traced(self, ids: Sequence[int], generator: Draws = None) -> tuple[list[int], list[int]]:
        """The expanded ids, and for each the index of the token in `ids` that it comes from."""
        if isinstance(generator, int):
            generator = torch.Generator().manual_seed(generator)
        stream = self.generator if generator is None else generator
        return split_tokens(ids, self.table, self.method.p, stream, self.method.max_splits)

    def collator(self, base: Callable[[list[dict]], Any]) -> "StochasTokCollator":
        """`base`, fed with expanded examples."""
        return StochasTokCollator(self, base)


@dataclass
class StochasTokCollator:
    """A data collator that expands every example before `base` pads and batches them.

    Lists and arrays as long as `input_ids` (labels, masks, weights) follow their tokens: both parts
    of a split token take its value as it is, labels take the parts' ids where they held the token's
    own id. Texts and mappings are of the whole example and stay.
    Expand on the fly this way, or once with `expand`, in both cases before the text is cut into
    blocks.
    """

    wrapped: StochasticTokenizer
    base: Callable[[list[dict]], Any]

    def __call__(self, features: list[dict]) -> Any:
        return self.base([self._expanded(dict(feature)) for feature in features])

    def _expanded(self, feature: dict) -> dict:
        ids = [int(v) for v in feature["input_ids"]]
        new, origin = self.wrapped.traced(ids)
        for name, values in feature.items():
            if name != "input_ids" and _per_token(values, len(ids)):
                values = values.tolist() if hasattr(values, "tolist") else values
                feature[name] = [values[source] for source in origin]
        if "labels" in feature:
            kept = feature["labels"]
            if not _per_token(kept, len(new)):
                raise InputError(f"labels must be as many as the {len(ids)} input_ids")
            # -100 marks what is not learned
            feature["labels"] = [
                token if label == ids[source] else label
                for token, label, source in zip(new, kept, origin, strict=True)
            ]
        return feature | {"input_ids": new}


def _per_token(values: Any, length: int) -> bool:
    """Whether a field holds one value for each of so many tokens."""
    whole = isinstance(values, str | bytes | Mapping) or not hasattr(values, "__len__")
    return not whole and len(values) == length


def _examples() -> list[StochasTok]:
    return [StochasTok(), StochasTok(p=2.0)]  # 2.0 changes short texts too
