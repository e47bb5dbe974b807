"""How `tokenry generate` shows a text: as it grows, and at the end what it took."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tokenry.app.terminal import notes
from tokenry.text.whole import whole_text

if TYPE_CHECKING:
    from tokenry.app.continuation import Continuation


class Stream:
    """Prints a text as it grows: its whole characters, as far as `certain` says that they stay."""

    def __init__(self, tokenizer: Any, certain: Callable[[str], str] = str):
        self.tokenizer, self.certain = tokenizer, certain
        self.shown = ""

    def __call__(self, ids: list[int]) -> None:
        self._show(self.certain(whole_text(self.tokenizer, ids)))

    def finish(self, text: str) -> None:
        self._show(text)
        print(flush=True)

    def _show(self, text: str) -> None:
        sys.stdout.write(text[len(self.shown) :])
        sys.stdout.flush()
        self.shown = max(self.shown, text, key=len)


@contextmanager
def warnings_as_notes() -> Iterator[None]:
    """Each warning to the user as one line on standard error, once."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        yield
    for line in dict.fromkeys(str(w.message) for w in caught if w.category is UserWarning):
        notes().print(f"note: {line}", style="dim", markup=False, highlight=False)


def remark(found: Continuation) -> None:
    """On standard error: what it took, and the rivals of the text that was printed."""
    from rich.table import Table
    from rich.text import Text

    console = notes()
    parts = [f"{found.tokens} tokens in {found.seconds:.1f} s", f"{found.forward_passes} passes"]
    if found.checks_per_token:
        parts.append(f"{found.checks_per_token:.1f} checks per token")
    if found.log_evidence is not None and len(found.texts) > 1:
        parts.append(f"log evidence {found.log_evidence:.2f}")
    console.print(f"[dim]{', '.join(parts)}[/]")
    if len(found.texts) > 1:
        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column("log weight", justify="right")
        table.add_column("text")
        order = sorted(zip(found.log_weights, found.texts, strict=True), reverse=True)
        for weight, text in order:
            table.add_row(f"{weight:.2f}", Text(text))
        console.print(table)
