"""TokenBatch: the one shape in which text reaches a model.

Alignment convention, kept everywhere: a per-token tensor is [B, T] and its position t speaks about
token t given the tokens before it. Position 0 has nothing before it and is never scored, so
`target[:, 0]` (the first *real* token of a row, after any left padding) must be False.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from tokenry.core.boundaries import Tokens, pair_tokens, part_tokens
from tokenry.core.chat import Chat, messages_of
from tokenry.core.errors import InputError, ShapeError

Side = Literal["left", "right"]
Truncate = Literal["error", "prompt", "completion"]


@dataclass(frozen=True)
class TokenBatch:
    """Token ids with their masks.

    ids: [B, T] long. attention: [B, T] bool, True on real tokens. target: [B, T] bool, True on the
    tokens whose prediction counts (the completion). group: [B] long, rows that belong together
    (the pair of a preference, the rollouts of one prompt), or None. columns: further numbers that
    came with the data, by name: [B, ...] one per row, or [B, T] one per token. crossing: [B] long,
    how many of a row's targets reach across the boundary to what does not count, or None.

    Raises ShapeError when the shapes differ, when a target lies on padding or on a row's first
    token, or when padding stands between real tokens.
    """

    ids: Tensor
    attention: Tensor
    target: Tensor
    group: Tensor | None = None
    columns: dict[str, Tensor] = field(default_factory=dict)
    crossing: Tensor | None = None

    def __post_init__(self) -> None:
        if self.ids.ndim != 2 or self.ids.dtype != torch.long:
            raise ShapeError(
                f"ids must be [B, T] int64, got {list(self.ids.shape)} {self.ids.dtype}"
            )
        for name in ("attention", "target"):
            mask = getattr(self, name)
            if mask.shape != self.ids.shape or mask.dtype != torch.bool:
                raise ShapeError(
                    f"{name} must be bool of shape {list(self.ids.shape)} like ids, "
                    f"got {list(mask.shape)} {mask.dtype}"
                )
        for name in ("group", "crossing"):
            value = getattr(self, name)
            if value is not None and value.shape != self.ids.shape[:1]:
                raise ShapeError(
                    f"{name} must be [{len(self.ids)}], one per row, got {list(value.shape)}"
                )
        for name, column in self.columns.items():
            if column.shape[:1] != self.ids.shape[:1]:
                raise ShapeError(
                    f"column {name!r} must have {len(self.ids)} rows, got {list(column.shape)}"
                )
        gaps = (self.attention[:, 1:] & ~self.attention[:, :-1]).sum(-1)
        first = self.attention & (self.attention.cumsum(-1) == 1)
        for wrong, what in (
            ((self.target & ~self.attention).any(-1), "targets on padding"),
            ((self.target & first).any(-1), "its first token as a target, which nothing predicts"),
            (gaps > (~self.attention[:, :1]).sum(-1), "padding between real tokens"),
        ):
            if wrong.any():
                raise ShapeError(f"row {int(wrong.nonzero()[0])} has {what}")

    @property
    def shape(self) -> tuple[int, int]:
        return self.ids.shape[0], self.ids.shape[1]

    @property
    def lengths(self) -> Tensor:
        """Real tokens of each row, [B]."""
        return self.attention.sum(-1)

    def column(self, name: str) -> Tensor:
        """A column that must be there; raises InputError that names the ones that are."""
        if name not in self.columns:
            raise InputError(
                f"this batch has no column {name!r} (it has: {', '.join(self.columns) or 'none'}); "
                f"give it in the data, or as batch.with_columns({name}=...)"
            )
        return self.columns[name]

    def with_columns(self, **columns: Tensor) -> TokenBatch:
        """The same batch with more columns, or other values in those that it has."""
        return replace(self, columns={**self.columns, **columns})

    def to(self, device: Any) -> TokenBatch:
        """The same batch on another device."""
        return self._each(lambda tensor: tensor.to(device))

    def select(self, index: Any) -> TokenBatch:
        """Rows by integer index, list, slice or boolean mask, in that order."""
        if isinstance(index, int):
            index = [index]
        return self._each(lambda tensor: tensor[index])

    def concat(self, other: TokenBatch, pad_id: int = 0, side: Side = "right") -> TokenBatch:
        """This batch's rows, then the other's; the shorter one is padded on `side`."""
        width = max(self.ids.shape[1], other.ids.shape[1])
        if (self.group is None) != (other.group is None):
            raise ShapeError("cannot concat a batch that has groups with one that has none")
        one, two = (batch._widen(width, pad_id, side) for batch in (self, other))
        if set(self.columns) != set(other.columns):
            raise ShapeError(
                f"cannot concat batches with columns {sorted(self.columns)} and "
                f"{sorted(other.columns)}"
            )
        group = None if one.group is None else torch.cat([one.group, _not_none(two.group)])
        crossing = None
        if one.crossing is not None or two.crossing is not None:
            crossing = torch.cat([one._crossings(), two._crossings()])
        return TokenBatch(
            torch.cat([one.ids, two.ids]),
            torch.cat([one.attention, two.attention]),
            torch.cat([one.target, two.target]),
            group,
            {name: torch.cat([one.columns[name], two.columns[name]]) for name in one.columns},
            crossing,
        )

    def _crossings(self) -> Tensor:
        return self.ids.new_zeros(len(self.ids)) if self.crossing is None else self.crossing

    def _each(self, change: Any) -> TokenBatch:
        return TokenBatch(
            change(self.ids),
            change(self.attention),
            change(self.target),
            None if self.group is None else change(self.group),
            {name: change(column) for name, column in self.columns.items()},
            None if self.crossing is None else change(self.crossing),
        )

    def _widen(self, width: int, pad_id: int, side: Side) -> TokenBatch:
        missing = width - self.ids.shape[1]
        pad = (missing, 0) if side == "left" else (0, missing)

        def widen(tensor: Tensor, value: int | bool) -> Tensor:
            return torch.nn.functional.pad(tensor, pad, value=value)

        return replace(
            self,
            ids=widen(self.ids, pad_id),
            attention=widen(self.attention, False),
            target=widen(self.target, False),
            columns={
                name: widen(column, 0) if column.shape == self.ids.shape else column
                for name, column in self.columns.items()
            },
        )

    @classmethod
    def from_ids(
        cls,
        rows: Sequence[Sequence[int]],
        target: Sequence[Sequence[bool]] | None = None,
        *,
        pad_id: int = 0,
        padding_side: Side = "right",
        group: Sequence[int] | None = None,
    ) -> TokenBatch:
        """From lists of ids. Without `target`, every token but the first of each row counts."""
        if not rows:
            raise InputError("an empty batch: pass at least one row of token ids")
        for number, row in enumerate(rows):
            if not len(row):
                raise InputError(f"row {number} has no tokens: every row needs at least one token")
            if target is not None and len(target[number]) != len(row):
                raise ShapeError(
                    f"row {number} has {len(row)} ids and {len(target[number])} targets"
                )
        width = max(len(row) for row in rows)
        ids = torch.full((len(rows), width), pad_id, dtype=torch.long)
        attention = torch.zeros(len(rows), width, dtype=torch.bool)
        counts = torch.zeros(len(rows), width, dtype=torch.bool)
        for number, row in enumerate(rows):
            start = width - len(row) if padding_side == "left" else 0
            place = slice(start, start + len(row))
            ids[number, place] = torch.as_tensor(row, dtype=torch.long)
            attention[number, place] = True
            wanted = [False] + [True] * (len(row) - 1) if target is None else target[number]
            counts[number, place] = torch.as_tensor(wanted, dtype=torch.bool)
        return cls(ids, attention, counts, None if group is None else torch.tensor(group))

    @classmethod
    def from_pairs(
        cls,
        tokenizer: Any,
        pairs: Sequence[tuple[str, str]],
        *,
        max_length: int | None = None,
        truncate: Truncate = "error",
        padding_side: Side = "right",
        end: bool = True,
        group: Sequence[int] | None = None,
    ) -> TokenBatch:
        """From (prompt, completion) texts; the completion's tokens are the targets.

        The two are tokenized as one text. A token that holds characters of both is a target, and
        `crossing` counts them. An empty prompt becomes the tokenizer's beginning-of-sequence token.
        `end` puts the end-of-sequence token behind each completion that does not carry it. A row
        longer than `max_length` is an error unless `truncate` says what may go: "prompt" drops the
        prompt's first tokens (at least its last one stays), "completion" the completion's last
        ones. Raises InputError, also for a completion without tokens.
        """
        rows = []
        for number, (prompt, completion) in enumerate(pairs):
            with _row("row", number):
                tokens = pair_tokens(tokenizer, prompt, completion, end=end)
                rows.append(truncated(tokens, max_length, truncate))
        return cls.from_tokens(
            rows, pad_id=_pad_token(tokenizer), padding_side=padding_side, group=group
        )

    @classmethod
    def from_messages(
        cls,
        tokenizer: Any,
        conversations: Sequence[Sequence[dict[str, Any]]],
        *,
        tools: Sequence[dict[str, Any]] | None = None,
        max_length: int | None = None,
        truncate: Truncate = "error",
        padding_side: Side = "right",
        group: Sequence[int] | None = None,
    ) -> TokenBatch:
        """From chat messages through the model's chat template; assistant tokens are the targets.

        What the assistant says is what the template marks as generated, or else what it writes for
        an assistant turn (see `core.chat`), its closing token included and white space after it
        left out. A template that closes the last turn with no special token gets the
        end-of-sequence token there. tools: JSON schemas of the functions that may be called.
        max_length, truncate: as in `from_pairs`. Raises InputError naming the conversation.
        """
        chat, rows = Chat(tokenizer, tools), []
        for number, messages in enumerate(conversations):
            with _row("conversation", number):
                text, spans = chat.conversation([], messages_of(messages))
                tokens = part_tokens(tokenizer, text, spans, templated=True)
                rows.append(truncated(tokens, max_length, truncate))
        return cls.from_tokens(
            rows, pad_id=_pad_token(tokenizer), padding_side=padding_side, group=group
        )

    @classmethod
    def from_tokens(cls, rows: Sequence[Tokens], **options: Any) -> TokenBatch:
        """From rows of tokens with their targets; options: those of `from_ids`."""
        batch = cls.from_ids([row.ids for row in rows], [row.target for row in rows], **options)
        return replace(batch, crossing=torch.tensor([row.crossing for row in rows]))


def truncated(tokens: Tokens, max_length: int | None, truncate: Truncate) -> Tokens:
    """At most max_length tokens, if `truncate` allows it: "prompt" drops the first tokens (one that
    is no target stays), "completion" the last ones. Raises InputError otherwise."""
    excess = 0 if max_length is None else len(tokens.ids) - max_length
    if excess <= 0:
        return tokens
    prompt = tokens.first
    if truncate == "prompt" and excess < prompt:
        return replace(tokens, ids=tokens.ids[excess:], target=tokens.target[excess:])
    if truncate == "completion" and len(tokens.ids) - excess > prompt:
        return replace(tokens, ids=tokens.ids[:-excess], target=tokens.target[:-excess])
    raise InputError(
        f"{len(tokens.ids)} tokens, {prompt} of them before the first that counts, are {excess} "
        f'more than max_length={max_length}, and truncate="{truncate}" cannot remove them: shorten '
        "the text or raise max_length"
    )


@contextmanager
def _row(what: str, number: int) -> Iterator[None]:
    """Errors inside name the row."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{what} {number}: {error}") from None


def _pad_token(tokenizer: Any) -> int:
    for name in ("pad_token_id", "eos_token_id"):
        if getattr(tokenizer, name, None) is not None:
            return getattr(tokenizer, name)
    return 0


def _not_none(value: Tensor | None) -> Tensor:
    assert value is not None
    return value
