# SPDX-License-Identifier: Apache-2.0
"""Run folders: one process at a time writes to a folder, and a run is replaced only on request."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from filelock import BaseFileLock
from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_recon.errors import UserError
from lightning_recon.files.locking import take
from lightning_recon.interrupts import terminable

LOCK = ".recon.lock"
LAST = Path("checkpoints", "last.ckpt")
WAVES = "waves"  # folder of the runs that attack a part of the clients each

# Any of these shows that a run has written to a folder.
_TRACES = (
    "config.yaml",
    "results.json",
    "reconstructions.safetensors",
    "events.out.tfevents.*",
    "exchange/task.json",
    "checkpoints/*.ckpt",
    "hpc_ckpt_*.ckpt",
)
# All that a run, or scoring and exporting it later, writes there; a user's own files beside them have other names.
_FILES = (
    *_TRACES,
    "hparams.yaml",
    "comparison.png",
    "waves.csv",
    "running/events.out.tfevents.*",
    "images/*.png",
    "predictions/client*-draw*.png",
    "truth/index.json",
    "truth/*-photograph.png",
    "truth/*-used.png",
    "exchange/*.json",
    "exchange/*.safetensors",
)


def belongs_to_a_run(root: Path) -> bool:
    """Whether a folder holds a run, finished or stopped."""
    return any(True for pattern in _TRACES for _ in root.glob(pattern))


def files_of_run(root: Path) -> set[Path]:
    """All files of the run in a folder, and none of the user's own."""
    return {path for pattern in _FILES for path in root.glob(pattern)}


def remove(files: set[Path], root: Path) -> None:
    """Remove files of a run, and the subfolders that are empty then."""
    for path in files:
        path.unlink(missing_ok=True)
    for folder in {path.parent for path in files} - {root}:
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def check_free(root: Path, overwrite: bool, checkpoint: str | None, flag: str = "--trainer.default_root_dir") -> None:
    """Refuse to start a run where another one would be mixed with it or lost.

    Args:
        root: The run folder.
        overwrite: Whether the run that is there may be replaced.
        checkpoint: What the run resumes from: "last", a file, or None for a new run.
        flag: The option that names the folder; only a run of --trainer.default_root_dir can be resumed.

    Raises:
        UserError: The folder belongs to another run, or the arguments contradict each other.
    """
    if overwrite and checkpoint:
        raise UserError(
            "--overwrite starts the run again and --ckpt_path resumes it: leave one of them out "
            "(--overwrite false where a config sets it)"
        )
    # Lightning itself resumes from what it saved when a batch system stopped the job.
    if overwrite or not belongs_to_a_run(root) or any(root.glob("hpc_ckpt_*.ckpt")):
        return
    if checkpoint:
        if checkpoint == "last" or Path(checkpoint).resolve().is_relative_to(root.resolve()):
            return
        raise UserError(
            f"--ckpt_path {checkpoint} does not belong to the run in {root}: give last, or another "
            "--trainer.default_root_dir"
        )
    resumable = (
        (root / LAST).is_file() or any(root.glob(f"{WAVES}/*/wave.json"))
    ) and flag == "--trainer.default_root_dir"
    resume = "--ckpt_path last to resume it, " if resumable else ""
    raise UserError(f"{root} already holds a run: choose another {flag}, {resume}or --overwrite to replace it")


class RunFolder(Callback):
    """Holds the lock of a run folder while the run writes to it, and clears it of the run that is replaced.

    Used as a context manager around the trainer. The replaced run stays until `begin`: a run that fails in its set-up
    leaves the folder as it was.
    """

    def __init__(self, root: Path, overwrite: bool, checkpoint: str | None, fits: bool = True) -> None:
        """Name the folder; see `check_free`.

        Args:
            root: The run folder.
            overwrite: Whether the run that is there may be replaced.
            checkpoint: What the run resumes from, or None.
            fits: Whether this is a run of its own; otherwise it scores or exports the existing one.
        """
        self.root, self.overwrite, self.checkpoint, self.fits = root, overwrite, checkpoint, fits
        self.begun = False
        self._writes = True
        self._before: set[Path] = set()
        self._lock: BaseFileLock | None = None

    def __getstate__(self) -> dict[str, Any]:
        """A copy, which some callbacks make together with the model, holds no lock and clears nothing."""
        return self.__dict__ | {"_lock": None}

    def held_by(self, trainer: Trainer) -> "RunFolder":
        """Lock on rank zero only: the other ranks belong to the same run."""
        self._writes = trainer.is_global_zero
        return self

    def __enter__(self) -> "RunFolder":
        """Take the lock, and list the existing files."""
        if not self._writes or not self.root.is_dir():
            return self
        self._lock = take(self.root / LOCK)
        if self._lock is None:
            raise UserError(
                f"another process is writing to {self.root}: wait for it, or choose another --trainer.default_root_dir"
            )
        try:
            if self.fits:
                check_free(self.root, self.overwrite, self.checkpoint)
        except UserError:
            self._lock.release()
            raise
        if self.overwrite:
            remove(set(self.root.glob("hpc_ckpt_*.ckpt")), self.root)  # or Lightning would resume from it
        self._before = files_of_run(self.root)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Remove the files of a failed set-up, and release the lock."""
        if self._lock is None:
            return
        try:
            if error is not None and self.fits and not self.begun:
                shutil.rmtree(self.root / "exchange.new", ignore_errors=True)
                remove(files_of_run(self.root) - self._before, self.root)
        finally:
            self._lock.release()

    def begin(self) -> None:
        """Remove the replaced run: the new one is about to write its first lasting file."""
        if self._lock is not None and self.overwrite and not self.begun:
            remove(self._before, self.root)
            for wave in self.root.glob(f"{WAVES}/[0-9][0-9][0-9][0-9][0-9]"):
                shutil.rmtree(wave)
        self.begun = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The set-up is complete, also when a target network is trained.

        Args:
            trainer: The trainer.
            pl_module: The model.
        """
        self.begin()
        # Lightning's own handler would wait for the other ranks first, which may be waiting for this one.
        terminable()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The set-up of a run without steps is complete.

        Args:
            trainer: The trainer.
            pl_module: The model.
        """
        self.begin()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Add to the message of an interrupted run how to resume it.

        Args:
            trainer: The trainer.
            pl_module: The model.
            exception: The exception that ended the run.
        """
        if not isinstance(exception, KeyboardInterrupt) or not self.fits:
            return
        if not self.begun:
            exception.add_note(f"stopped before the first step: {self.root} is as it was")
        elif (self.root / LAST).is_file():
            where = f"stopped at step {trainer.global_step}"
            exception.add_note(f"{where}: the same command with --ckpt_path last resumes from the last checkpoint")
        else:
            where = f"stopped at step {trainer.global_step}, before the first checkpoint"
            exception.add_note(f"{where}: the same command with --overwrite starts again")


def begin_run(trainer: Trainer) -> None:
    """Mark the set-up as complete, on every rank; does nothing where no run folder is managed."""
    for folder in _folders(trainer):
        folder.begin()


def _folders(trainer: Trainer) -> Iterator[RunFolder]:
    return (callback for callback in trainer.callbacks if isinstance(callback, RunFolder))  # type: ignore[attr-defined]
