"""The other side of `rewards.calling`: a process that holds one reward function.

    b"place" | b"pickle", what  ->  ("ready", signature) | ("refused", why)
    positional, named           ->  ("value", result)    | ("raised", why)

Frames are pickles behind their length, over the standard streams that the process was started with;
the function itself sees an empty input, and what it prints goes to the error stream. It runs in the
main thread, which libraries that end themselves by a signal (math-verify) ask for. When the asking
process ends, however it ends, this one does too, even inside a function that hangs.
"""

from __future__ import annotations

import dataclasses
import inspect
import os
import pickle
import queue
import signal
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Any, BinaryIO

LENGTH = struct.Struct("<Q")


@dataclass(frozen=True)
class Signature:
    """How a reward function wants to be called.

    Args:
        batched: with all rows at once by name, TRL's way; else with one prompt and one completion.
        required: parameters without a default, but for those that every batch has.
        named: all parameters. every_column: whether it takes any column (`**columns`).
    """

    batched: bool
    required: tuple[str, ...] = ()
    named: tuple[str, ...] = ()
    every_column: bool = False


def signature_of(function: Callable[..., Any]) -> Signature:
    """TRL's signature where a parameter is called `completions` or all keywords are taken; else a
    prompt and a completion.

    A function that hands columns on says which it cannot do without, as its `required_columns`.
    """
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):  # some functions written in C have none
        return Signature(False)
    every = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    single = "prompt" in parameters or "completion" in parameters
    if "completions" not in parameters and not (every and not single):
        return Signature(False)
    plain = {
        name: p for name, p in parameters.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
    }
    required = [name for name, p in plain.items() if p.default is p.empty]
    required += getattr(function, "required_columns", ())
    return Signature(True, tuple(required), tuple(plain), every)


def plain_value(value: Any) -> Any:
    """Numbers of torch or NumPy as Python's, lists likewise; what is neither, as its text."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, list | tuple):
        return [plain_value(one) for one in value]
    return repr(value)[:200]


def write_frame(stream: IO[bytes], content: bytes) -> None:
    stream.write(LENGTH.pack(len(content)) + content)
    stream.flush()


def read_frame(stream: IO[bytes]) -> bytes | None:
    """The next frame, or None when the stream has ended."""
    head = stream.read(LENGTH.size)
    if len(head) < LENGTH.size:
        return None
    (size,) = LENGTH.unpack(head)
    content = stream.read(size)
    return content if len(content) == size else None


def main() -> None:
    """Serve one function until the asking process goes away."""
    frames, answers = _own_streams()
    asked: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def listen() -> None:
        while (frame := read_frame(frames)) is not None:
            asked.put(frame)
        _end_all()  # nobody is there to hear an answer

    threading.Thread(target=listen, daemon=True).start()

    def answer(kind: str, content: Any) -> None:
        write_frame(answers, pickle.dumps((kind, content)))

    try:
        function = _loaded(*pickle.loads(asked.get()))
        answer("ready", (signature_of(function), name_of(function)))
    except BaseException as error:
        answer("refused", _text(error))
        return
    while True:
        positional, named = pickle.loads(asked.get())
        try:
            answer("value", plain_value(function(*positional, **named)))
        except BaseException as error:
            answer("raised", _text(error))


def _end_all() -> None:
    """End this process and, where it leads a session of its own, what the function has started."""
    if hasattr(os, "killpg") and os.getpgrp() == os.getpid():
        os.killpg(os.getpid(), signal.SIGKILL)
    os._exit(0)


def _own_streams() -> tuple[BinaryIO, BinaryIO]:
    """The streams to the asking process, out of the reach of the function."""
    frames, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    return frames, answers


def _loaded(form: str, content: Any) -> Callable[..., Any]:
    if form == "pickle":
        return pickle.loads(content)
    from tokenry.learn.user_code import user_value

    function = user_value(content)
    if not callable(function):
        raise TypeError(f"{content} is {type(function).__name__}, not a function")
    return function


def name_of(function: Any) -> str:
    """A function's name; of a dataclass also its numbers and texts."""
    if not dataclasses.is_dataclass(function) or isinstance(function, type):
        return getattr(function, "__name__", type(function).__name__)
    simple = {k: v for k, v in vars(function).items() if isinstance(v, int | float | str)}
    return f"{type(function).__name__}({', '.join(f'{k}={v!r}' for k, v in simple.items())})"


def _text(error: BaseException) -> str:
    from tokenry.core.errors import TokenryError

    text = " ".join(str(error).split())
    return text if isinstance(error, TokenryError) else f"{type(error).__name__}: {text}"


if __name__ == "__main__":
    main()
