"""ByteModel: the exact next-byte distribution of a model that writes tokens.

A text x is written by the model if its tokens are. Only the tokenizer's own encodings count; the
probability that the model gives to others is taken for zero. Every text that begins with x has an
encoding that begins with one of the *covers* of x: viable sequences t_1..t_i that spell x, where
only the last token may stick out. So

    P(x) = Σ_{t covers x} Π_k p(t_k | t_<k),        P(byte b after x) = P(x b) / P(x)

which removes the bias of asking a token model to go on after a prompt that ends inside a word.

A cover that sticks out is one of many tokens with the same bytes so far: of each sequence t that
spells a beginning of x whole, all tokens that could come next are one range of the sorted
vocabulary, which every byte narrows. A byte costs a weighted count over these ranges, and a forward
pass only where a sequence spells all of x and has not been read before. It is read together with
those that are met when the likeliest token is completed, as one tree: about one pass per token.

Source: Exact Byte-Level Probabilities from Tokenized Language Models for FIM-Tasks and Model
Ensembles (arXiv 2410.09303). Ours: ranges instead of lists of covers, reading ahead, and all viable
sequences that spell x, where the paper keeps the encoding of x alone (they differ where a
pre-tokenizer looks ahead).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from tokenry.core.boundaries import start_ids
from tokenry.core.checks import in_range
from tokenry.core.errors import ConstraintError, InputError
from tokenry.decode.bytes.canonical import Canonical, Context, canonical
from tokenry.decode.bytes.prefix_scorer import CachedPrefixScorer, Passes, Path, PrefixScorer
from tokenry.decode.constraints.predicate import extend
from tokenry.decode.generate import ends

END = 256
NOTHING = float("-inf")
CANDIDATES, LEAST_SHARE = 3, 0.1  # tokens to read ahead for
Floats = NDArray[np.float64]


class ByteModel:
    """A causal model and its BPE tokenizer, seen as a model of bytes.

    model = ByteModel(*tokenry.load())
    state = model.start("The quick brown fo")
    model.next_byte_logprobs(state)[ord("x")]
    state = model.advance(state, ord("x"))

    Special tokens spell nothing and are never predicted; the end of the text is a symbol of its
    own. `passes` counts what was asked of the model.

    Args:
        tolerance: sequences that hold less than this share of P(x) and have not been read are left
            out instead of read; 0 is exact, and a byte's error is at most that share for each of
            them.
        ahead: how many sequences to read together at most, where that saves passes later.
        canonical_only: False also counts tokens that the tokenizer would not write there, which is
            slightly wrong and saves the check.
        scorer: reads logits; None: `model` is one of transformers.
        eos: the ids that end a text; None: those of the model and its tokenizer.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        tolerance: float = 0.0,
        ahead: int = 12,
        canonical_only: bool = True,
        scorer: PrefixScorer | None = None,
        eos: Sequence[int] | None = None,
    ):
        in_range("tolerance", tolerance, "[0, 1)")
        self.tokenizer = tokenizer
        self.rules: Canonical = canonical(tokenizer)
        self.vocabulary = self.rules.vocabulary
        self.tolerance, self.ahead, self.canonical_only = tolerance, ahead, canonical_only
        self.scorer: PrefixScorer = CachedPrefixScorer(model) if scorer is None else scorer
        self.eos = ends(model, tokenizer) if eos is None else list(eos)
        letter = next(piece for piece in self.vocabulary.sorted if piece.isalpha()).decode()
        first = tokenizer(letter, add_special_tokens=False)["input_ids"][0]
        self.lead = b" " if self.vocabulary.pieces[first].startswith(b" ") else b""

    @property
    def passes(self) -> Passes:
        return self.scorer.passes

    def start(self, prompt: bytes | str, context: Sequence[int] = ()) -> ByteState:
        """The state after a prompt, which may end anywhere, even inside a character.

        Args:
            context: token ids before it, such as a chat's; none: what the tokenizer puts before a
                text, or nothing where the prompt itself can stand first.

        Raises:
            InputError: the prompt is not UTF-8.
        """
        data = prompt.encode() if isinstance(prompt, str) else bytes(prompt)
        if extend(b"", data) is None:
            raise InputError(f"the prompt is not UTF-8, nor the beginning of it: {data[-40:]!r}")
        head = data[: self.rules.fresh_start(data)]
        encoded = self.encode(head)
        before = self.before(context, needed=not head)
        root = Node((*before, *encoded), self._context(head, encoded), 0.0)
        rest = (self.lead if not head else b"") + data[len(head) :]
        state = ByteState(head, (Cursor(root, 0, 0, len(self.vocabulary)),))
        if rest:
            self._read(state, rest)
        for byte in rest:
            state = self.advance(state, byte)
        return ByteState(data, state.cursors)

    def next_byte_logprobs(self, state: ByteState) -> Floats:
        """float64 [257]: log-probabilities of the 256 bytes and, last, of the end of the text."""
        mass = self.next_byte_logmass(state)
        return mass - np.logaddexp.reduce(mass)

    def next_byte_logmass(self, state: ByteState) -> Floats:
        """float64 [257]: log P(x b) for every byte, and of the text that ends; not normalised.

        They sum to P(x), less what the model gives to special tokens and to sequences that the
        tokenizer does not write. P is conditional on the part of the prompt that all covers share.
        """
        self._read(state)
        mass = np.zeros(END + 1)
        floor = max(cursor.node.logprob for cursor in state.cursors)
        for node, depth, low, high in state.cursors:
            if (row := self._row(node)) is None:
                continue  # below the tolerance
            weight = math.exp(node.logprob - floor)
            mass[:END] += weight * self.vocabulary.byte_masses(row.probs[low:high], depth, low)
            if depth == 0 and self.rules.complete(node.context):
                mass[END] += weight * row.end
        with np.errstate(divide="ignore"):
            return np.log(mass) + floor

    def advance(self, state: ByteState, byte: int) -> ByteState:
        """The state after one more byte; `state` stays as it is.

        Raises:
            ConstraintError: a byte that cannot follow.
        """
        if not 0 <= byte < END:
            raise InputError(f"{byte} is not a byte")
        self._read(state)
        cursors = tuple(self._narrowed(state.cursors, byte))
        if not cursors:
            raise ConstraintError(
                f"byte {byte:#04x} cannot follow {state.data[-40:]!r}: no token that may come "
                "there begins with it"
            )
        return ByteState(state.data + bytes([byte]), cursors)

    def logprob(self, state: ByteState) -> float:
        """log P(x), conditional on the part of the prompt that all covers share."""
        return float(np.logaddexp.reduce([self._logmass(cursor) for cursor in state.cursors]))

    def _logmass(self, cursor: Cursor) -> float:
        if cursor.depth == 0:
            return cursor.node.logprob
        row = self._row(cursor.node)
        assert row is not None
        return cursor.node.logprob + math.log(row.probs[cursor.low : cursor.high].sum())

    def _narrowed(self, cursors: Sequence[Cursor], byte: int) -> Iterator[Cursor]:
        for node, depth, low, high in cursors:
            if (row := self._row(node)) is None:
                continue
            low, longer, high = self._after(byte, depth, low, high)
            if row.probs[longer:high].any():
                yield Cursor(node, depth + 1, longer, high)
            for number in range(low, longer):
                if row.probs[number] > 0.0 and self._may_follow(node, number):
                    yield Cursor(self._child(node, number), 0, 0, len(self.vocabulary))

    def _after(self, byte: int, depth: int, low: int, high: int) -> tuple[int, int, int]:
        """The range of one more byte, and in between where its tokens begin to be longer."""
        if low >= high:
            return low, low, low
        prefix = self.vocabulary.sorted[low][:depth] + bytes([byte])
        low, high = self.vocabulary.range(prefix, low, high)
        return low, self.vocabulary.exact(depth + 1, low, high), high

    def _may_follow(self, node: Node, number: int) -> bool:
        return bool(self.rules.viable(node.context)[self.vocabulary.ids[number]])

    def _child(self, node: Node, number: int) -> Node:
        if number not in node.children:
            token = int(self.vocabulary.ids[number])
            context = self.rules.advance(node.context, token)
            node.children[number] = Node((*node.path, token), context, NOTHING)
        child = node.children[number]
        if child.logprob == NOTHING and (row := self._row(node)) is not None:
            with np.errstate(divide="ignore"):
                child.logprob = node.logprob + float(np.log(row.probs[number]))
        return child

    def _row(self, node: Node) -> Row | None:
        """Next-token probabilities after a sequence; None if it was not read."""
        if node.row is None and node.logits is not None:
            probs = node.logits.double().softmax(-1).cpu().numpy()
            allowed = self.rules.viable(node.context) if self.canonical_only else True
            spelled = np.where(allowed, probs[: len(self.vocabulary.pieces)], 0.0)
            node.row = Row(spelled[self.vocabulary.ids], float(probs[self.eos].sum()))
            node.logits = None
        return node.row

    # Reading

    def _read(self, state: ByteState, known: bytes = b"") -> None:
        """Make sure that every sequence that spells the whole text has been read.

        known: the bytes that will follow for certain.
        """
        waiting = [c.node for c in state.cursors if c.depth == 0 and not c.node.is_read]
        least = NOTHING
        if waiting and self.tolerance:
            least = self.logprob(state) + math.log(self.tolerance)
            waiting = [node for node in waiting if node.logprob >= least]
        nodes = {node.path: node for node in waiting}
        likely: Path = ()
        if known:
            for node in self._met(state.cursors, known, least):
                nodes[node.path] = node
                likely = node.path
        elif waiting:
            for cursor, token in self._likely(state.cursors):
                spelled = self.vocabulary.sorted[token]
                met = {n.path: n for n in self._met(state.cursors, spelled[cursor.depth :], least)}
                if len(nodes | met) > max(self.ahead, len(waiting)):
                    break
                nodes |= met
                path = (*cursor.node.path, int(self.vocabulary.ids[token]))
                likely = likely or (path if path in nodes else ())
        if not nodes:
            return
        paths = list(nodes)
        logits = self.scorer.next_logits(paths, paths.index(likely) if likely else 0)
        for path, read in zip(paths, logits, strict=True):
            nodes[path].logits = read

    def _likely(self, cursors: Sequence[Cursor]) -> list[tuple[Cursor, int]]:
        """The tokens that most probably complete what has begun, with their cursor, best first."""
        likely = []
        for cursor in cursors:
            row = self._row(cursor.node)
            if row is None or cursor.depth == 0:
                continue
            probs = row.probs[cursor.low : cursor.high]
            weight = math.exp(cursor.node.logprob - max(c.node.logprob for c in cursors))
            for number in np.argsort(probs)[-CANDIDATES:][::-1]:
                likely.append((weight * probs[number], cursor, cursor.low + int(number)))
        likely.sort(key=lambda entry: -entry[0])
        total = sum(entry[0] for entry in likely)
        return [(cursor, token) for mass, cursor, token in likely if mass > LEAST_SHARE * total]

    def _met(self, cursors: Sequence[Cursor], data: bytes, least: float) -> Iterator[Node]:
        """The unread sequences that are met when `data` follows, those of the cursors included."""
        for node, depth, low, high in cursors:
            if depth == 0 and node.logprob != NOTHING and node.logprob < least:
                continue
            if depth == 0 and not node.is_read:
                yield node
            for done, byte in enumerate(data, 1):
                low, longer, high = self._after(byte, depth + done - 1, low, high)
                for number in range(low, longer):
                    if self._may_follow(node, number):
                        child = Cursor(self._child(node, number), 0, 0, len(self.vocabulary))
                        yield from self._met([child], data[done:], least)
                low = longer

    # Prompts

    def encode(self, data: bytes) -> list[int]:
        """Token ids of a text, in which nothing is taken for a special token.

        Raises:
            InputError: the tokenizer changes the text that it encodes.
        """
        text = data.decode()
        options = {"add_special_tokens": False, "split_special_tokens": True}
        ids = list(self.tokenizer(text, **options)["input_ids"]) if text else []
        spelled = b"".join(self.vocabulary.pieces[token] for token in ids)
        if spelled not in (data, b" " + data):
            raise InputError(
                f"the tokenizer changes the text: {data[:40]!r} comes back as {spelled[:40]!r}"
            )
        return ids

    def before(self, context: Sequence[int] = (), needed: bool = True) -> list[int]:
        """The ids that stand before a text: the context, else what the tokenizer puts there; where
        that is nothing and something is needed, the token that begins or ends texts."""
        prefix = list(context) or start_ids(self.tokenizer)
        if not prefix and needed:
            known = (self.tokenizer.bos_token_id, *self.eos)
            prefix = [token for token in known if token is not None][:1]
            if not prefix:
                raise InputError("nothing stands before the text: pass context=[token id, ...]")
        return [int(token) for token in prefix]

    def _context(self, head: bytes, ids: Sequence[int]) -> Context:
        """The context after the last tokens of a text."""
        left, first = len(head) - self.rules.fresh_start(head), len(ids)
        while first and left > 0:
            first -= 1
            left -= len(self.vocabulary.pieces[ids[first]])
        context: Context = ()
        for token in ids[first:]:
            context = self.rules.advance(context, token)
        return context


