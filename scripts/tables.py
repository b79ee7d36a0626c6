# SPDX-License-Identifier: Apache-2.0
"""Measure the tables under results/: every cell is one `recon fit`, its rows one noise draw each.

    python scripts/tables.py headline --root DIR            # writes results/headline.csv
    python scripts/tables.py --help                         # the tables there are

DIR is any folder of photographs; the committed tables were made with 64 ImageNet photographs. Finished cells are kept
in --runs and not measured again, so that a stopped measurement goes on where it was.
"""

import argparse
import csv
import hashlib
import json
import math
import shlex
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from lightning_recon.cli import main as recon

RESULTS = Path(__file__).parent.parent / "results"
COLUMNS = [
    "attack", "granularity", "z", "size", "batch", "rounds", "draw", "psnr_mean", "ssim_mean", "detected", "collided",
    "false", "oracles", "psnr_initial", "psnr_worst", "psnr_of_mean_mse", "epsilon_nominal", "epsilon_accounted",
    "noise_law_psnr", "gaussian_reference_psnr", "black_psnr", "mean_image_psnr", "victims", "max_grad_norm",
    "structure_bytes", "options",
]  # fmt: skip
GRABCUT = "--data.masks lightning_recon.data.GrabCutMasks"
FEEDBACK = "--config attack/feedback.yaml"
SINGLE = (
    "--config imagenet.yaml --data.masks lightning_recon.data.NoMasks --model.client.network convnet "
    "--model.client.privacy.granularity sample --data.image_size 64 --data.batch_size 1 --data.clients 64"
)
PAPER = "--config attack/paper.yaml"
Z = "--model.client.privacy.noise_multiplier"


def headline() -> Iterator[str]:
    """The paper's setting at nominal epsilon 10 and 2.5: its own structure and ours, same victims, same protection."""
    for z in (2e-4, 8e-4):
        for attack in (PAPER, ""):
            yield f"--config imagenet.yaml {attack} {GRABCUT} --model.draws 5 {Z} {z}"


def sample64() -> Iterator[str]:
    """One picture a client at 64 x 64, each sample clipped alone, over seven noise levels."""
    for z in (1, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001):
        yield f"{SINGLE} --model.structure.subjects false --model.draws 5 {Z} {z}"


def rounds() -> Iterator[str]:
    """The same 8 pictures over many rounds: averaging and feedback."""
    single = f"{SINGLE} --data.clients 8 --model.draws 5 --model.record false --trainer.max_steps 0"
    for z, count in ((0.1, 16), (0.1, 64), (0.6, 300)):
        for structure in ("", f"{FEEDBACK} --model.structure.opening.subjects false"):
            masks = "" if structure else "--model.structure.subjects false"
            cell = f"{single} {structure} {masks} --model.client.privacy.rounds {count} {Z} {z}"
            yield " ".join(cell.split())


TABLES = {table.__name__: table for table in (headline, sample64, rounds)}


def measured(cell: str, root: str, runs: Path) -> dict[str, Any]:
    """Run a cell, unless its results are there already; returns its `results.json` and the size of its pictures."""
    name = "".join(letter if letter.isalnum() else "_" for letter in cell.replace("--", ""))[-150:]
    folder = runs / hashlib.sha256(str(Path(root).resolve()).encode()).hexdigest()[:8] / name
    if not (folder / "results.json").exists():
        recon(["fit", *shlex.split(cell), "--data.root", root, "--trainer.default_root_dir", str(folder)])
    record: dict[str, Any] = json.loads((folder / "results.json").read_text())
    config = yaml.safe_load((folder / "config.yaml").read_text())
    return record | {"size": config["data"]["init_args"]["image_size"]}


def rows_of(record: dict[str, Any], cell: str) -> Iterator[dict[str, object]]:
    """One row a noise draw."""
    privacy, summary = record["privacy"], record["summary"]
    for draw in range(summary["draws"]):
        victims = [victim for victim in record["victims"] if victim["draw"] == draw]

        def mean(field: str, victims: list[dict[str, Any]] = victims) -> float:
            return round(statistics.fmean(victim[field] for victim in victims), 4)

        yield {
            "attack": record["attack"],
            "granularity": privacy["granularity"],
            "z": privacy["noise_multiplier"],
            "size": record["size"],
            "batch": privacy["batch_size"],
            "rounds": privacy["rounds"],
            "draw": draw,
            "psnr_mean": mean("psnr"),
            "ssim_mean": mean("ssim"),
            "detected": sum(victim["detected"] for victim in victims),
            "collided": sum(victim["collision"] for victim in victims),
            "false": summary["false_detections"],
            "oracles": " ".join(record["oracles"]) or "none",
            "psnr_initial": mean("psnr_initial"),
            "psnr_worst": round(min(victim["psnr"] for victim in victims), 4),
            "psnr_of_mean_mse": round(-10 * math.log10(statistics.fmean(10 ** (-v["psnr"] / 10) for v in victims)), 4),
            "epsilon_nominal": privacy["epsilon_nominal"],
            "epsilon_accounted": privacy["epsilon_accounted"],
            **record["bounds"],
            **record["baselines"],
            "victims": len(victims),
            "max_grad_norm": privacy["max_grad_norm"],
            "structure_bytes": summary["structure_bytes"],
            "options": cell,
        }


def main() -> None:
    """Measure one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=TABLES, help="; ".join(f"{n}: {t.__doc__}" for n, t in TABLES.items()))
    parser.add_argument("--root", required=True, help="folder of photographs")
    parser.add_argument("--runs", type=Path, default=Path("runs/tables"), help="where the runs are kept")
    chosen = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    path, cells = RESULTS / f"{chosen.table}.csv", list(TABLES[chosen.table]())
    rows, versions = [], {}
    for number, cell in enumerate(cells):
        print(f"[{number + 1}/{len(cells)}] recon fit {cell}", flush=True)
        record = measured(cell, chosen.root, chosen.runs / chosen.table)
        versions = record["versions"]
        rows += rows_of(record, cell)
    with path.open("w", newline="") as file:
        file.write(f"# python scripts/tables.py {chosen.table} --root DIR; ")
        file.write(", ".join(f"{name} {number}" for name, number in versions.items()) + "\n")
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    print(path)


if __name__ == "__main__":
    main()
