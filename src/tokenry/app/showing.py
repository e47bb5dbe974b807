"""How `tokenry generate` shows a text: as it grows, and at the end what it took."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tokenry.app.terminal import notes

if TYPE_CHECKING:
    from tokenry.app.continuation import Continuation


class Stream:
    """Prints a text as it grows; a character that is not whole yet waits.

    cut: what is shown of a text. held_back: characters at its end that a later token may cut off.
    """

    def __init__(self, tokenizer: Any, cut: Callable[[str], str] = str, held_back: int = 0):
        self.tokenizer, self.cut, self.held_back = tokenizer, cut, held_back
        self.shown = ""

    def __call__(self, ids: list[int]) -> None:
        text = self.tokenizer.decode(ids, skip_special_tokens=True)
        if not text.endswith("\N{REPLACEMENT CHARACTER}"):
            self._show(self.cut(text[: len(text) - self.held_back]))

    def finish(self, text: str) -> None:
        self._show(text)
        print(flush=True)

    def _show(self, text: str) -> None:
        sys.stdout.write(text[len(self.shown) :])
        sys.stdout.flush()
        self.shown = max(self.shown, text, key=len)


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
