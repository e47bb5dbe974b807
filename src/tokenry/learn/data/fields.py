"""The fields of a row, brought to one form: all texts, or all messages."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from tokenry.core.boundaries import common_prefix
from tokenry.core.chat import Chat, Message, messages_of, says_something
from tokenry.core.errors import InputError

Value = str | list[Message]


def value_of(row: Mapping[str, Any], name: str) -> Value:
    """A field that is a text or messages. Raises InputError naming it."""
    value = row[name]
    if isinstance(value, str):
        return value
    if not isinstance(value, list | tuple) or not all(isinstance(item, Mapping) for item in value):
        raise InputError(
            f'"{name}" must be a text or a list of messages with "role" and "content", '
            f"got {str(value)[:60]!r}"
        )
    try:
        return messages_of(value)
    except InputError as error:
        raise InputError(
            f'"{name}" must be a text or a list of messages with "role" and "content": {error}'
        ) from None


def chat_of(row: Mapping[str, Any], tokenizer: Any) -> Chat:
    """The chat template with the row's own `tools` and `chat_template_kwargs`."""
    tools, options = row.get("tools"), row.get("chat_template_kwargs")
    if isinstance(tools, str):
        try:
            tools = json.loads(tools)
        except ValueError:
            raise InputError(f'"tools" is no JSON: {row["tools"][:60]!r}') from None
    if tools is not None and not (
        isinstance(tools, list) and all(isinstance(tool, Mapping) for tool in tools)
    ):
        raise InputError(f'"tools" must be a list of JSON schemas, got {str(tools)[:60]!r}')
    if options is not None and not isinstance(options, Mapping):
        raise InputError(f'"chat_template_kwargs" must be a mapping, got {str(options)[:60]!r}')
    return Chat(tokenizer, [dict(tool) for tool in tools] if tools else None, dict(options or {}))


def prompt_and_answers(
    row: Mapping[str, Any], names: Sequence[str], *, as_chat: bool = False
) -> tuple[Value, list[Value]]:
    """The prompt and the answers of the fields `names`, all of them texts or all messages.

    Without a prompt it is what all answers begin with. Answers that are whole conversations, prompt
    included, lose it. as_chat: texts become one user's and one assistant's message.
    Raises InputError naming the field.
    """
    prompt = None if row.get("prompt") is None else value_of(row, "prompt")
    answers = [value_of(row, name) for name in names]
    if len({isinstance(answer, str) for answer in answers}) > 1:
        raise InputError(
            "chosen and rejected must be all texts or all messages, got "
            + ", ".join(f"{n}: {type(a).__name__}" for n, a in zip(names, answers, strict=True))
        )
    if len(answers) > 1 and all(answer == answers[0] for answer in answers):
        raise InputError(
            f"{' and '.join(quoted(names))} are equal, so the pair says nothing; remove it"
        )
    for name, answer in zip(names, answers, strict=True):
        if not has_words(answer):
            raise InputError(f'"{name}" is an empty completion')
    if prompt is None:
        prompt, answers = _split(answers, names)
    if isinstance(prompt, str) and isinstance(answers[0], str) and not as_chat:
        return prompt, answers
    answers = [as_messages(answer, "assistant") for answer in answers]
    if isinstance(prompt, str) and len(names) > 1 and answers[0][0]["role"] in ("user", "system"):
        return _whole(prompt, answers, names)
    strict = isinstance(prompt, str) or len(names) > 1
    return _continuing(as_messages(prompt, "user"), answers, names, strict)


def as_messages(value: Value, role: str) -> list[Message]:
    return [{"role": role, "content": value}] if isinstance(value, str) else value


def has_words(value: Value) -> bool:
    """Whether there are words, or tool calls, in a completion."""
    if isinstance(value, str):
        return bool(value.strip())
    return any(map(says_something, value))


def quoted(names: Sequence[str]) -> list[str]:
    return [f'"{name}"' for name in names]


def _whole(
    prompt: str, answers: list[list[Message]], names: Sequence[str]
) -> tuple[Value, list[Value]]:
    """Whole conversations beside the text of their prompt: it is what both begin with."""
    opening, rest = _split(answers, names)
    if prompt.strip() not in [message.get("content", "").strip() for message in opening]:
        raise InputError(
            f'the text of "prompt" is not among the messages that {" and ".join(quoted(names))} '
            "begin with, so one of them is wrong; remove the field that is"
        )
    return opening, rest


def _continuing(
    prompt: list[Message], answers: list[list[Message]], names: Sequence[str], strict: bool
) -> tuple[Value, list[Value]]:
    """Answers as messages behind the prompt, which they may hold too.

    strict: the assistant must speak first in them.
    """
    size = len(prompt)
    if size and all(len(a) > size and a[:size] == prompt for a in answers):
        answers = [answer[size:] for answer in answers]
    for name, answer in zip(names, answers, strict=True):
        if strict and answer[0]["role"] != "assistant":
            raise InputError(
                f'"{name}" does not continue the prompt: its first message must be the '
                f"assistant's, got {answer[0]['role']!r}"
            )
    return prompt, list(answers)


def _split(answers: Sequence[Value], names: Sequence[str]) -> tuple[Any, list[Any]]:
    """What all answers begin with (whole words, or whole messages), and what remains of each."""
    if len(answers) < 2:
        raise InputError('the field "prompt" is missing')
    shared = common_prefix(answers)
    rest: list[Any] = [answer[len(shared) :] for answer in answers]
    if not isinstance(shared, str):
        shared = shared if all(rest) else shared[:-1]
    elif all(text[:1].isspace() for text in rest):
        shared = shared.rstrip(" ")
    else:
        shared = re.sub(r"\S+\Z", "", shared).rstrip(" ")
    if not shared:
        unit = "words" if isinstance(shared, str) else "message"
        raise InputError(
            f'without a "prompt" field, {" and ".join(quoted(names))} must start with the same '
            f"{unit}"
        )
    return shared, [answer[len(shared) :] for answer in answers]
