# SPDX-License-Identifier: Apache-2.0
"""Run the cells of an audit as separate processes, so that the failure of one does not affect the others.

A cell is claimed by a lock of the operating system, which is released when the process that holds it ends. The run of
the cell also locks its own folder. Several audits (for example a SLURM array) can therefore share one output folder.
An audit waits for the cells of another only while that audit, or a run that outlived it, is alive.
"""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from pathlib import Path

import rich
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from lightning_recon.audit.plan import Cell
from lightning_recon.audit.run import FAILED, cell_folder, is_finished
from lightning_recon.console import is_quiet, say, warn
from lightning_recon.errors import UserError
from lightning_recon.files.locking import claimed
from lightning_recon.files.run_folder import LOCK

# -P keeps the current folder off the import path; `recon` adds it only if a class path needs it.
PROGRAM = (sys.executable, "-P", "-m", "lightning_recon", "fit")


class Runner:
    """Runs the cells of an audit, several in parallel."""

    def __init__(self, output: Path, jobs: int) -> None:
        """Prepare the output folder.

        Args:
            output: Folder of the audit.
            jobs: Number of cells that run in parallel.
        """
        self.output, self.jobs = output, jobs
        self.locks = output / "locks"
        self.started = time.time()
        self._children: set[subprocess.Popen[str]] = set()
        # Parallel cells share the cores.
        self.environment = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // jobs))} | os.environ
        try:
            self.locks.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot write to {output} ({error.strerror}): choose another --output") from None

    def run(self, cells: Sequence[Cell]) -> None:
        """Run all unfinished cells; return when every cell has finished or failed.

        Args:
            cells: The plan, or a part of it.
        """
        columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()]
        left = [cell for cell in cells if not is_finished(cell_folder(self.output, cell.name))]
        # The remaining time is estimated from all cells so far, because their durations differ widely.
        watched = rich.get_console().is_terminal and not is_quiet()
        with Progress(
            *columns,
            TextColumn("left"),
            TimeRemainingColumn(),
            speed_estimate_period=1e6,
            console=rich.get_console(),
            disable=not watched,
        ) as progress:
            task = progress.add_task("Auditing", total=len(cells), completed=len(cells) - len(left))
            # Cells that other audits have claimed come last: they are checked once they are released.
            for wait in (False, True):
                taken: list[Cell] = []
                with ThreadPoolExecutor(self.jobs) as pool:
                    try:
                        waiting = {pool.submit(self.settle, cell, wait): cell for cell in left}
                        for future in as_completed(waiting):
                            cell = waiting[future]
                            if not future.result():
                                taken.append(cell)
                                continue
                            progress.advance(task)
                            reason = failure(cell_folder(self.output, cell.name))
                            if reason:
                                warn(f"failed: {cell.name}: {reason}")
                            elif not watched:
                                say(
                                    f"finished: {cell.name}, {progress.tasks[task].completed:.0f} of {len(cells)} cells"
                                )
                    except BaseException:
                        pool.shutdown(wait=False, cancel_futures=True)
                        for child in list(self._children):
                            child.terminate()
                        raise
                left = taken

    def settle(self, cell: Cell, wait: bool = True) -> bool:
        """Run one cell unless it has finished, or has failed since this audit began.

        Args:
            cell: The cell.
            wait: Whether to wait for another audit that runs the cell.

        Returns:
            Whether the cell has finished or failed; otherwise another audit runs it.
        """
        folder = cell_folder(self.output, cell.name)
        with claimed(self.locks / cell.name, wait) as mine:
            if not mine:
                return False
            # A run that has outlived its killed audit still holds the lock of its folder.
            with claimed(_made(folder) / LOCK, wait) as idle:
                if not idle:
                    return False
                if is_finished(folder) or _failed_since(folder, self.started):
                    return True
                _clear(folder)
            said, status = self._fit(cell, folder)
            with claimed(folder / LOCK, wait) as idle:
                if not idle:
                    return False
                if not is_finished(folder):
                    with suppress(OSError):  # a full disk: the cell counts as failed anyway
                        (folder / FAILED).write_text(said + f"\nexit status {status}\n", encoding="utf-8")
        return True

    def _fit(self, cell: Cell, folder: Path) -> tuple[str, int]:
        """Run one cell; return its output and its exit status."""
        command = [*PROGRAM, *cell.arguments]
        command += ["--results.show", "false", "--results.inspect", "true", "--trainer.default_root_dir", str(folder)]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=self.environment
        ) as child:
            self._children.add(child)
            said, _ = child.communicate()
            self._children.discard(child)
        return said, child.returncode


def _made(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {folder} ({error.strerror}): make room, or choose another --output") from None
    return folder


def _clear(folder: Path) -> None:
    """Remove the files of a stopped or failed cell, except its lock, which is held."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        elif path.name != LOCK:
            path.unlink()


def failure(folder: Path) -> str:
    """The reason why a cell failed, in one line without absolute paths; empty if it finished."""
    if is_finished(folder):
        return ""
    try:
        said = (folder / FAILED).read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError:
        said = []
    lines = [line.strip() for line in said if line.strip()]
    if not lines:
        return "not run, or no disk space was left to record the reason"
    last = lines[-2] if len(lines) > 1 else lines[-1]  # the last line is the exit status
    return re.sub(r"(?<![\w.])/(?:[^\s/:]+/)+", "…/", last.removeprefix("recon: error: "))


def _failed_since(folder: Path, moment: float) -> bool:
    try:
        return (folder / FAILED).stat().st_mtime >= moment
    except OSError:
        return False
