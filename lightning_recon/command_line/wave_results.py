# SPDX-License-Identifier: Apache-2.0
"""Results of a run that attacks its clients in waves: those so far, and those of all waves together."""

import csv
import io
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from lightning_recon.callbacks.truth_writer import INDEX
from lightning_recon.command_line.wave_sizes import Wave
from lightning_recon.console import say
from lightning_recon.errors import UserError
from lightning_recon.evaluation.merged_record import merged_record
from lightning_recon.evaluation.run_record import read_results, write_results
from lightning_recon.files.atomic import write_text
from lightning_recon.files.faults import readable
from lightning_recon.files.schema import ORIGINALS
from lightning_recon.files.serialization import read_json, write_json

TABLE = "waves.csv"
RUNNING = "running"  # TensorBoard's events of all waves
_COLUMNS = ("victims", "psnr_mean", "ssim_mean", "bit_exact_share", "detected", "seconds")


class Progress:
    """Results so far: in the terminal, as a table, and in TensorBoard."""

    def __init__(self, root: Path, waves: int) -> None:
        """Begin.

        Args:
            root: The run folder.
            waves: How many waves there are.
        """
        self.root, self.waves, self.began = root, waves, time.monotonic()
        self.rows: list[dict[str, Any]] = []
        self.attacked = 0
        self.board = SummaryWriter(str(root / RUNNING))

    def report(self, wave: Wave, attacked: bool) -> None:
        """Report a finished wave.

        Args:
            wave: The wave.
            attacked: Whether it was attacked just now, and not before an interruption.
        """
        summary = results_of(self.root / wave.folder)["summary"]
        row = {"wave": wave.number, "first_client": wave.first_client, "clients": wave.clients}
        self.rows.append(row | {name: summary.get(name) for name in _COLUMNS})
        text = io.StringIO()
        writer = csv.DictWriter(text, list(self.rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        write_text(self.root / TABLE, text.getvalue())
        images = sum(one["victims"] for one in self.rows)
        mean = sum(one["psnr_mean"] * one["victims"] for one in self.rows) / images
        self.board.add_scalar("running_psnr", mean, images)
        self.board.flush()
        self.attacked += attacked
        seconds = time.monotonic() - self.began
        left = seconds / max(1, self.attacked) * (self.waves - len(self.rows))
        ahead = f", about {left:.0f} s left" if attacked and left else ""
        say(f"wave {len(self.rows)} of {self.waves}: {mean:.1f} dB over the {images} images so far{ahead}")


def results_of(folder: Path) -> dict[str, Any]:
    """The record of a finished wave.

    Raises:
        UserError: There is none.
    """
    record = read_results(folder)
    if record is None:
        raise UserError(f"{folder} holds no results.json: remove that folder, and resume with --ckpt_path last")
    return record


def merge(root: Path, waves: Sequence[Wave]) -> dict[str, Any]:
    """Write `results.json` and the index of the true images of all waves."""
    records, originals = [], []
    for wave in waves:
        folder = root / wave.folder
        records.append(results_of(folder))
        with readable(folder / INDEX):
            for entry in read_json(folder / INDEX, ORIGINALS)["victims"]:
                shifted: dict[str, Any] = dict(entry) | {"client": entry["client"] + wave.first_client}
                for kind in ("photograph", "used"):
                    if kind in shifted:
                        shifted[kind] = f"{wave.folder}/{shifted[kind]}"
                originals.append(shifted)
    merged = merged_record(records, [wave.first_client for wave in waves], [wave.folder for wave in waves])
    write_json(root / INDEX, {"victims": originals})
    write_results(root / "results.json", merged)
    return dict(merged)
