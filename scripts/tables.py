# SPDX-License-Identifier: Apache-2.0
"""Measure the tables under results/: most cells are one `recon fit` each, with one row per noise draw.

    python scripts/tables.py headline --root DIR            # writes results/headline.csv
    python scripts/tables.py --help                         # the tables there are

DIR is any folder of photographs; the committed tables were made with 64 ImageNet photographs in folders named after
WordNet ids, and `trainings` with 868 others. Finished
cells are kept in --runs, where tables share them, and not measured again, so that a stopped
measurement goes on where it was. `--jobs 2` measures two cells at once; give each its core by OMP_NUM_THREADS=1.
"""

import argparse
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path

from attack_cells import (
    ablation,
    curve,
    denoisers,
    digital,
    digital_paper,
    digital_rounds,
    headline,
    margins,
    moments,
    peers,
    peers_bundled,
    sample64,
    seed_sweep,
    tensor_code,
    upload,
)
from case_cells import case_studies
from client_cells import (
    aggregation,
    batch_size,
    clients,
    compression,
    expectations,
    mismatch,
    networks,
    per_layer,
    rounds,
    voices,
)
from honest_cells import honest, labels
from measuring import Cell, measured, rows_of, write_rows, write_table
from mechanism_cells import mechanisms
from picture_cells import pictures
from training_cells import trainings

RESULTS = Path(__file__).parent.parent / "results"

CELLS: dict[str, Callable[[], Iterator[Cell]]] = {
    table.__name__: table
    for table in (
        headline, seed_sweep, peers, peers_bundled, curve, sample64, moments, expectations, batch_size, aggregation,
        ablation, rounds, mismatch, per_layer, networks, voices, denoisers, honest, labels, digital, digital_paper,
        digital_rounds, upload, tensor_code, margins, clients, compression, mechanisms, trainings, case_studies,
        pictures,
    )
}  # fmt: skip
# Tables whose cells are not attacks: separate scripts make their rows.
SCRIPTS = {
    "noise_law": "The noise law, checked: rows that hold one victim, before any prior, filter or clamp.",
    "encoding_cost": "Seconds that a structure's layer takes at the client, and its upload.",
    "scale": "Resident memory, images a minute and disk against the number of clients.",
    "losses": "What clients learn of their images, and by which loss: several labels, values, masks.",
    "verify": "How close lower bounds on epsilon come to the true one, and how often a correct client is refuted.",
    "case_accounting": "Privacy parameters that released programs document, and what they account to.",
    "dp_accuracy": "The target's accuracy under DP-SGD against the share of attacked rounds.",
}


def main() -> None:
    """Measure one table."""
    about = {name: table.__doc__ for name, table in CELLS.items()} | SCRIPTS
    lines = "".join(f"\n  {name}: {text}" for name, text in about.items())
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, epilog=f"tables:{lines}", formatter_class=formatter)
    parser.add_argument("table", choices=[*CELLS, *SCRIPTS], metavar="TABLE", help="one of the tables below")
    parser.add_argument("--root", type=Path, required=True, help="folder of photographs")
    parser.add_argument("--gallery", type=Path, help="folder of further photographs, for identification")
    parser.add_argument("--classifier", help="class path of an ImageNet classifier, for recognition")
    parser.add_argument("--runs", type=Path, default=Path("runs/tables"), help="where the runs are kept")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the table is written")
    parser.add_argument("--jobs", type=int, default=1, help="cells that are measured at once")
    chosen = parser.parse_args()
    path = chosen.results / f"{chosen.table}.csv"
    if chosen.table in SCRIPTS:
        rows = list(import_module(chosen.table).rows(chosen.root))
    else:
        cells = list(CELLS[chosen.table]())
        scores = {"gallery": chosen.gallery, "classifier": chosen.classifier}
        measure = partial(measured, root=chosen.root, runs=chosen.runs, **scores)
        with ProcessPoolExecutor(chosen.jobs, get_context("spawn")) as pool:
            folders = list(pool.map(measure, cells))
        rows = [row for place, folder in zip(cells, folders, strict=True) for row in rows_of(folder, place)]
    command = f"python scripts/tables.py {chosen.table} --root DIR"
    command += " --gallery DIR" if chosen.gallery else ""
    command += f" --classifier {chosen.classifier}" if chosen.classifier else ""
    (write_table if "attack" in rows[0] else write_rows)(path, command, rows)
    print(path)


if __name__ == "__main__":
    main()
