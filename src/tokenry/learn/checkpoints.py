"""Checkpoints that are there whole or not at all, and what is needed to go on from one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import Trainer
from transformers.trainer_utils import rotate_checkpoints

from tokenry.core.errors import InputError, ModelError

OPTIMIZER_STATES = ("optimizer.pt", "optimizer.bin", "optimizer_*", "global_step*")


def last_checkpoint(output: Path, before: int | None = None) -> str | None:
    """The newest complete checkpoint, or the newest of an earlier step than `before`.

    The trainer's state is the last file that a save writes.
    """
    complete = []
    for state in output.glob("checkpoint-*/trainer_state.json"):
        step = state.parent.name.removeprefix("checkpoint-")
        try:
            json.loads(state.read_text(encoding="utf-8"))
        except json.JSONDecodeError:
            continue  # killed while writing
        if step.isdigit() and (before is None or int(step) < before):
            complete.append((int(step), str(state.parent)))
    return max(complete)[1] if complete else None


def check_resumable(checkpoint: str) -> None:
    """Raise InputError for a checkpoint without the states that a run goes on with.

    The Trainer would start them anew: another run, under the old one's name.
    """
    folder = Path(checkpoint)
    missing = [
        what
        for what, patterns in (
            ("optimizer state", OPTIMIZER_STATES),
            ("schedule state", ("scheduler.pt",)),
            ("random state", ("rng_state*.pth",)),
        )
        if not any(any(folder.glob(pattern)) for pattern in patterns)
    ]
    if missing:
        raise InputError(
            f"{checkpoint} has no {' and no '.join(missing)} (save_only_model, or files removed): "
            "the run cannot go on from it; start a new one with it as the model"
        )


class WholeCheckpoints(Trainer):
    """A Trainer whose checkpoints and results appear under their names when they are complete.

    A disk that fills leaves the former files and no half-written folder. Checkpoints are written to
    `.partial-N` beside them and renamed when all processes have written theirs.
    """

    _partial: Path | None = None

    def _get_output_dir(self, trial: Any) -> str:
        return super()._get_output_dir(trial) if self._partial is None else str(self._partial)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        output, step = Path(self._get_output_dir(trial)), self.state.global_step
        partial = output / f".partial-{step}"
        if self.args.should_save:
            shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed
        self.accelerator.wait_for_everyone()
        with removed_on_failure(partial):
            self._partial = partial
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self._partial = None
            best = self.state.best_model_checkpoint
            if best is not None and Path(best).parent == partial:
                self.state.best_model_checkpoint = str(output / Path(best).name)
                if self.args.should_save:
                    self.state.save_to_json(str(partial / Path(best).name / "trainer_state.json"))
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                name = f"checkpoint-{step}"
                shutil.rmtree(output / name, ignore_errors=True)
                (partial / name).replace(output / name)
                shutil.rmtree(partial)
        if self.args.should_save:
            rotate_checkpoints(
                output_dir=str(output),
                save_total_limit=self.args.save_total_limit,
                best_model_checkpoint=self.state.best_model_checkpoint,
                use_mtime=True,
            )
        self.accelerator.wait_for_everyone()

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        output = Path(output_dir or str(self.args.output_dir))
        if self._partial is not None or not self.args.should_save:
            self._write(str(output), state_dict)
            return
        partial = output / ".partial"
        shutil.rmtree(partial, ignore_errors=True)
        with removed_on_failure(partial):
            self._write(str(partial), state_dict)
            for file in partial.iterdir():
                if (output / file.name).is_dir():
                    shutil.rmtree(output / file.name)
                file.replace(output / file.name)
            partial.rmdir()

    def _write(self, output_dir: str, state_dict: Any) -> None:
        """What a save writes: the model, its tokenizer, and the arguments."""
        super()._save(output_dir, state_dict)


@contextmanager
def removed_on_failure(folder: Path) -> Iterator[None]:
    """The folder is gone after a failure; what stopped the writing is one ModelError."""
    from safetensors import SafetensorError

    try:
        yield
    except BaseException as error:
        full = folder.parent.is_dir() and shutil.disk_usage(folder.parent).free < 2**20
        shutil.rmtree(folder, ignore_errors=True)
        # a full disk is an OSError, a SafetensorError or torch's RuntimeError, by who was writing
        if isinstance(error, OSError | RuntimeError | SafetensorError):
            text = "no space is left" if full else " ".join(str(error).split())
            raise ModelError(f"cannot write into {folder.parent}: {text}") from error
        raise
