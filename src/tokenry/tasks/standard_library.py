"""Text that is on every machine: the source of Python's standard library."""

from __future__ import annotations

import importlib
import inspect
import random
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tokenry.core.batch import TokenBatch

MODULES = (
    "argparse", "ast", "bdb", "calendar", "cmd", "codecs", "configparser", "copy", "csv",
    "datetime", "dataclasses", "difflib", "dis", "enum", "fileinput", "fractions", "ftplib",
    "functools", "getpass", "gettext", "glob", "heapq", "imaplib", "inspect", "ipaddress",
    "json.decoder", "json.encoder", "linecache", "locale", "logging", "mailbox", "mimetypes",
    "ntpath", "optparse", "os", "pathlib", "pdb", "pickle", "platform", "plistlib", "poplib",
    "posixpath", "pprint", "queue", "random", "sched", "selectors", "shelve", "shlex", "shutil",
    "smtplib", "socket", "socketserver", "sqlite3.dump", "ssl", "statistics", "string",
    "subprocess", "tarfile", "tempfile", "textwrap", "threading", "timeit", "tokenize", "trace",
    "traceback", "tracemalloc", "typing", "unittest.case", "uuid", "warnings", "weakref", "zipfile",
)  # fmt: skip
"""Modules of some length."""
SMALL = (
    "calendar.leapdays", "calendar.monthrange", "calendar.weekday", "colorsys.hls_to_rgb",
    "colorsys.hsv_to_rgb", "colorsys.rgb_to_hls", "colorsys.rgb_to_yiq", "fnmatch.filter",
    "fnmatch.fnmatch", "fnmatch.translate", "glob.escape", "heapq.nsmallest", "linecache.getline",
    "shlex.join", "shlex.quote", "shutil.copy", "shutil.copymode", "shutil.ignore_patterns",
    "statistics.median", "statistics.median_low", "statistics.mode", "string.capwords",
    "textwrap.dedent", "textwrap.fill", "textwrap.indent", "textwrap.shorten",
)  # fmt: skip
"""Functions of few lines."""
DOCUMENTED = (
    "bisect.insort", "csv.reader", "difflib.get_close_matches", "difflib.unified_diff",
    "fileinput.input", "functools.reduce", "functools.wraps", "glob.glob", "heapq.merge",
    "itertools.groupby", "itertools.islice", "itertools.product", "json.dump", "json.dumps",
    "json.loads", "os.fwalk", "os.makedirs", "os.removedirs", "os.walk", "random.choices",
    "random.sample", "shutil.copyfile", "shutil.copytree", "shutil.make_archive", "shutil.move",
    "shutil.rmtree", "shutil.unpack_archive", "shutil.which", "socket.create_connection",
    "statistics.quantiles", "statistics.stdev", "struct.unpack", "subprocess.run",
    "tempfile.NamedTemporaryFile", "tempfile.mkstemp", "textwrap.dedent", "textwrap.shorten",
    "textwrap.wrap", "urllib.parse.urlparse", "warnings.filterwarnings",
)  # fmt: skip
"""Functions with documentation of some length."""


def source(module: str) -> str:
    """The source of a module."""
    return inspect.getsource(importlib.import_module(module))


def member(name: str) -> Any:
    """The function or class of a full name, such as "textwrap.wrap"."""
    module, _, name = name.rpartition(".")
    return getattr(importlib.import_module(module), name)


def drawn(names: Sequence[str], count: int, generator: torch.Generator) -> list[str]:
    """`count` of the names, in random order."""
    order = torch.randperm(len(names), generator=generator)
    return [names[int(index)] for index in order[:count]]


def shuffled(generator: random.Random, least: int = 0) -> list[bytes]:
    """The source of all modules that are one file, of more than `least` bytes, in random order."""
    texts = [text for text in sources() if len(text) > least]
    generator.shuffle(texts)
    return texts


@lru_cache(maxsize=1)
def sources() -> tuple[bytes, ...]:
    """The source of all modules that are one file, by name."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    return tuple(file.read_bytes() for file in sorted(folder.glob("*.py")))


def token_pieces(tokenizer: Any, length: int, count: int, seed: int) -> Tensor:
    """Ids [count, length] from the beginning of a line on, each row from another module."""
    generator = random.Random(seed)
    rows: list[list[int]] = []
    for text in (text.decode() for text in shuffled(generator)):
        start = text.find("\n", generator.randrange(max(len(text) - 10 * length, 1))) + 1
        ids = tokenizer(text[start : start + 10 * length])["input_ids"]
        if len(ids) >= length:
            rows.append(ids[:length])
        if len(rows) == count:
            break
    return torch.tensor(rows)


def byte_pieces(
    texts: Sequence[bytes], length: int, count: int, generator: random.Random
) -> Tensor:
    """Bytes [count, length], each row from a random place of a random one of the texts, which are
    longer than that."""
    rows = []
    for text in generator.choices(texts, k=count):
        start = generator.randrange(len(text) - length)
        rows.append(list(text[start : start + length]))
    return torch.tensor(rows)


def beginnings(
    tokenizer: Any, modules: Sequence[str], length: int, count: int, seed: int
) -> tuple[list[list[int]], list[list[int]]]:
    """`count` cuts of `length` tokens from different modules, of those that are 20 times as long,
    and the ids of all other modules."""
    generator = torch.Generator().manual_seed(seed)
    order = drawn(modules, len(modules), generator)
    ids = {name: tokenizer(source(name), verbose=False)["input_ids"] for name in order}
    chosen = [name for name in order if len(ids[name]) > 20 * length][:count]
    cuts = []
    for name in chosen:
        start = int(torch.randint(0, len(ids[name]) - length, (), generator=generator))
        cuts.append(ids[name][start : start + length])
    return cuts, [ids[name] for name in order if name not in chosen]


@dataclass(frozen=True)
class LibraryText:
    """The source of some modules, letter by letter, as a world of texts.

    Args:
        modules: their names.
        length: letters of a text. start: those of a prompt, the first ones of a text.
    """

    modules: tuple[str, ...]
    length: int = 96
    start: int = 16

    @cached_property
    def text(self) -> str:
        """What is neither ASCII nor the end of a line has become "?"."""
        whole = "\n".join(map(source, self.modules))
        return "".join(c if c == "\n" or " " <= c <= "~" else "?" for c in whole)

    @cached_property
    def alphabet(self) -> str:
        """The characters in their order."""
        return "".join(sorted(set(self.text)))

    @property
    def size(self) -> int:
        """How many characters there are."""
        return len(self.alphabet)

    @cached_property
    def ids(self) -> Tensor:
        """The text as places in the alphabet."""
        number = {character: at for at, character in enumerate(self.alphabet)}
        return torch.tensor([number[character] for character in self.text])

    def batch(self, count: int, generator: torch.Generator) -> TokenBatch:
        """Texts [count, length] from random places, every letter but the first a target."""
        starts = torch.randint(len(self.ids) - self.length, (count, 1), generator=generator)
        return TokenBatch.from_ids(self.ids[starts + torch.arange(self.length)].tolist())
