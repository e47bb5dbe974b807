"""The one reader of training data: any source, any of TRL's formats -> rows of token ids.

Rows are checked and tokenized once, when they are read, so that an error can name the place and the
field. What counts as target is decided by `core.boundaries`; for messages, by `core.chat`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from tokenry.core.batch import Truncate, truncated
from tokenry.core.boundaries import (
    Tokens,
    joined_pair,
    pair_tokens,
    part_tokens,
    prompt_ids,
    text_tokens,
)
from tokenry.core.checks import in_range, one_of
from tokenry.core.errors import InputError
from tokenry.learn.data.columns import check_reference
from tokenry.learn.data.fields import (
    Value,
    as_messages,
    chat_of,
    prompt_and_answers,
    quoted,
    value_of,
)
from tokenry.learn.data.kinds import KINDS, SUPERVISED, check_fields, check_kind, kind_of
from tokenry.learn.data.sources import Row, read_source
from tokenry.learn.objective import PAIR

BadRows = Literal["error", "skip"]
NAMES = {
    "text": "texts",
    "messages": "conversations",
    "completion": "prompts with completions",
    "unpaired": "labelled completions",
    "preference": "preference pairs",
    "prompt": "prompts",
}


@dataclass(frozen=True)
class DataOptions:
    """Everything that decides how data are read, for the record of a run.

    kind: "auto", or which of the kinds in `learn.data.kinds` the rows are.
    max_length: tokens of a row, prompt included; None: any.
    truncate: what may go when a row is longer: nothing ("error"), the prompt's first tokens
        ("prompt", the same for both completions) or the completion's last ones ("completion").
    as_chat: put plain texts through the chat template as one user and one assistant message.
    bad_rows: "skip" leaves out the rows that cannot be used and counts them.
    """

    kind: str = "auto"
    max_length: int | None = None
    truncate: Truncate = "error"
    as_chat: bool = False
    bad_rows: BadRows = "error"

    def __post_init__(self) -> None:
        one_of("kind", self.kind, ("auto", *KINDS))
        in_range("max_length", self.max_length, "[2, inf)", integer=True, optional=True)
        one_of("truncate", self.truncate, get_args(Truncate))
        one_of("bad_rows", self.bad_rows, get_args(BadRows))
        one_of("as_chat", self.as_chat, (True, False))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Skipped:
    """Rows that were left out because they could not be used, and why the first of them was."""

    count: int = 0
    first: str | None = None


@dataclass(frozen=True)
class DataRows:
    """Rows of token ids, and how they came about.

    rows: dicts with their own columns, "place", and by kind
        text, messages, completion   ids, target (bool, one for each id)
        preference                   prompt, chosen, rejected (as text), prompt_messages (of a
                                     chat), prompt_ids, chosen_ids, rejected_ids, and where a
                                     part of a completion does not count (another's turns)
                                     chosen_target, rejected_target
        unpaired                     prompt, completion, prompt_ids, completion_ids,
                                     completion_label, perhaps completion_target
        prompt                       prompt, prompt_ids
    kind, options: as what they were read. file, form, sha256: of the source. skipped: what was left
    out. crossing: targets that reach across a boundary. ended: completions that got an
    end-of-sequence token because the chat template writes none. template: hash of the chat
    template, where there is one.
    """

    rows: list[Row]
    kind: str
    options: DataOptions
    file: str | None
    form: str
    sha256: str
    skipped: Skipped
    crossing: int
    ended: int
    template: str | None

    def to_dict(self) -> dict[str, Any]:
        """The record of a run's data: everything but the rows."""
        return {
            "file": self.file,
            "form": self.form,
            "sha256": self.sha256,
            "read_as": self.kind,
            "rows": len(self.rows),
            "skipped": self.skipped.count,
            "first_skipped": self.skipped.first,
            "crossing": self.crossing,
            "ended": self.ended,
            "template": self.template,
            "options": self.options.to_dict(),
        }

    def summary(self) -> str:
        """One line on what was read as what."""
        return summary_of(self.to_dict(), len(self.rows))


def summary_of(record: Mapping[str, Any], count: int) -> str:
    """One line on what was read as what, from a record of `DataRows` or of a run."""
    kind = NAMES[record["read_as"]]
    parts = [f"{record['file'] or 'data'}: {count} {kind} ({record['form']})"]
    notes = {
        "skipped": f"rows skipped, the first: {record['first_skipped']}",
        "crossing": "tokens reach from the prompt into the completion",
        "ended": "end tokens added where the chat template writes none",
    }
    return "; ".join(
        parts + [f"{record[key]} {what}" for key, what in notes.items() if record[key]]
    )


def read_rows(
    source: Any,
    tokenizer: Any,
    kind: str = "auto",
    *,
    max_length: int | None = None,
    truncate: Truncate = "error",
    as_chat: bool = False,
    bad_rows: BadRows = "error",
    accepts: Collection[str] = KINDS,
    completions: Sequence[str] = PAIR,
) -> DataRows:
    """Read training data of any kind.

    source: a file, a pipe, a folder or rows, as `learn.data.sources` reads them. kind, max_length,
    truncate, as_chat, bad_rows: see `DataOptions`. accepts: the kinds that can be used; "auto"
    takes the one that the first usable row is of. completions: those that preference rows must
    have.

    Raises InputError naming the place (line, item or row) and the field of the first row that
    cannot be used, and the kinds that are wanted when the rows are of none of them.
    """
    options = DataOptions(kind, max_length, truncate, as_chat, bad_rows)
    check_kind(kind, accepts)
    read = read_source(source)
    parser = _RowParser(tokenizer, options, tuple(completions))
    chosen, rows, skipped = None if kind == "auto" else kind, [], Skipped()
    for place, row in read.rows:
        try:
            chosen = chosen or kind_of(row, place, accepts)
            fields = parser.read(row, chosen)
        except InputError as error:
            why = str(error) if str(error).startswith(place) else f"{place}: {error}"
            if bad_rows != "skip":
                raise InputError(why) from None
            skipped = Skipped(skipped.count + 1, skipped.first or why)
            continue
        rows.append({**row, **fields, "place": place})
    if not rows:
        what = NAMES[chosen] if chosen else " or ".join(NAMES[kind] for kind in accepts)
        why = f": all {skipped.count} rows were skipped ({skipped.first})" if skipped.count else ""
        raise InputError(f"no {what} in {read.title}{why}")
    assert chosen is not None
    return DataRows(
        rows,
        chosen,
        options,
        read.file,
        read.form,
        read.sha256,
        skipped,
        parser.crossing,
        parser.ended,
        template_hash(tokenizer),
    )


def completion_rows(rows: Sequence[Row]) -> list[Row]:
    """Supervised rows as one completion each: `prompt_ids` up to the first target, then
    `completion_ids` and `completion_target`."""
    split = []
    for row in rows:
        first = row["target"].index(True)
        split.append(
            {
                **{name: value for name, value in row.items() if name not in ("ids", "target")},
                "prompt_ids": row["ids"][:first],
                "completion_ids": row["ids"][first:],
                "completion_target": row["target"][first:],
            }
        )
    return split


def template_hash(tokenizer: Any) -> str | None:
    """The SHA-256 of a tokenizer's chat template, or of all of them; None without one."""
    template = getattr(tokenizer, "chat_template", None)
    return None if template is None else hashlib.sha256(repr(template).encode()).hexdigest()


class _RowParser:
    """Rows of one source -> fields with token ids; counts what is to be reported."""

    def __init__(self, tokenizer: Any, options: DataOptions, completions: tuple[str, ...]):
        self.tokenizer, self.options, self.completions = tokenizer, options, completions
        self.crossing = self.ended = 0

    def read(self, row: Row, kind: str) -> Row:
        if kind == "prompt":
            return self._prompt(row)
        check_fields(row, kind, self.completions)
        if kind in SUPERVISED:
            tokens = self._supervised(row, kind).trimmed()
            tokens = truncated(tokens, self.options.max_length, self.options.truncate)
            self._count(tokens.crossing, [tokens])
            return {"ids": tokens.ids, "target": tokens.target}
        if kind == "unpaired":
            if not isinstance(row["label"], bool):
                raise InputError(f'"label" must be true or false, got {row["label"]!r}')
            return self._completions(row, ("completion",)) | {"completion_label": row["label"]}
        return self._completions(row, self.completions)

    def _supervised(self, row: Row, kind: str) -> Tokens:
        if kind == "text":
            if not isinstance(row["text"], str):
                raise InputError(f'"text" must be a text, got {str(row["text"])[:60]!r}')
            return text_tokens(self.tokenizer, row["text"])
        if kind == "messages":
            value = value_of(row, "messages")
            if isinstance(value, str):
                raise InputError(f'"messages" must be a list of messages, got {value[:60]!r}')
            return self._tokens(row, [], value)[0]
        prompt, (answer,) = prompt_and_answers(row, ["completion"], as_chat=self.options.as_chat)
        return self._tokens(row, prompt, answer)[0]

    def _completions(self, row: Row, names: tuple[str, ...]) -> Row:
        """Texts and ids of one prompt and its completions."""
        prompt, answers = prompt_and_answers(row, names, as_chat=self.options.as_chat)
        sided, texts = [], {}
        for name, answer in zip(names, answers, strict=True):
            tokens, texts["prompt"], texts[name] = self._tokens(row, prompt, answer)
            sided.append(tokens)
        pair = joined_pair(sided)
        completions = list(zip(pair.completions, pair.target, strict=True))
        start, completions = self._fitted(pair.prompt, completions, names)
        ids = [completion for completion, _ in completions]
        if len(ids) > 1 and all(completion == ids[0] for completion in ids):
            raise InputError(
                f"{' and '.join(quoted(names))} are the same tokens within "
                f"max_length={self.options.max_length}"
            )
        fields: Row = {**texts, "prompt_ids": start}
        if not isinstance(prompt, str):
            fields["prompt_messages"] = prompt
        for name, (completion, target) in zip(names, completions, strict=True):
            if not any(target):
                raise InputError(f'no token of "{name}" is left to score; raise max_length')
            fields[f"{name}_ids"] = completion
            if not all(target) or f"{name}_target" in row:
                fields[f"{name}_target"] = target
            check_reference(row, name, len(completion))
        self._count(pair.crossing, sided)
        return fields

    def _prompt(self, row: Row) -> Row:
        if row.get("prompt") is None and all(row.get(name) is not None for name in PAIR):
            prompt: Value = prompt_and_answers(row, PAIR, as_chat=self.options.as_chat)[0]
        else:
            check_fields(row, "prompt", ())
            prompt = value_of(row, "prompt")
        templated = not isinstance(prompt, str) or self.options.as_chat
        if templated:
            prompt = chat_of(row, self.tokenizer).prompt(as_messages(prompt, "user"))
        ids = prompt_ids(self.tokenizer, str(prompt), templated=templated)
        return {"prompt": prompt, "prompt_ids": self._fitted(ids, [], ())[0]}

    def _tokens(self, row: Row, prompt: Value, answer: Value) -> tuple[Tokens, str, str]:
        """The tokens of a prompt and an answer, and both as text."""
        if isinstance(prompt, str) and isinstance(answer, str):
            return pair_tokens(self.tokenizer, prompt, answer), prompt, answer
        assert not isinstance(prompt, str)
        assert not isinstance(answer, str)
        text, spans = chat_of(row, self.tokenizer).conversation(prompt, answer)
        start, end = spans[0][0], max(end for _, end in spans)
        tokens = part_tokens(self.tokenizer, text, spans, templated=True)
        return tokens, text[:start], text[start:end]

    def _fitted(
        self,
        prompt: list[int],
        completions: list[tuple[list[int], list[bool]]],
        names: Sequence[str],
    ) -> tuple[list[int], list[tuple[list[int], list[bool]]]]:
        """The rules of `truncate`, with one prompt for all completions."""
        limit, truncate = self.options.max_length, self.options.truncate
        sizes = dict(zip(names, (len(ids) for ids, _ in completions), strict=True))
        longest = max(sizes, key=lambda name: sizes[name], default="prompt")
        excess = 0 if limit is None else len(prompt) + sizes.get(longest, 0) - limit
        if limit is None or excess <= 0:
            return prompt, completions
        if truncate == "prompt" and excess < len(prompt):
            return prompt[excess:], completions
        if truncate == "completion" and len(prompt) < limit:
            left = limit - len(prompt)
            return prompt, [(ids[:left], target[:left]) for ids, target in completions]
        field = "prompt" if len(prompt) >= limit else longest
        also = f" and {longest} {sizes[longest]}" if sizes else ""
        raise InputError(
            f'"{field}" is too long: prompt {len(prompt)}{also} tokens are {excess} more than '
            f'max_length={limit}, and truncate="{truncate}" cannot remove them; shorten the text '
            "or raise max_length"
        )

    def _count(self, crossing: int, rows: Sequence[Tokens]) -> None:
        self.crossing += crossing
        self.ended += sum(tokens.ended for tokens in rows)
