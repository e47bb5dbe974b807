"""Chats as text: what a model's chat template writes, and which part of it the assistant says.

Where the template marks it (`{% generation %}`), its marks decide. Elsewhere a turn begins where
the generation prompt ends, if the template writes one and the whole conversation continues it, and
otherwise where the turn's own words can begin: where two renderings that differ in nothing but
these words part. It ends with what the template closes the turn with; white space after that is no
part of it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from tokenry.core.boundaries import CharSpan, common_prefix
from tokenry.core.errors import InputError

Message = dict[str, Any]

GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
LOOP_OVER_CONTENT = re.compile(r"""\bin\s+\w+(\.content|\[['"]content['"]\])""")
REASONING = ("reasoning_content", "reasoning", "thinking")
PROBES = ("Aa", "Bb")  # words that differ in their first and in their last character


@dataclass(frozen=True)
class Chat:
    """A tokenizer's chat template with what it needs beside the messages.

    tools: JSON schemas, or None. options: further variables of the template.
    Every method raises InputError with the template's own words when it refuses a conversation.
    """

    tokenizer: Any
    tools: Sequence[Mapping[str, Any]] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if getattr(self.tokenizer, "chat_template", None) is None:
            raise InputError(
                "these are messages, and this tokenizer has no chat template; use texts (prompt "
                "and completion) instead"
            )

    def render(self, messages: Sequence[Message], **how: Any) -> str:
        """The text of messages; how: add_generation_prompt, continue_final_message."""
        if not messages:
            return ""
        return self._apply(messages, **how)

    def prompt(self, messages: Sequence[Message]) -> str:
        """The text that an answer continues: behind the generation prompt, or, when the assistant
        speaks last, behind its unfinished turn."""
        if messages and messages[-1]["role"] == "assistant":
            if not messages[-1].get("content") or messages[-1].get("tool_calls"):
                raise InputError(
                    "the prompt ends in an assistant turn without words to continue; end it with a "
                    "user or tool message"
                )
            return self.render(messages, continue_final_message=True)
        return self.render(messages, add_generation_prompt=True)

    def conversation(
        self, prompt: Sequence[Message], completion: Sequence[Message]
    ) -> tuple[str, list[CharSpan]]:
        """The text of a whole conversation, and the spans of what the assistant says in the
        completion. A completion that starts with the assistant goes on with its open turn, if the
        prompt ends in one."""
        messages, first = [*prompt, *completion], len(prompt)
        opening = None
        if prompt and completion and _says(prompt[-1]) and _says(completion[0]):
            opening, first = self.prompt(prompt), first - 1
            messages = [*prompt[:-1], _continued(prompt[-1], completion[0]), *completion[1:]]
        if not any(_says(message) and says_something(message) for message in messages[first:]):
            raise InputError("no assistant message to score: the assistant says nothing in it")
        self._check_fields(messages)
        text = self.render(messages)
        if opening is not None and not text.startswith(opening):
            raise InputError("the chat template does not continue the prompt's assistant turn")
        if GENERATION.search(self._template()):
            border = len(common_prefix([text, opening or self.render(prompt)]))
            marked = [(max(start, border), end) for start, end in self._marked(messages)]
            spans = [span for span in marked if span[0] < span[1]]
            if not spans:
                raise InputError("the chat template marks nothing of what it writes as generated")
        else:
            turns = [n for n in range(first, len(messages)) if _says(messages[n])]
            spans = [self._turn(messages, turn, text) for turn in turns]
            if opening is not None:
                spans[0] = len(opening), spans[0][1]
        return text, spans

    def _turn(self, messages: list[Message], turn: int, text: str) -> CharSpan:
        """Where an assistant turn begins and ends in the text of the whole conversation."""
        before = self.render(messages[:turn])
        opening = self.render(messages[:turn], add_generation_prompt=True)
        after = self.render(messages[: turn + 1])
        begins = opening != before and text.startswith(opening)
        if begins and text.startswith(after):
            return len(opening), len(after.rstrip())
        one, other = (self.render(_replaced(messages, turn, word)) for word in PROBES)
        if PROBES[0] not in one or PROBES[1] not in other:
            raise InputError(f"the chat template does not write what message {turn} says")
        start = len(opening) if begins else len(common_prefix([text, one, other]))
        if text.startswith(after):
            return start, len(after.rstrip())
        # The template writes this turn otherwise once others follow: find its end from behind.
        rest = common_prefix([one[::-1], other[::-1]])[::-1]
        alone = self.render(_replaced(messages, turn, PROBES[0])[: turn + 1])
        closing = alone[alone.rindex(PROBES[0]) + len(PROBES[0]) :].rstrip()
        if not (text.endswith(rest) and rest.startswith(closing)):
            raise InputError(
                f"this chat template rewrites earlier turns, so what message {turn} says cannot be "
                "located; pass (prompt, completion) pairs instead"
            )
        return start, len(text) - len(rest) + len(closing)

    def _marked(self, messages: Sequence[Message]) -> list[CharSpan]:
        """The spans between the template's generation marks."""
        from transformers.utils.chat_template_utils import render_jinja_template

        variables = {**self.tokenizer.special_tokens_map, **self.options}
        variables["chat_template"] = self._template()
        _, (spans,) = self._guarded(
            lambda: render_jinja_template(
                conversations=[self._written(messages)],
                tools=self._tool_list(),
                return_assistant_tokens_mask=True,
                **variables,
            )
        )
        return [(start, end) for start, end in spans]

    def _apply(self, messages: Sequence[Message], **how: Any) -> str:
        return self._guarded(
            lambda: self.tokenizer.apply_chat_template(
                self._written(messages),
                tools=self._tool_list(),
                tokenize=False,
                **how,
                **self.options,
            )
        )

    def _guarded(self, render: Callable[[], Any]) -> Any:
        try:
            return render()
        except Exception as error:  # a template is a program of its own: it may raise anything
            raise InputError(
                f"the chat template refuses this conversation: {' '.join(str(error).split())}"
            ) from None

    def _written(self, messages: Sequence[Message]) -> list[Message]:
        """The messages with their content in the form that the template reads."""
        if not self.reads_parts:
            return list(messages)
        return [
            {**message, "content": [{"type": "text", "text": message["content"]}]}
            if message.get("content")
            else message
            for message in messages
        ]

    @cached_property
    def reads_parts(self) -> bool:
        """Whether the template writes nothing of a content that is a text, only lists of parts."""
        if not LOOP_OVER_CONTENT.search(self._template()):
            return False
        contents = PROBES[0], [{"type": "text", "text": PROBES[0]}]
        try:
            as_text, as_parts = (
                self.tokenizer.apply_chat_template(
                    [{"role": "user", "content": content}], tokenize=False, **self.options
                )
                for content in contents
            )
        except Exception:  # it wants more than one user's message: the conversation will show
            return False
        return PROBES[0] not in as_text and PROBES[0] in as_parts

    def _check_fields(self, messages: Sequence[Message]) -> None:
        """Raise InputError for what a message says and the template would leave out."""
        template = self._template()

        def given(*names: str) -> bool:
            return any(message.get(name) for message in messages for name in names)

        def knows(*names: str) -> bool:
            return any(re.search(rf"\b{name}\b", template) for name in names)

        missing = None
        if self.tools and not knows("tools"):
            missing = "tools"
        elif given("tool_calls") and not knows("tool_calls"):
            missing = "tool_calls"
        elif given(*REASONING) and not knows(*REASONING):
            missing = next(name for name in REASONING if given(name))
        elif any(message.get("name") and message["role"] != "tool" for message in messages):
            plain = [
                message if message["role"] == "tool" else {**message, "name": None}
                for message in messages
            ]
            missing = "name" if self.render(plain) == self.render(messages) else None
        if missing:
            raise InputError(
                f'the chat template does not write "{missing}", so the model would not see it: '
                "remove the field, or choose a tokenizer whose template does"
            )

    def _template(self) -> str:
        own = self.options.get("chat_template")
        return own or self.tokenizer.get_chat_template(tools=self._tool_list())

    def _tool_list(self) -> list[Any] | None:
        return list(self.tools) if self.tools else None


def messages_of(value: Sequence[Mapping[str, Any]]) -> list[Message]:
    """Messages as a template wants them: without fields that are null, content as text, the
    arguments of tool calls as a mapping. Raises InputError for any other form."""
    if not isinstance(value, list | tuple):
        raise InputError(f"messages must be a list, got {type(value).__name__}")
    return [_message(message) for message in value]


def _message(message: Any) -> Message:
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise InputError(f'a message must have "role" and "content", got {str(message)[:60]!r}')
    plain = {name: value for name, value in message.items() if value is not None}
    if plain.get("tool_calls"):
        plain["tool_calls"] = [_call(call) for call in plain["tool_calls"]]
    if "content" not in plain and not plain.get("tool_calls"):
        raise InputError(
            f'a message of role {plain["role"]!r} has no "content"; only one with tool calls may '
            "do without"
        )
    if "content" in plain:
        plain["content"] = _text(plain["content"])
    for name in REASONING:
        if not isinstance(plain.get(name, ""), str):
            raise InputError(f'"{name}" must be a text, got {str(plain[name])[:60]!r}')
    return plain


def _text(content: Any) -> str:
    """A content's text: parts of text are joined, parts of any other kind refused by name."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list | tuple):
        raise InputError(f'"content" must be a text or a list of parts, got {str(content)[:60]!r}')
    texts = []
    for part in content:
        kind = part.get("type", "text") if isinstance(part, Mapping) else type(part).__name__
        if isinstance(part, str):
            texts.append(part)
        elif kind == "text" and isinstance(part.get("text"), str):
            texts.append(part["text"])
        else:
            raise InputError(
                f'"content" has a part of type {kind!r}; only parts of text can be used'
            )
    return "".join(texts)


def _call(call: Any) -> Any:
    """A tool call whose arguments are a mapping, as templates expect, not JSON inside a text."""
    function = call.get("function") if isinstance(call, Mapping) else None
    holder = function if isinstance(function, Mapping) else call
    if not isinstance(holder, Mapping) or not isinstance(holder.get("name"), str):
        raise InputError(f'a tool call must have a "function" with a name, got {str(call)[:60]!r}')
    arguments = holder.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError:
            raise InputError(
                f'the arguments of the call of "{holder["name"]}" are no JSON: {arguments[:60]!r}'
            ) from None
        holder = {**holder, "arguments": arguments}
    return {**call, "function": holder} if isinstance(function, Mapping) else holder


def says_something(message: Message) -> bool:
    """Whether a message has words, reasoning or tool calls."""
    words = (message.get(name, "").strip() for name in ("content", *REASONING))
    return bool(message.get("tool_calls")) or any(words)


def _says(message: Message) -> bool:
    return message["role"] == "assistant"


def _continued(message: Message, following: Message) -> Message:
    """One assistant turn of the part that is the prompt and the part that goes on with it."""
    if any(following.get(name) for name in REASONING):
        raise InputError(
            "the completion has reasoning and goes on with an assistant turn that speaks already: "
            "reasoning comes first; put it into the prompt's turn"
        )
    return {**following, **message, "content": message["content"] + following.get("content", "")}


def _replaced(messages: list[Message], turn: int, words: str) -> list[Message]:
    """The conversation with other words in one turn, and nothing else in it."""
    return [*messages[:turn], {"role": "assistant", "content": words}, *messages[turn + 1 :]]
