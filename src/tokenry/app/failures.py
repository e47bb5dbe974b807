"""Any exception as one line of the command line, and the exit code that goes with it.

what the user can mend   exit 2: errors of Tokenry and of the parser, of the system (OSError,
                         MemoryError, Unicode), of other libraries, and of the user's own Python
a fault of Tokenry       exit 1: any other exception, with the request to report it
"""

from __future__ import annotations

import errno
import sysconfig
import traceback
from pathlib import Path

import tokenry
from tokenry.app.verb import typed
from tokenry.core.errors import TokenryError
from tokenry.core.extras import extra_of, how_to_install

BAD_INPUT, INTERNAL = 2, 1
PACKAGE = Path(tokenry.__file__).resolve().parent
LIBRARIES = [Path(sysconfig.get_path(name)).resolve() for name in ("purelib", "platlib", "stdlib")]
OF_THE_SYSTEM = (OSError, MemoryError, UnicodeError, RecursionError)
FULL = (errno.ENOSPC, errno.EDQUOT)


def report(error: BaseException) -> tuple[str, int]:
    """The line, and the exit code."""
    if isinstance(error, TokenryError):
        return typed().translate(str(error)), BAD_INPUT
    if hasattr(error, "format_message"):  # the parser's own errors have it
        return str(error.format_message()), BAD_INPUT  # type: ignore[attr-defined]
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.strerror}: {error.filename}", BAD_INPUT
    if isinstance(error, OSError) and error.errno in FULL:
        return f"{error.strerror}: the disk is full where this was to be written", BAD_INPUT
    if isinstance(error, ModuleNotFoundError) and extra_of(error.name or ""):
        return f"this needs {error.name}: {how_to_install([str(error.name)])}", BAD_INPUT
    source = library(error)
    where = f"at {location(error)}; --debug shows the traceback"
    if source is None and not isinstance(error, (*OF_THE_SYSTEM, RuntimeError)):
        return f"internal error: {summary(error)} ({where}; please report it)", INTERNAL
    return f"{source + ': ' if source else ''}{summary(error)} ({where})", BAD_INPUT


def summary(error: BaseException) -> str:
    """The kind of the exception and the first lines of what it says."""
    if isinstance(error, UnicodeEncodeError):
        return (
            f"{error.object[error.start : error.end]!r} cannot be written in {error.encoding}: set "
            "PYTHONUTF8=1, or a UTF-8 locale"
        )
    kind = "out of memory" if isinstance(error, MemoryError) else type(error).__name__
    said = " ".join(str(error).split())
    return f"{kind}: {said[:300]}{'…' * (len(said) > 300)}" if said else kind


def library(error: BaseException) -> str | None:
    """The package that raised it; None if it is Tokenry or a C function that Tokenry called."""
    root = type(error).__module__.partition(".")[0]
    if root not in ("builtins", "tokenry", "__main__"):
        return root
    frames = traceback.extract_tb(error.__traceback__)
    last = Path(frames[-1].filename).resolve() if frames else PACKAGE
    if last.is_relative_to(PACKAGE):
        return None
    for folder in LIBRARIES:
        if last.is_relative_to(folder):
            return last.relative_to(folder).parts[0].removesuffix(".py")
    return last.name  # the user's own file


def location(error: BaseException) -> str:
    """File and line of the last frame that is Tokenry's or the user's own."""
    frames = traceback.extract_tb(error.__traceback__)
    for frame in reversed(frames):
        file = Path(frame.filename).resolve()
        if file.is_relative_to(PACKAGE):
            return f"{file.relative_to(PACKAGE.parent)}:{frame.lineno}"
        if not any(file.is_relative_to(folder) for folder in LIBRARIES):
            return f"{frame.filename}:{frame.lineno}"
    return "an unknown place"
