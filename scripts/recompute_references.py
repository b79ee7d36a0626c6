# SPDX-License-Identifier: Apache-2.0
"""Compute the Gaussian reference of committed tables anew, without running their attacks.

    python scripts/recompute_references.py --root DIR [TABLE ...]

The reference depends on the images under attack and on the protection alone, which every row of a table states. DIR is
the folder of photographs that the tables were measured on. Without names all tables that have the column are updated.
"""

import argparse
import csv
import shlex
from functools import lru_cache
from pathlib import Path

from measuring import read_table

from lightning_recon.data import ClientDataModule, GrabCutMasks, NoMasks
from lightning_recon.data.sources import ClientBatch
from lightning_recon.deprecated import modernized_arguments
from lightning_recon.evaluation.gaussian_reference import gaussian_reference
from lightning_recon.exchange import summed_noise
from lightning_recon.privacy.gaussian import Gaussian

RESULTS = Path(__file__).parent.parent / "results"
COLUMN, ENDS = "gaussian_reference_psnr", ("gaussian_reference_low", "gaussian_reference_high")
REMARK = "references by scripts/recompute_references.py"


@lru_cache(maxsize=4)
def batches(root: Path | None, size: int, batch: int, clients: int, work_size: int | None) -> tuple[ClientBatch, ...]:
    """The clients' images; the bundled ones without a root, whole photographs without a work size of GrabCut."""
    masks = NoMasks() if work_size is None else GrabCutMasks(work_size=work_size)
    data = ClientDataModule(
        None if root is None else str(root), image_size=size, batch_size=batch, clients=clients, masks=masks
    )
    data.prepare_data()
    data.setup()
    return tuple(data.client_batches)


def references(row: dict[str, str], root: Path) -> dict[str, str]:
    """The reference of a row with the ends of its interval; empty where too few images are at hand.

    Args:
        row: Row of a table.
        root: Folder of photographs.
    """
    words = modernized_arguments(shlex.split(row["options"]))
    options = dict(zip(words[::2], words[1::2], strict=True))
    bundled = "quickstart.yaml" in words
    whole = options.get("--data.masks", "").endswith("NoMasks")
    usual = 192 if bundled else GrabCutMasks().work_size  # as in quickstart.yaml
    work_size = None if whole else int(options.get("--data.masks.work_size", usual))
    aggregated = int(options.get("--model.client.aggregated", 1))
    batch, rounds = int(row["batch"]), int(row["rounds"])
    # Every victim of every draw is a row of the run, so a draw has all clients' batches.
    images = batches(None if bundled else root, int(row["size"]), batch, int(row["victims"]) // batch, work_size)
    share = "distributed" if options.get("--model.client.noise_share") == "distributed" else "local"
    z = summed_noise(float(row["z"]), aggregated, share)
    granularity = "sample" if row["granularity"] == "sample" else "update"
    found = gaussian_reference(images, Gaussian().mutual_information(z, rounds), granularity)
    if found is None:
        return dict.fromkeys((COLUMN, *ENDS), "")
    return dict(zip((COLUMN, *ENDS), (f"{value:.4f}" for value in (found.psnr, found.low, found.high)), strict=True))


def main() -> None:
    """Update the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="*", metavar="TABLE", help="names of tables; none: all")
    parser.add_argument("--root", type=Path, required=True, help="folder of photographs")
    chosen = parser.parse_args()
    for path in [RESULTS / f"{name}.csv" for name in chosen.tables] or sorted(RESULTS.glob("*.csv")):
        rows = read_table(path)
        if not any(row.get(COLUMN) for row in rows):
            continue
        known: dict[tuple[str, ...], dict[str, str]] = {}
        for row in rows:
            key = tuple(row[name] for name in ("options", "z", "rounds"))
            known[key] = known.get(key) or references(row, chosen.root)
            row |= known[key]
        with path.open(newline="") as file:
            head = next(file).rstrip("\n")
        with path.open("w", newline="") as file:
            file.write(f"{head if REMARK in head else f'{head}; {REMARK}'}\n")
            writer = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)))
            writer.writeheader()
            writer.writerows(rows)
        print(path, flush=True)


if __name__ == "__main__":
    main()