def byte_logprob(
    model: Any, tokenizer: Any = None, data: bytes | str = b"", context: Sequence[int] = ()
) -> float:
    """log P(data) in nats, of all texts that begin with `data`; -inf if it cannot become UTF-8.

    Args:
        model: a `ByteModel`, or a model with its tokenizer.
        context: the ids before the text; none: what the tokenizer puts there, or the token that
            begins texts.
    """
    bytes_model = model if isinstance(model, ByteModel) else ByteModel(model, tokenizer)
    data = data.encode() if isinstance(data, str) else bytes(data)
    if extend(b"", data) is None:
        return NOTHING
    before = bytes_model.before(context)
    head = bytes_model.encode(data[: bytes_model.rules.fresh_start(data)])
    total = bytes_model.scorer.logprob(tuple(before), head) if head else 0.0
    state = bytes_model.start(data, before)
    return total + bytes_model.logprob(state)


@dataclass
class Row:
    """Probabilities of the tokens that may come next, in the order of the vocabulary's bytes, and
    of the end of the text."""

    probs: Floats
    end: float


@dataclass(eq=False)
class Node:
    """A token sequence: with what stands before it, its probability given the root, what was read.

    A node does not hold its parent: what no state needs is forgotten.

    Args:
        children: by position in the vocabulary; they are there before they are needed when they
            were read ahead.
    """

    path: Path
    context: Context
    logprob: float
    logits: Tensor | None = None
    row: Row | None = None
    children: dict[int, Node] = field(default_factory=dict)

    @property
    def is_read(self) -> bool:
        return self.logits is not None or self.row is not None


class Cursor(NamedTuple):
    """The tokens of positions [low, high) after a node: they spell the last `depth` bytes of the
    text and go on. Depth 0: the node itself spells the whole text."""

    node: Node
    depth: int
    low: int
    high: int


@dataclass(frozen=True)
class ByteState:
    """A text and its covers. Never changes; states share what they have read."""

    data: bytes
    cursors: tuple[Cursor, ...] = field(repr=False)
