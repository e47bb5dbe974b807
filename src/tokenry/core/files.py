"""Files that are there whole or not at all, and their bytes as text."""

from __future__ import annotations

import codecs
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenry.core.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor


BYTE_ORDER_MARKS = (  # UTF-32 first: its little-endian mark begins with UTF-16's
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def decoded(data: bytes, title: str) -> str:
    """Bytes as text: UTF-8, or what a byte order mark says, which is no part of the text.

    Args:
        data: all bytes of a file.
        title: what an error calls it.

    Raises:
        InputError: for bytes that are no text, with the place of the first of them; a zero byte is
            none in UTF-8, as it mostly is UTF-16 without a mark.
    """
    encoding = next((name for mark, name in BYTE_ORDER_MARKS if data.startswith(mark)), "utf-8")
    name = encoding.removesuffix("-sig").upper()
    if name == "UTF-8" and b"\0" in data:
        raise InputError(
            f"{title} is not text: byte {data.index(0)} is 0; if it is UTF-16, save it as UTF-8 or "
            "with a byte order mark"
        )
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise InputError(
            f"{title} is not {name} text: {error.reason} at byte {error.start}"
        ) from None


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside `path` to write to; renamed at the end, gone after a failure."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_whole(path: Path, text: str) -> None:
    """Write a text file; a failure leaves the former one and nothing else."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor], about: dict[str, Any]) -> None:
    """A safetensors file with `about` as its metadata, there whole or not at all."""
    from safetensors.torch import save_file

    with replacing(Path(path)) as temporary:
        whole = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
        save_file(whole, temporary, {"about": json.dumps(about)})


def read_tensors(path: str | Path, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and metadata of a file that `write_tensors` wrote; InputError for any other."""
    from safetensors import safe_open

    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {}).get("about", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except Exception as error:
        raise InputError(f"cannot read {path}: {error}") from error
    if about.get("kind") != kind:
        raise InputError(f"{path} does not hold a {kind} (it says: {about.get('kind')})")
    return tensors, about
