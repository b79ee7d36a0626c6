# SPDX-License-Identifier: Apache-2.0
"""Measure one cell of a table by a `recon fit`, and convert its record to one row per noise draw."""

import csv
import hashlib
import json
import math
import shlex
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from collisions import lost_share

from lightning_recon.cli import main as recon
from lightning_recon.deprecated import KEYS, VALUES
from lightning_recon.evaluation.uncertainty import bootstrap_interval
from lightning_recon.privacy.gaussian_accounting import gaussian_epsilon, mu_of

COLUMNS = [
    "attack", "granularity", "z", "size", "batch", "rounds", "draw", "psnr_mean", "ssim_mean", "detected", "collided",
    "false", "oracles", "missed", "psnr_initial", "psnr_worst", "psnr_of_mean_mse", "psnr_detected",
    "psnr_low", "psnr_high", "lost_share", "identification", "gallery_size", "identification_bound",
    "epsilon_nominal", "epsilon_accounted", "epsilon_one_round", "noise_law_psnr", "gaussian_reference_psnr",
    "black_psnr", "mean_image_psnr", "victims", "max_grad_norm", "network", "subject_fraction", "units", "directions",
    "lost_in_theory", "structure_bytes", "seconds", "options",
]  # fmt: skip
SUMS = ("epsilon_of_one_client", "epsilon_of_sum")  # stated in tables about secure aggregation
RECOGNITION = (
    "recognition_top1",
    "recognition_top5",
    "recognition_top1_mean_image",
)  # over all draws, where a classifier scores
LABELS = ("label_accuracy", "steps")  # over all draws, for attacks that recover labels
PACKAGES = ("lightning_recon", "torch", "torchvision", "lightning", "torchmetrics", "opacus")


@dataclass(frozen=True)
class Cell:
    """One measurement.

    Args:
        options: options of `recon fit`.
        attack: name of the attack in the table; None for the name that the run records.
        pictures: "root": the given photographs; "labelled": the same with ImageNet's own labels; "bundled".
        columns: further columns and their values.
    """

    options: str
    attack: str | None = None
    pictures: str = "root"
    columns: tuple[tuple[str, object], ...] = ()


def folder_of(cell: Cell, root: Path, runs: Path) -> Path:
    """The run folder of a cell, which is determined by its options and photographs.

    A cell that was measured under the deprecated names of its options has the folder that these names determine.
    """
    photographs = "bundled" if cell.pictures == "bundled" else str(root.resolve())
    folders = []
    for options in (deprecated_options(cell.options), cell.options):
        key = hashlib.sha256(f"{photographs}\n{cell.pictures}\n{options}".encode()).hexdigest()[:12]
        end = "".join(letter if letter.isalnum() else "_" for letter in options.replace("--", ""))[-80:]
        folders.append(runs / f"{key}_{end}")
    return next((folder for folder in folders if (folder / "results.json").exists()), folders[-1])


def deprecated_options(options: str) -> str:
    """Options of `recon fit` with the deprecated names that runs of the previous release were started with.

    Args:
        options: options with current names, in one line.
    """
    names = {new: old for keys in KEYS.values() for old, new in keys.items()}
    words: list[str] = []
    option = ""
    for word in options.split(" "):
        if word.startswith("--model."):
            *_, option = parts = word.split(".")
            words.append(".".join(names.get(part, part) for part in parts))
        else:
            values = [values[option] for values in VALUES.values() if option in values]
            words.append(next((old for known in values for old, new in known.items() if new == word), word))
    return " ".join(words)


