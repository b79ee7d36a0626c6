# SPDX-License-Identifier: Apache-2.0
"""What a finished cell, or any finished run, came to: its record and the pictures that belong to it."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lightning_recon.callbacks.originals import INDEX
from lightning_recon.errors import UserError
from lightning_recon.evaluation.results import SCHEMA_VERSION
from lightning_recon.storage import readable

FAILED = "failed.txt"
PLAN = "plan.json"


@dataclass(frozen=True)
class Setting:
    """What a client's pictures are protected by, but for the noise.

    Args:
        granularity: "sample" or "update".
        per_layer: Whether each tensor is clipped by itself.
        batch_size: Pictures a client.
        rounds: Rounds with the same batch.
        about: The network and the size of the pictures, in words; empty if not known.
    """

    granularity: str
    per_layer: bool
    batch_size: int
    rounds: int
    about: str = ""


@dataclass(frozen=True, eq=False)
class Outcome:
    """One finished run.

    Args:
        attack: Name that the report gives the attack.
        name: Of the run.
        folder: Of the run.
        record: Content of `results.json`.
        originals: What is known of the victims, by client and index; see `callbacks.originals`.
        about: The network and the size of the pictures, in words; empty if not known.
    """

    attack: str
    name: str
    folder: Path
    record: Mapping[str, Any]
    originals: Mapping[tuple[int, int], Mapping[str, Any]]
    about: str = ""

    @property
    def setting(self) -> Setting:
        """The protection but for the noise."""
        privacy = self.record["privacy"]
        layers, batch_size, rounds = bool(privacy["per_layer"]), int(privacy["batch_size"]), int(privacy["rounds"])
        return Setting(privacy["granularity"], layers, batch_size, rounds, self.about)

    @property
    def noise(self) -> float:
        """The noise multiplier; 0 without clipping, where noise protects nothing."""
        privacy = self.record["privacy"]
        return 0.0 if privacy["max_grad_norm"] is None else float(privacy["noise_multiplier"])

    @property
    def seed(self) -> int:
        """The seed of the run."""
        return int(self.record["seed"])

    def by_picture(self, gain: bool) -> dict[object, list[float]]:
        """PSNR in dB of every draw by picture, so that one seen under several seeds counts as one.

        Args:
            gain: Whether what a mean image scores on the same picture is subtracted.

        Returns:
            Values by the picture's name; by client and index where it is not known. Empty if a gain is asked for and
            the scores of the mean image are not all known.
        """
        values: dict[object, list[float]] = defaultdict(list)
        for victim in self.record["victims"]:
            place = victim["client"], victim["index"]
            original = self.originals.get(place)
            if gain and original is None:
                return {}
            guess = original["mean_image_psnr"] if gain and original else 0.0
            values[original["name"] if original else (self.seed, *place)].append(victim["psnr"] - guess)
        return dict(values)


def cell_folder(output: Path, name: str) -> Path:
    """Folder of a cell of an audit."""
    return output / "cells" / name


def read_record(folder: Path) -> dict[str, Any] | None:
    """Content of a run's `results.json`; None if there is none, or none that can be used."""
    try:
        record = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    whole = isinstance(record, dict) and record.keys() >= {"privacy", "victims", "summary", "baselines", "bounds"}
    return record if whole and record.get("schema_version") == SCHEMA_VERSION else None


def read_outcome(folder: Path, attack: str | None = None) -> Outcome | None:
    """A finished run; None if the folder holds none.

    Args:
        folder: Folder of the run.
        attack: Name that the report gives the attack; None for its own.
    """
    record = read_record(folder)
    if record is None:
        return None
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))["victims"]
        originals = {(entry["client"], entry["index"]): entry for entry in index}
    except (OSError, ValueError, LookupError, TypeError):
        originals = {}
    return Outcome(attack or str(record["attack"]), folder.name, folder, record, originals, _about(folder))


def read_runs(folders: Sequence[Path]) -> list[Outcome]:
    """The finished runs of some folders, each a run's or an audit's output.

    Raises:
        UserError: A folder holds neither.
    """
    found: list[Outcome] = []
    for folder in folders:
        outcomes = [read_outcome(folder)]
        if (folder / PLAN).is_file():
            with readable(folder / PLAN):
                cells = json.loads((folder / PLAN).read_text(encoding="utf-8"))["cells"]
                outcomes = [
                    read_outcome(cell_folder(folder, Path(name).name), attack) for name, attack in cells.items()
                ]
        if not any(outcomes):
            raise UserError(f"{folder} holds no results.json of a finished run: name folders of runs or of an audit")
        found += [outcome for outcome in outcomes if outcome is not None]
    return found


def _about(folder: Path) -> str:
    """The target network and the size of the pictures, from the run's config; empty if that is gone."""
    try:
        config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        client, size = config["model"]["init_args"]["client"]["init_args"], config["data"]["init_args"]["image_size"]
    except (OSError, yaml.YAMLError, LookupError, TypeError):
        return ""
    return f"{client['network']}, {'trained' if client.get('weights') else 'untrained'}; {size} × {size} pixels"
