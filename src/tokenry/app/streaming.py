"""How `tokenry generate` prints a text: as it grows, and at the end what it took."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tokenry.app.terminal import notes, plain_table, print_json, progress
from tokenry.text.whole import whole_text

if TYPE_CHECKING:
    from tokenry.app.continuation import Continuation, Limits, OnToken


class Stream:
    """Prints a text as it grows: its whole characters, as far as `certain` says that they stay."""

    def __init__(self, tokenizer: Any = None, certain: Callable[[str], str] = str):
        self.tokenizer, self.certain = tokenizer, certain
        self.printed = ""

    def __call__(self, ids: list[int]) -> None:
        self._print(self.certain(whole_text(self.tokenizer, ids)))

    def add(self, part: str) -> None:
        """More of a text all of which stays."""
        self._print(self.printed + part)

    def finish(self, text: str) -> None:
        self._print(text)
        print(flush=True)

    def _print(self, text: str) -> None:
        sys.stdout.write(text[len(self.printed) :])
        sys.stdout.flush()
        self.printed = max(self.printed, text, key=len)


def show(
    run: Callable[[OnToken], Continuation],
    stream: Stream | None,
    limits: Limits,
    as_json: bool,
    particles: int = 1,
) -> None:
    """Print what `run` makes: as it comes, where there is a stream, else when it is whole."""
    if stream is not None:
        with warnings_as_notes():
            result = run(stream)
            stream.finish(result.text)
    else:
        with warnings_as_notes(), progress() as bar:
            task = bar.add_task(f"{particles} texts, tokens", total=limits.max_new_tokens)
            result = run(lambda ids: bar.update(task, completed=len(ids)))
        if as_json:
            print_json(result.to_dict())
            return
        print(result.text)
    remark(result)


@contextmanager
def warnings_as_notes() -> Iterator[None]:
    """Each warning to the user as one line on standard error, once."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        yield
    for line in dict.fromkeys(str(w.message) for w in caught if w.category is UserWarning):
        notes().print(f"note: {line}", style="dim", markup=False, highlight=False)


def remark(result: Continuation) -> None:
    """On standard error: what it took, and the rivals of the text that was printed."""
    from rich.text import Text

    console = notes()
    parts = [f"{result.tokens} tokens in {result.seconds:.1f} s", f"{result.forward_passes} passes"]
    if result.checks_per_token:
        parts.append(f"{result.checks_per_token:.1f} checks per token")
    if result.log_evidence is not None and len(result.texts) > 1:
        parts.append(f"log evidence {result.log_evidence:.2f}")
    console.print(f"[dim]{', '.join(parts)}[/]")
    if len(result.texts) > 1:
        table = plain_table("log weight", "text", numbers=("log weight",))
        order = sorted(zip(result.log_weights, result.texts, strict=True), reverse=True)
        for weight, text in order:
            table.add_row(f"{weight:.2f}", Text(text))
        console.print(table)
