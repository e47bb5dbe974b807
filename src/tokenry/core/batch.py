"""TokenBatch: the one shape in which text reaches a model.

Alignment convention, kept everywhere: a per-token tensor is [B, T] and its position t speaks about
token t given the tokens before it. Position 0 has nothing before it and is never scored, so
`target[:, 0]` (the first *real* token of a row, after any left padding) must be False.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from tokenry.core.errors import InputError, ShapeError

Side = Literal["left", "right"]


@dataclass(frozen=True)
class TokenBatch:
    """Token ids with their masks.

    ids: [B, T] long. attention: [B, T] bool, True on real tokens. target: [B, T] bool, True on the
    tokens whose prediction counts (the completion). group: [B] long, rows that belong together
    (the pair of a preference, the rollouts of one prompt), or None. columns: further numbers that
    came with the data, by name: [B, ...] one per row, or [B, T] one per token.

    Raises ShapeError when the shapes differ, when a target lies on padding or on a row's first
    token, or when padding stands between real tokens.
    """

    ids: Tensor
    attention: Tensor
    target: Tensor
    group: Tensor | None = None
    columns: dict[str, Tensor] = field(default_factory=dict)

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
        if self.group is not None and self.group.shape != self.ids.shape[:1]:
            raise ShapeError(
                f"group must be [{len(self.ids)}], one per row, got {list(self.group.shape)}"
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
        return TokenBatch(
            torch.cat([one.ids, two.ids]),
            torch.cat([one.attention, two.attention]),
            torch.cat([one.target, two.target]),
            group,
            {name: torch.cat([one.columns[name], two.columns[name]]) for name in one.columns},
        )

    def _each(self, change: Any) -> TokenBatch:
        return TokenBatch(
            change(self.ids),
            change(self.attention),
            change(self.target),
            None if self.group is None else change(self.group),
            {name: change(column) for name, column in self.columns.items()},
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
        truncate: Literal["error", "prompt", "completion"] = "error",
        padding_side: Side = "right",
        end: bool = True,
        group: Sequence[int] | None = None,
    ) -> TokenBatch:
        """From (prompt, completion) texts; the completion's tokens are the targets.

        The two are tokenized apart, so that the boundary between them is a token boundary. An empty
        prompt becomes the tokenizer's beginning-of-sequence token. `end` appends the
        end-of-sequence token to each completion. A row longer than `max_length` is an error unless
        `truncate` says what may go: "prompt" drops the prompt's first tokens (at least its last
        one stays), "completion" the completion's last ones.
        """
        rows, targets = [], []
        for number, (prompt, completion) in enumerate(pairs):
            left = tokenizer(prompt)["input_ids"] if prompt else []
            left = left or [_start_token(tokenizer)]
            right = tokenizer(completion, add_special_tokens=False)["input_ids"]
            if end and tokenizer.eos_token_id is not None:
                right = [*right, tokenizer.eos_token_id]
            left, right = _truncate(left, right, max_length, truncate, number)
            rows.append([*left, *right])
            targets.append([False] * len(left) + [True] * len(right))
        pad_id = _pad_token(tokenizer)
        return cls.from_ids(rows, targets, pad_id=pad_id, padding_side=padding_side, group=group)

    @classmethod
    def from_messages(
        cls,
        tokenizer: Any,
        conversations: Sequence[Sequence[dict[str, str]]],
        *,
        max_length: int | None = None,
        padding_side: Side = "right",
        group: Sequence[int] | None = None,
    ) -> TokenBatch:
        """From chat messages through the model's chat template; assistant tokens are the targets.

        What the template writes for an assistant turn is found by rendering the conversation up to
        that turn with and without it, so that any template works that only ever appends. The
        closing token of the turn counts; white space after it does not.
        """
        if getattr(tokenizer, "chat_template", None) is None:
            raise InputError(
                "this tokenizer has no chat template; use (prompt, completion) pairs instead"
            )
        rows, targets = [], []
        for number, messages in enumerate(conversations):
            row, target = _chat_tokens(tokenizer, list(messages), number)
            if max_length is not None and len(row) > max_length:
                raise InputError(
                    f"conversation {number} has {len(row)} tokens, more than max_length="
                    f"{max_length}: shorten it or raise max_length"
                )
            rows.append(row)
            targets.append(target)
        pad_id = _pad_token(tokenizer)
        return cls.from_ids(rows, targets, pad_id=pad_id, padding_side=padding_side, group=group)


def _truncate(
    left: list[int], right: list[int], max_length: int | None, truncate: str, number: int
) -> tuple[list[int], list[int]]:
    excess = 0 if max_length is None else len(left) + len(right) - max_length
    if excess <= 0:
        return left, right
    if truncate == "prompt" and excess < len(left):
        return left[excess:], right
    if truncate == "completion" and excess < len(right):
        return left, right[:-excess]
    raise InputError(
        f"row {number} has {len(left)} prompt and {len(right)} completion tokens, {excess} more "
        f'than max_length={max_length}, and truncate="{truncate}" cannot remove them'
    )


def _chat_tokens(
    tokenizer: Any, messages: list[dict[str, str]], number: int
) -> tuple[list[int], list[bool]]:
    if not any(message.get("role") == "assistant" for message in messages):
        raise InputError(f"conversation {number} has no assistant message, so nothing to score")

    def render(upto: int, prompt: bool) -> str:
        return tokenizer.apply_chat_template(
            messages[:upto], tokenize=False, add_generation_prompt=prompt
        )

    whole = render(len(messages), False)
    spans: list[tuple[int, int]] = []
    for turn, message in enumerate(messages):
        if message.get("role") != "assistant":
            continue
        after = render(turn + 1, False)
        # A conversation cannot be rendered up to its first turn: look for the words themselves.
        before = render(turn, True) if turn else after[: after.rfind(message["content"])]
        if not (whole.startswith(before) and whole.startswith(after)):
            raise InputError(
                f"conversation {number}: this chat template rewrites earlier turns, so assistant "
                "tokens cannot be located; pass (prompt, completion) pairs instead"
            )
        spans.append((len(before), len(after.rstrip())))
    encoded = tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True)
    target = [
        place > 0 and any(start <= a and b <= end and b > a for start, end in spans)
        for place, (a, b) in enumerate(encoded["offset_mapping"])
    ]
    return encoded["input_ids"], target


def _start_token(tokenizer: Any) -> int:
    for name in ("bos_token_id", "eos_token_id"):
        if getattr(tokenizer, name, None) is not None:
            return getattr(tokenizer, name)
    raise InputError("an empty prompt needs a tokenizer with a bos or eos token to start from")


def _pad_token(tokenizer: Any) -> int:
    for name in ("pad_token_id", "eos_token_id"):
        if getattr(tokenizer, name, None) is not None:
            return getattr(tokenizer, name)
    return 0


def _not_none(value: Tensor | None) -> Tensor:
    assert value is not None
    return value
