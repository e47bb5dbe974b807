"""run.json: everything that decides a run, compared when it is resumed and used by its report.

state             running, finished, diverged, interrupted, failed
objective, hyperparameters, rollout, dropout, lora, training (with the seed)
model, reference, frozen      names or folders; fingerprints: what their weights were
adapter           what became of the one that the model came with
dtype             of the weights as loaded, trained and saved, and of the passes
reading           how texts became tokens: max_length, truncate, as_chat, bad_rows, and a hash
                  of the chat template
data, eval_data   the file, its hash, and a hash of the tokens that were made of it
rewards, code     names of the functions, hashes of the user's files
versions, history, evaluation, seconds, steps
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from tokenry.core.errors import InputError, NonFiniteError
from tokenry.core.files import write_whole
from tokenry.core.versions import installed
from tokenry.learn.data import DataRows, Skipped

RECORD = "run.json"
DECIDING = (
    "objective",
    "hyperparameters",
    "model",
    "adapter",
    "reference",
    "frozen",
    "lora",
    "training",
    "rollout",
    "dropout",
    "reading",
    "rewards",
    "code",
    "dtype",
    "fingerprints",
)
INDIFFERENT = ("disable_tqdm", "report_to", "run_name", "log_level", "hub_token")
SAMPLE = 1024
RENAMED = {
    "sides": "completions",
    "parts_learning_rate": "modules_learning_rate",
}  # hyper-parameters


def read_record(folder: Path, what: str = "") -> dict[str, Any]:
    """The record of the run in a folder. Raises InputError, with `what` to do, if there is none."""
    path = folder / RECORD
    if not path.is_file():
        raise InputError(f"{folder} is not the folder of a training run (it has no {RECORD}){what}")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not JSON: {error}") from None
    if not isinstance(record, dict):
        raise InputError(f"{path} must hold a JSON object, got {type(record).__name__}")
    chosen = record.get("hyperparameters")
    if isinstance(chosen, dict):  # of a run that was begun under the former names
        record["hyperparameters"] = {RENAMED.get(key, key): chosen[key] for key in chosen}
    return record


def first_process() -> bool:
    """Whether this process writes; of several, launchers number them in RANK."""
    return os.environ.get("RANK", "0") == "0"


def write_record(output: Path, record: dict[str, Any]) -> None:
    """Write run.json, whole or not at all; the first process alone does."""
    if first_process():
        write_whole(output / RECORD, json.dumps(record, indent=1, default=str) + "\n")


def record_the_end(output: Path, record: dict[str, Any], trainer: Any, error: Any) -> None:
    """What stopped a run, in its record: it is neither running nor finished."""
    record["stopped"] = {"error": str(error) or type(error).__name__}
    if isinstance(error, NonFiniteError):
        record["state"] = "diverged"
        values = {"step": error.step, "metric": error.metric, "value": str(error.value)}
        record["stopped"] |= values | {"last_good_checkpoint": error.checkpoint}
    elif isinstance(error, KeyboardInterrupt | SystemExit):
        record["state"] = "interrupted"
    else:
        record["state"] = "failed"
    if trainer is not None:
        record["steps"] = trainer.state.global_step
        record["history"] = [dict(entry) for entry in trainer.state.log_history]
    with suppress(OSError):  # the disk may be what failed
        write_record(output, record)


def check_same_run(folder: Path, record: dict[str, Any]) -> None:
    """Raise InputError when the run that a folder holds was decided by anything else.

    Other versions of the libraries are no error; they are warned of.
    """
    former, now = read_record(folder), json.loads(json.dumps(record, default=str))
    for name in DECIDING:
        theirs, ours = _difference(former.get(name), now[name])
        if theirs == ours:
            continue
        if name == "fingerprints":
            raise InputError(
                f"the weights of {', '.join(ours)} are not those that the run in {folder} began "
                "with: they were changed in the meantime, so it cannot go on"
            )
        raise InputError(
            f"{folder} holds a run with {name} {theirs}, not {ours}: resume with the same "
            "settings, or choose another output folder"
        )
    for name in ("data", "eval_data"):
        theirs, ours = ((one.get(name) or {}) for one in (former, now))
        if any(theirs.get(key) != ours.get(key) for key in ("sha256", "tokens")):
            raise InputError(f"the {name} are not those of the run in {folder}: cannot resume it")
    theirs, ours = _difference(former.get("versions"), now["versions"])
    if theirs != ours:
        warnings.warn(
            f"the run in {folder} was begun with {theirs} and goes on with {ours}: its result may "
            "differ from a run in one go",
            stacklevel=3,
        )


def _difference(former: Any, now: Any) -> tuple[Any, Any]:
    """Two values; of two mappings, what differs in them."""
    if not isinstance(former, dict) or not isinstance(now, dict):
        return former, now
    names = [
        name
        for name in {**former, **now}
        if former.get(name) != now.get(name) and name not in INDIFFERENT
    ]
    return tuple({name: one.get(name) for name in names} for one in (former, now))  # type: ignore[return-value]


def name_or_full_path(value: Any) -> str:
    """A model's name, or the full path of its folder, so that the record holds from anywhere."""
    return str(Path(value).absolute()) if Path(value).exists() else str(value)


def plain_fields(objective: Any) -> dict[str, Any]:
    """The hyper-parameters of an objective, as JSON has them."""
    if not dataclasses.is_dataclass(objective):
        return {}
    values = {f.name: getattr(objective, f.name) for f in dataclasses.fields(objective)}
    return {
        name: value if isinstance(value, int | float | str | bool | None) else str(value)
        for name, value in values.items()
    }


def fingerprint(model: Any) -> str:
    """A hash of a model's weights: of names, shapes, dtypes and up to 1,024 numbers of each."""
    digest = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        flat = weight.detach().flatten()
        part = flat[:: max(1, len(flat) // SAMPLE)].cpu().contiguous()
        digest.update(f"{name} {weight.dtype} {list(weight.shape)}".encode())
        digest.update(part.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def code_hashes(places: Iterable[Any]) -> dict[str, str]:
    """The user's files among "file.py:name" texts, with the hashes of what they hold."""
    files = {place.rpartition(":")[0] for place in places if isinstance(place, str)}
    return {file: _hash(Path(file).read_bytes()) for file in sorted(files) if file.endswith(".py")}


def provenance(
    read: DataRows, rows: Sequence[Mapping[str, Any]], skipped: Skipped
) -> dict[str, Any]:
    """Where data came from, what was made of them before anything was added, what was left out."""
    ids = [{k: list(v) for k, v in row.items() if k.endswith("_ids")} for row in rows]
    again = read.file and can_be_read_again(read.file)
    return dataclasses.replace(read, rows=list(rows), skipped=skipped).to_dict() | {
        "file": name_or_full_path(read.file) if again else None,
        "tokens": _hash(json.dumps(ids, sort_keys=True)),
        "pairs": len(rows),
    }


def can_be_read_again(file: str) -> bool:
    """Whether it is a file or a folder, and no pipe, which a report would wait for."""
    return Path(file).is_file() or Path(file).is_dir()


def versions() -> dict[str, str]:
    """Of the libraries that a run's figures depend on."""
    return installed("tokenry", "torch", "transformers", "accelerate", "peft")


def _hash(content: str | bytes) -> str:
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()
