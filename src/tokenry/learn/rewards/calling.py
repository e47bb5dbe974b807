"""Calls of one reward function, in a process of its own: that is how a hang is ended.

    place "FILE.py:FUNC" or a function that can be pickled  ->  Worker, a process that stays
    any other function, or no timeout                       ->  Local, this process

A function that does not answer in time, raises, or takes its process down with it is a
`RewardCallError` here, in the main thread, in other threads and in other processes alike: no signal
is involved. A worker that was ended starts again with the next call. Workers are plain processes,
so that a script without `if __name__ == "__main__"` is not run a second time, and a function of
such a script cannot be sent.
"""

from __future__ import annotations

import json
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Literal, Protocol

from tokenry.core.errors import InputError, TokenryError
from tokenry.learn.rewards import worker
from tokenry.learn.rewards.worker import Signature, name_of, plain_value, signature_of
from tokenry.learn.user_code import user_value

LOADING = 300.0  # seconds for a worker to import a function, which may import a whole framework
START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from tokenry.learn.rewards.worker import main; main()"
)
Why = Literal["raised", "hung", "ended", "refused"]


class RewardCallError(Exception):
    """A call without a value. why: what happened, for the counts; its text says it in words."""

    def __init__(self, why: Why, text: str):
        super().__init__(text)
        self.why: Why = why


class Caller(Protocol):
    """One reward function. name: for errors and records. signature: how it wants to be called."""

    name: str
    signature: Signature

    def __call__(self, positional: Sequence[Any], named: Mapping[str, Any]) -> Any:
        """What the function gives, in plain numbers and lists. Raises RewardCallError."""
        ...

    def close(self) -> None:
        """Give back what the calls hold."""
        ...


class Local:
    """A function called in this process, where nothing ends a hang."""

    def __init__(self, function: Callable[..., Any]):
        self.function = function
        self.name = name_of(function)
        self.signature = signature_of(function)

    def __call__(self, positional: Sequence[Any], named: Mapping[str, Any]) -> Any:
        try:
            return plain_value(self.function(*positional, **named))
        except TokenryError:
            raise
        except Exception as error:
            raise RewardCallError("raised", f"{type(error).__name__}: {error}") from error

    def close(self) -> None:
        pass


class Worker:
    """A function that lives in a process of its own, started once and asked again and again.

    Args:
        form: "place" (file.py:name) or "pickle". content: the place, or the pickled function.
        timeout: seconds for one call, in (0, inf).

    Raises:
        RewardCallError: "refused" when the process cannot load the function, with the reason.
    """

    def __init__(self, form: str, content: Any, timeout: float):
        self.message = pickle.dumps((form, content))
        self.timeout = timeout
        self.lock = threading.Lock()  # one call at a time: answers are matched by their order
        self.ending: Any = None
        self.signature, self.name = self._start()

    def __call__(self, positional: Sequence[Any], named: Mapping[str, Any]) -> Any:
        content = pickle.dumps((tuple(positional), dict(named)))
        with self.lock:
            if self.ending is None or not self.ending.alive:
                self._start()
            try:
                kind, value = self._answer_to(content, self.timeout)
            except BaseException:  # an answer that still comes would be taken for the next one
                self.close()
                raise
        if kind == "raised":
            raise RewardCallError("raised", value)
        return value

    def close(self) -> None:
        if self.ending is not None:
            self.ending()
            self.ending = None

    def _start(self) -> tuple[Signature, str]:
        self.process = subprocess.Popen(
            [sys.executable, "-c", START, json.dumps(sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # what the function starts itself is ended with it
        )
        self.answers: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        listening = threading.Thread(
            target=_listen, args=(self.process.stdout, self.answers), daemon=True
        )
        listening.start()
        self.ending = weakref.finalize(self, _end, self.process)
        try:
            kind, value = self._answer_to(self.message, max(LOADING, self.timeout))
        except BaseException:
            self.close()
            raise
        if kind == "refused":
            self.close()
            raise RewardCallError("refused", value)
        return value

    def _answer_to(self, content: bytes, seconds: float) -> tuple[str, Any]:
        assert self.process.stdin is not None
        with suppress(OSError):  # the answer says that the process has ended
            worker.write_frame(self.process.stdin, content)
        try:
            answer = self.answers.get(timeout=seconds)
        except queue.Empty:
            raise RewardCallError("hung", f"no answer in {seconds:g} seconds") from None
        if answer is None:
            code = self.process.wait()
            raise RewardCallError("ended", f"its process ended with code {code}")
        return pickle.loads(answer)


def caller_of(function: str | Callable[..., Any], timeout: float | None) -> Caller:
    """The way to call a function: in a worker where that can be done.

    Args:
        function: "file.py:name", which is imported in the worker, or a callable.
        timeout: seconds for one call; None: in this process, without one.

    Raises:
        InputError: a place that cannot be loaded, or holds no function.
    """
    if isinstance(function, str):
        if timeout is None:
            return Local(_callable(function, user_value(function)))
        try:
            return Worker("place", function, timeout)
        except RewardCallError as failure:
            raise InputError(f"the reward {function} cannot be loaded: {failure}") from None
    _callable(repr(function), function)
    if timeout is None:
        return Local(function)
    try:
        if getattr(function, "__module__", None) == "__main__":
            raise RewardCallError("refused", "it is defined in the script that runs")
        return Worker("pickle", pickle.dumps(function), timeout)
    except Exception as error:  # pickle has no one exception for what it cannot send
        local = Local(function)
        warnings.warn(
            f"the reward function {local.name} cannot be sent to a process of its own "
            f"({' '.join(str(error).split())[:200]}), so it runs here and nothing ends it if it "
            "hangs: put it into a file and name it as FILE.py:FUNC, or set reward_timeout to None",
            stacklevel=2,
        )
        return local


def _callable(name: str, value: Any) -> Callable[..., Any]:
    if not callable(value):
        raise InputError(
            "a reward must be a function (prompt, completion) or (prompts, completions, **columns)"
            f", got {name}"
        )
    return value


def _listen(stream: Any, answers: queue.SimpleQueue[bytes | None]) -> None:
    """Frames of a worker's stream, and None at its end."""
    with suppress(OSError, ValueError):
        while (frame := worker.read_frame(stream)) is not None:
            answers.put(frame)
    answers.put(None)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a worker and whatever it has started."""
    with suppress(OSError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
    process.wait()
    if process.stdin is not None:
        with suppress(OSError):
            process.stdin.close()
