"""Small files to try every command with, under the names that the documentation uses."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from tokenry.core.errors import InputError, UnknownNameError
from tokenry.tasks.preferences import helpful_file

SAMPLES = {
    "prefs.jsonl": "48 preference pairs: prompt, chosen, rejected (helpful against evasive)",
    "heldout.jsonl": "12 more of them, with other prompts",
    "prompts.jsonl": "16 prompts without answers, for on-policy objectives",
    "rules.py": "rewards for them: functions of a prompt and a completion",
    "rollout.yaml": "settings for on-policy objectives",
    "settings.yaml": "settings for objectives on pairs",
    "person.json": "a JSON schema: a name and an age",
    "users.json": "a JSON schema: a list of two objects",
    "notes.txt": "a text of 120 words, to inspect and to compress",
    "mine.csv": "a minute of requests: arrival, prompt and output, for plans",
}


def sample_file(name: str) -> Path:
    """Where a sample lies in the package. Raises UnknownNameError."""
    if name not in SAMPLES:
        raise UnknownNameError("sample", name, SAMPLES)
    if name in ("prefs.jsonl", "heldout.jsonl"):
        return helpful_file("train" if name == "prefs.jsonl" else "heldout")
    return Path(str(files("tokenry.tasks"))) / "data" / "samples" / name


def copy_samples(folder: Path, names: Sequence[str] = ()) -> list[Path]:
    """Copy samples (all of them without names) into a folder, which is made if need be.

    Nothing is overwritten. Raises InputError for a name that is taken there, UnknownNameError.
    """
    wanted = {name: sample_file(name) for name in names or SAMPLES}
    taken = [name for name in wanted if (folder / name).exists()]
    if taken:
        raise InputError(f"{folder} has {', '.join(taken)} already: choose another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return [Path(shutil.copyfile(source, folder / name)) for name, source in wanted.items()]
    except OSError as error:
        raise InputError(f"cannot write to {folder}: {error.strerror}") from None
