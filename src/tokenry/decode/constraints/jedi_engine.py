"""JediEngine: jedi, the completion engine of Python editors, for `Completion`.

jedi runs in a process of its own. A call that takes longer than its timeout is abandoned, its
process ended, and the next call starts another one: a hanging engine costs the timeout, not the
generation.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import weakref
from collections.abc import Sequence
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Lock, Thread

from tokenry.core.checks import in_range, one_of
from tokenry.core.errors import ConstraintError


class JediEngine:
    """Completes Python names in the interpreter's own environment.

        with JediEngine() as engine:
            constraint = Completion(engine, tokenizer, prefix="import math\\nx = math.")

    Where jedi itself breaks down, which half-written code can make it do, nothing is known either;
    `failures` counts how often. Needs jedi: pip install "tokenry[code]".

    Args:
        timeout: seconds for one answer, the start of jedi included.
        on_timeout: "raise" a ConstraintError, or "unknown": go on as if jedi could not tell, which
            forbids nothing there; `timeouts` counts how often.
        strict: names inside brackets must be known beforehand. That forbids a comprehension's
            variable before its `for`; False knows nothing about names inside brackets.
        folder: where the file stands; modules beside it can be imported (default: the current one).
    """

    def __init__(
        self,
        *,
        timeout: float = 20.0,
        on_timeout: str = "raise",
        strict: bool = True,
        folder: str | Path | None = None,
    ):
        if importlib.util.find_spec("jedi") is None:
            raise ConstraintError(
                'completing Python needs jedi, which is not installed: pip install "tokenry[code]"'
            )
        one_of("on_timeout", on_timeout, ("raise", "unknown"))
        in_range("timeout", timeout, "(0, inf)")
        self.timeout, self.on_timeout, self.strict = timeout, on_timeout, strict
        self.folder = folder
        self.timeouts = self.failures = 0
        # -P: modules that stand beside the program are not importable under their bare names
        program = Path(__file__).with_name("jedi_worker.py")
        self.command: Sequence[str] = (sys.executable, "-P", str(program))
        self._worker: Worker | None = None
        self._lock = Lock()

    def complete(self, text: str, caret: int) -> list[tuple[str, str]] | None:
        """What jedi proposes at the caret."""
        request = json.dumps({"text": text, "caret": caret, "strict": self.strict})
        with self._lock:
            line = self._ask(request, text, caret)
        if line is None:
            return None
        answer = json.loads(line)
        if "failed" in answer:
            self.failures += 1
            return None
        pairs = answer["completions"]
        return None if pairs is None else [(source, target) for source, target in pairs]

    def close(self) -> None:
        """End the process. A later call starts another one."""
        if self._worker is not None:
            self._worker.end()
            self._worker = None

    def __enter__(self) -> JediEngine:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _ask(self, request: str, text: str, caret: int) -> str | None:
        for last_try in (False, True):
            if self._worker is None:
                self._worker = Worker(self.command, self.folder)
            try:
                return self._worker.ask(request, self.timeout)
            except TimeoutError:
                self.close()
                if self.on_timeout == "unknown":
                    self.timeouts += 1
                    return None
                raise ConstraintError(
                    f"jedi gave no answer within {self.timeout:g} s after "
                    f"{text[max(0, caret - 40) : caret]!r}; give it a longer timeout, or pass "
                    'on_timeout="unknown" to go on without it there'
                ) from None
            except EOFError:
                self.close()
                if last_try:
                    raise ConstraintError(
                        "the process that runs jedi ended twice without an answer after "
                        f"{text[max(0, caret - 40) : caret]!r}; try it by hand: "
                        f"{' '.join(self.command)}"
                    ) from None
        return None


class Worker:
    """A process that answers each line that it reads with a line, asked with a time limit.

    A thread writes and reads, so that neither can block whoever asks; it ends with the process.
    """

    def __init__(self, command: Sequence[str], folder: str | Path | None = None):
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            encoding="utf-8",
            cwd=folder,
        )
        self._questions: SimpleQueue[str | None] = SimpleQueue()
        self._answers: SimpleQueue[str | None] = SimpleQueue()
        thread = Thread(
            target=converse, args=(self.process, self._questions, self._answers), daemon=True
        )
        thread.start()
        self._finish = weakref.finalize(self, stop, self.process, self._questions)

    def ask(self, question: str, timeout: float) -> str:
        """The answer.

        Raises:
            TimeoutError: there is none in time; the worker is of no use after it.
            EOFError: there never will be one.
        """
        self._questions.put(question)
        try:
            answer = self._answers.get(timeout=timeout)
        except Empty:
            raise TimeoutError from None
        if not answer:
            raise EOFError
        return answer

    def end(self) -> None:
        """End the process, whatever it is doing."""
        self._finish()


def converse(
    process: subprocess.Popen[str],
    questions: SimpleQueue[str | None],
    answers: SimpleQueue[str | None],
) -> None:
    """Put each question to the process; an empty answer says that it has ended."""
    assert process.stdin is not None
    assert process.stdout is not None
    while (question := questions.get()) is not None:
        try:
            process.stdin.write(question + "\n")
            process.stdin.flush()
            answers.put(process.stdout.readline())
        except (OSError, ValueError):
            answers.put(None)


def stop(process: subprocess.Popen[str], questions: SimpleQueue[str | None]) -> None:
    """End a worker's process and its thread."""
    questions.put(None)
    process.kill()
    process.wait()