def measured(cell: Cell, root: Path, runs: Path, gallery: Path | None = None, classifier: str | None = None) -> Path:
    """Run a cell unless it has results already; return its folder.

    Args:
        cell: What is measured.
        root: Folder of photographs.
        runs: Where the runs are kept.
        gallery: Folder of further photographs among which originals are searched.
        classifier: Path of a class with an ImageNet classifier, which scores by recognition.
    """
    folder = folder_of(cell, root, runs)
    print(f"recon fit {cell.options}", flush=True)
    if not (folder / "results.json").exists():
        photographs = ["--data.root", str(root)]
        if cell.pictures == "bundled":
            photographs = []
        elif cell.pictures == "labelled":
            from pretrained import with_true_labels  # needs packages that no other table needs

            name = hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:12]
            photographs[1] = str(with_true_labels(root, runs / f"labelled_{name}"))
        if gallery is not None:
            photographs += ["--data.gallery", str(gallery)]
        if classifier is not None:
            photographs += ["--results.classifier.network", classifier]
            photographs += ["--results.classifier.normalization", "imagenet"]
        alone = ["--comparison.structure", "null", "--comparison.noise_factor", "null"]
        alone += ["--model.client.noise_seed", "0"]  # tables are reproducible
        place = ["--trainer.default_root_dir", str(folder), "--overwrite"]  # of a run that was stopped
        recon(["fit", *shlex.split(cell.options), *photographs, *alone, *place])
    return folder


def rows_of(folder: Path, cell: Cell) -> Iterator[dict[str, object]]:
    """One row per noise draw.

    Args:
        folder: Folder of the finished run, with `results.json` and `config.yaml`.
        cell: The measured cell.
    """
    record: dict[str, Any] = json.loads((folder / "results.json").read_text())
    config = yaml.safe_load((folder / "config.yaml").read_text())
    privacy, summary = record["privacy"], record["summary"]
    one_round = mu_of(privacy["noise_multiplier"], 1, privacy["adjacency"])
    for draw in range(summary["draws"]):
        victims = [victim for victim in record["victims"] if victim["draw"] == draw]
        detected = [victim for victim in victims if victim["detected"]]
        collided = sum(victim["collision"] for victim in victims)
        low, high = bootstrap_interval({number: [victim["psnr"]] for number, victim in enumerate(victims)})
        false = [victim["false_detection"] for victim in victims if "false_detection" in victim]
        yield {
            "attack": cell.attack or record["attack"],
            "granularity": privacy["granularity"],
            "z": privacy["noise_multiplier"],
            "size": config["data"]["init_args"]["image_size"],
            "batch": privacy["batch_size"],
            "rounds": privacy["rounds"],
            "draw": draw,
            "psnr_mean": mean(victims, "psnr"),
            "ssim_mean": mean(victims, "ssim"),
            "detected": len(detected),
            "collided": collided,
            "false": sum(false) if false else summary["false_detections"],
            "oracles": " ".join(record["oracles"]) or "none",
            "missed": len(victims) - len(detected) - collided,
            "psnr_initial": mean(victims, "psnr_initial"),
            "psnr_worst": round(min(victim["psnr"] for victim in victims), 4),
            "psnr_of_mean_mse": round(-10 * math.log10(statistics.fmean(10 ** (-v["psnr"] / 10) for v in victims)), 4),
            "psnr_low": None if low is None else round(low, 4),
            "psnr_high": None if high is None else round(high, 4),
            "lost_share": round(statistics.fmean(lost(victim) for victim in victims), 4),
            "identification": mean(victims, "identified") if summary.get("gallery_size") else None,
            "gallery_size": summary.get("gallery_size"),
            "identification_bound": summary.get("identification_bound"),
            "psnr_detected": mean(detected, "psnr") if detected else None,
            "epsilon_nominal": privacy["epsilon_nominal"],
            "epsilon_accounted": privacy["epsilon_accounted"],
            "epsilon_one_round": gaussian_epsilon(one_round, privacy["delta"]),
            # Tables keep the column `noise_law_psnr_5_percent`.
            **{name: value for name, value in record["bounds"].items() if name != "noise_law_psnr_p95"},
            **record["baselines"],
            "victims": len(victims),
            "max_grad_norm": privacy["max_grad_norm"],
            "network": config["model"]["init_args"]["client"]["init_args"]["network"].rpartition(".")[2],
            "subject_fraction": round(record["subject_fraction"], 4),
            **rows_and_losses(folder, privacy["batch_size"] * privacy.get("aggregated", 1)),
            "structure_bytes": summary["structure_bytes"],
            "seconds": round(summary["seconds"], 2),
            "options": cell.options,
            **{name: privacy[name] for name in SUMS if "aggregated" in dict(cell.columns)},
            "bit_exact": mean(victims, "bit_exact"),
            **(_training(privacy, victims) if privacy.get("sampling") else {}),
            **(_files(victims) if summary.get("channel_code") else {}),
            **({"lpips_mean": round(summary["lpips_mean"], 4)} if summary.get("lpips_mean") is not None else {}),
            **({name: summary[name] for name in RECOGNITION} if summary.get("recognition_top1") is not None else {}),
            **({name: summary[name] for name in LABELS} if "label_accuracy" in summary else {}),
            **dict(cell.columns),
        }


