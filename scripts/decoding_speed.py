# SPDX-License-Identifier: Apache-2.0
"""Processor seconds in which digital codes are decoded, by two versions of this package in turns.

    git worktree add DIR COMMIT
    python scripts/decoding_speed.py --root PHOTOGRAPHS --before DIR --name COMMIT  # writes results/decoding_speed.csv

Both versions decode the same update of one client on one core. The first decoding of each, which also draws the graph
of the code, is not counted. The images that they find, sketches and files, are compared as well.
"""

import argparse
import hashlib
import json
import os
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from measuring import write_rows

from lightning_recon.client import Privacy, VictimClient
from lightning_recon.data import ClientDataModule, NoMasks
from lightning_recon.structure import Digital

ROOT = Path(__file__).parent.parent
# Image size, images a client, granularity, noise multiplier: settings of the tables.
SETTINGS = ((64, 1, "sample", 0.01), (64, 16, "update", 1e-3), (224, 16, "update", 8e-4), (224, 16, "update", 2e-4))


def answered(root: Path | None, size: int, batch: int, granularity: Any, z: float) -> tuple[object, object, object]:  # noqa: ANN401
    """Payload, task and update of one client."""
    data = ClientDataModule(root and str(root), image_size=size, batch_size=batch, masks=NoMasks())
    data.prepare_data()
    data.setup()
    client = VictimClient("convnet", 1000, privacy=Privacy(10.0, z, granularity), noise_seed=0)
    client.bind(data.client_batches)
    payload = Digital().payload(client.task)
    update = client.share(payload, 0, 0, 0)
    # As both versions can read it.
    return payload, client.task, replace(update, gradient=dict(update.gradient))


def work(path: Path) -> None:
    """Decode an update as often as lines arrive on standard input, and write a record for each.

    Args:
        path: File with the payload, the task and the update.
    """
    torch.set_num_threads(1)
    payload, task, update = pickle.loads(path.read_bytes())
    for _ in sys.stdin:
        begun = time.process_time()
        found = Digital().decode(payload, task, update)
        seconds = time.process_time() - begun
        record = {
            "seconds": round(seconds, 3),
            "files": sum(one is not None for one in found.files or ()),
            "digest": hashlib.sha256(found.images.numpy().tobytes()).hexdigest(),
        }
        print(json.dumps(record), flush=True)


def rows(
    root: Path | None, before: Path, name: str, settings: tuple[Any, ...], runs: int
) -> Iterator[dict[str, object]]:
    """The table, with one row for each setting, version and run.

    Args:
        root: Folder of photographs; None for the bundled ones.
        before: Folder of the other version of this package.
        name: Of that version.
        settings: As `SETTINGS`.
        runs: Decodings of each update by each version.
    """
    for setting in settings:
        columns = dict(zip(("size", "batch", "granularity", "z"), setting, strict=True))
        with tempfile.TemporaryDirectory() as folder:
            update = Path(folder) / "update"
            update.write_bytes(pickle.dumps(answered(root, *setting)))
            workers = {name: _worker(update, before), "this version": _worker(update, ROOT)}
            for run in range(-1, runs):
                records = {version: _decoded(worker) for version, worker in workers.items()}
                same = len({record.pop("digest") for record in records.values()}) == 1
                for version, record in records.items():
                    if run >= 0:
                        row = columns | {"version": version, "run": run, **record, "same_images": same}
                        print(row, flush=True)
                        yield row
            for worker in workers.values():
                worker.communicate()


def _worker(update: Path, version: Path) -> subprocess.Popen[str]:
    """A process that decodes with the package in the given folder."""
    return subprocess.Popen(
        [sys.executable, __file__, "--work", str(update)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(version), "OMP_NUM_THREADS": "1"},
    )


def _decoded(worker: subprocess.Popen[str]) -> dict[str, Any]:
    """Let a process decode once, and return its record."""
    assert worker.stdin is not None
    assert worker.stdout is not None
    worker.stdin.write("decode\n")
    worker.stdin.flush()
    record: dict[str, Any] = json.loads(worker.stdout.readline())
    return record


def main() -> None:
    """Measure the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, help="folder of photographs; default: the bundled ones")
    parser.add_argument("--before", type=Path, help="folder of the other version")
    parser.add_argument("--name", default="before", help="name of the other version")
    parser.add_argument("--runs", type=int, default=3, help="decodings of each update by each version")
    parser.add_argument(
        "--settings", type=int, default=len(SETTINGS), help="how many of the settings, the quickest first"
    )
    parser.add_argument("--output", type=Path, default=ROOT / "results" / "decoding_speed.csv", help="the table")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.work:
        work(chosen.work)
        return
    if chosen.before is None:
        parser.error("--before is required")
    settings = SETTINGS[: chosen.settings]
    table = list(rows(chosen.root, chosen.before.resolve(), chosen.name, settings, chosen.runs))
    options = f"--name {chosen.name} --runs {chosen.runs} --settings {chosen.settings}"
    command = f"python scripts/decoding_speed.py --root DIR --before DIR {options}"
    write_rows(chosen.output, command, table)


if __name__ == "__main__":
    main()
