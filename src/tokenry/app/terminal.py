"""What the verbs share: where output goes, and how files are read and written."""

import json
import math
import os
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from tokenry.core.errors import InputError
from tokenry.core.files import decoded, write_whole

Model = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        help="A name that [cyan]tokenry models[/] lists, a hub id (owner/name), or a folder.",
    ),
]
Seed = Annotated[
    int,
    typer.Option("--seed", min=0, max=2**32 - 1, help="The same seed gives the same result."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


def results() -> Any:
    """The console for results."""
    from rich.console import Console

    return Console(file=sys.stdout, highlight=False)


def notes() -> Any:
    """The console for progress and remarks: standard error."""
    from rich.console import Console

    return Console(file=sys.stderr, highlight=False)


def plain_table(*titles: str, numbers: Collection[str] = (), gap: int = 2) -> Any:
    """A table without lines, with its first columns; those of `numbers` stand on the right."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, gap, 0, 0))
    for title in titles:
        table.add_column(title, justify="right" if title in numbers else "left")
    return table


@contextmanager
def working(what: str) -> Iterator[None]:
    """A spinner while something takes its time; nothing when nobody watches."""
    console = notes()
    with console.status(what) if console.is_terminal else nullcontext():
        yield


@contextmanager
def progress() -> Iterator[Any]:
    """A progress bar on standard error that vanishes when it is done."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    console = notes()
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        yield bar


def load(name: str) -> Any:
    """The model and tokenizer, with a spinner while they are read."""
    from tokenry.model import hub

    if name in hub.NAMED_MODELS:
        hub.folder(name)  # fetches with a progress bar of its own
    with working(f"loading {name}"):
        return hub.load(name)


def load_for(name: str, chat: bool, option: str = "--chat") -> Any:
    """The same, with the chat template that an option wants. Raises InputError."""
    loaded = load(name)
    if chat and loaded.tokenizer.chat_template is None:
        raise InputError(f"{name} has no chat template: leave {option} out")
    return loaded


def check_model(name: str) -> None:
    """Raise ModelError or UnknownNameError for a model that cannot be had, before the imports that
    take seconds; nothing is fetched."""
    from tokenry.model import hub

    if name not in hub.NAMED_MODELS:
        hub.locate(name)


def print_json(value: Any) -> None:
    """One JSON document on standard output; infinities and NaN become null."""
    encoding = (getattr(sys.stdout, "encoding", None) or "utf-8").lower()
    text = json.dumps(
        finite(value), indent=1, ensure_ascii=not encoding.startswith("utf"), allow_nan=False
    )
    sys.stdout.write(text + "\n")


def finite(value: Any) -> Any:
    """The same value with None for every number that JSON cannot write."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


def read_text(path: str | Path) -> str:
    """A file's text, `-` being standard input. Raises InputError."""
    if str(path) == "-":
        return standard_input()
    path = Path(path)
    if not path.exists():
        raise InputError(f"no such file: {path}")
    if path.is_dir():
        raise InputError(f"{path} is a folder: name a file")
    try:
        return one_kind_of_line(decoded(path.read_bytes(), str(path)))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None


def text_or_file(text: str | None, file: Path | None) -> str:
    """The text of an argument, of `-` (standard input), or of `--file`. Raises InputError."""
    if (text is None) == (file is None):
        raise InputError("give a text or --file, one of them")
    return read_text(file or "-") if file or text == "-" else text or ""


def standard_input() -> str:
    if sys.stdin is None:
        raise InputError("standard input is closed: there is nothing to read at -")
    binary = getattr(sys.stdin, "buffer", None)  # as bytes: the locale's encoding may not be UTF-8
    if binary is None:
        return sys.stdin.read()
    return one_kind_of_line(decoded(binary.read(), "standard input"))


def one_kind_of_line(text: str) -> str:
    """Lines that end with one newline each, as Python reads text."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def write_text(path: str | Path, text: str) -> None:
    """Write a file that is there whole or not at all. Raises InputError."""
    path = Path(path)
    check_writable(path)
    try:
        write_whole(path, text)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from None


def check_writable(path: str | Path) -> None:
    """Raise InputError, before any work is done, if a file cannot be written there."""
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{path} is a folder: name a file to write")
    try:
        path.absolute().parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from None
    if not os.access(path.absolute().parent, os.W_OK):
        raise InputError(f"cannot write {path}: the folder is not writable")