def lost(victim: Mapping[str, Any]) -> bool:
    """Whether the attacker has no image for a victim that is closer to it than the public mean image."""
    return not victim["detected"] or bool(victim.get("false_detection"))


def _training(privacy: Mapping[str, Any], victims: list[dict[str, Any]]) -> dict[str, object]:
    """What batches are drawn from, when the first and the last image were found, and epsilon if batches were hidden."""
    found = [victim["first_round"] + 1 for victim in victims if not lost(victim)]
    return {
        "images": privacy["sampling"]["images"],
        "epsilon_if_hidden": privacy["sampling"]["epsilon_if_hidden"],
        "half_found_in_round": sorted(found)[len(victims) // 2] if len(found) > len(victims) // 2 else None,
        "last_found_in_round": max(found, default=None),
    }


def _files(victims: list[dict[str, Any]]) -> dict[str, object]:
    """The share of victims whose image file was decoded, and the mean length of these files in bits."""
    bits = [victim["bits_sent"] for victim in victims if victim["codec"]]
    return {
        "received_share": round(len(bits) / len(victims), 4),
        "bits_sent_mean": round(statistics.fmean(bits), 1) if bits else None,
    }


def rows_and_losses(folder: Path, batch: int) -> dict[str, object]:
    """Rows and directions of the structure, and the share of victims that collisions lose in expectation.

    Args:
        folder: Folder of the finished run; without a recorded payload, or for other structures, nothing is returned.
        batch: Images in an update.
    """
    shipped = folder / "exchange" / "payload-r0000.json"
    payload = json.loads(shipped.read_text()) if shipped.exists() else {"settings": {}, "tensors": {}}
    tensors = payload["tensors"]
    if "directions" not in tensors:
        return {}
    units, directions = tensors["unit_direction"]["shape"][0], tensors["directions"]["shape"][0]
    lost = 0.0 if payload["settings"].get("own_units") else lost_share(units, directions, batch)
    return {"units": units, "directions": directions, "lost_in_theory": round(lost, 5)}


def mean(victims: Iterable[Mapping[str, float]], field: str) -> float:
    """Mean of a field over victims, rounded to four decimals."""
    return round(statistics.fmean(victim[field] for victim in victims), 4)


def write_table(path: Path, command: str, rows: list[dict[str, object]]) -> None:
    """Write a table of attacks, see `write_rows`; columns that `COLUMNS` does not list are appended."""
    write_rows(path, command, rows, COLUMNS)


def write_rows(path: Path, command: str, rows: list[dict[str, object]], columns: Sequence[str] = ()) -> None:
    """Write a table; its first line holds the command and the versions of the packages.

    Args:
        path: CSV file.
        command: The command that makes the table.
        rows: Rows by column.
        columns: The first columns; others follow in their order of appearance.
    """
    versions = ", ".join(f"{package} {version(package)}" for package in PACKAGES)
    path.parent.mkdir(exist_ok=True)
    with path.open("w", newline="") as file:
        file.write(f"# {command}; {versions}\n")
        writer = csv.DictWriter(file, list(dict.fromkeys([*columns, *(name for row in rows for name in row)])))
        writer.writeheader()
        writer.writerows(rows)


def read_table(path: Path) -> list[dict[str, str]]:
    """Read the rows of a table by column."""
    with path.open(newline="") as file:
        next(file)
        return list(csv.DictReader(file))
