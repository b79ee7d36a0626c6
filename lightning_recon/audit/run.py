# SPDX-License-Identifier: Apache-2.0
"""A finished run as the audit reads it: its record and the names of its images."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning_recon.callbacks.truth_writer import INDEX
from lightning_recon.errors import UserError
from lightning_recon.evaluation.run_record import read_results
from lightning_recon.evaluation.sampled_epsilon import sampled_epsilon
from lightning_recon.exchange import BatchSampling, current_noise_share
from lightning_recon.files.faults import FAULTS, readable
from lightning_recon.files.schema import ORIGINALS
from lightning_recon.files.serialization import read_json, read_yaml
from lightning_recon.printable import printable
from lightning_recon.privacy.correlated_noise import equivalent_multiplier
from lightning_recon.privacy.incomplete_sums import accounted_mechanism
from lightning_recon.privacy.mechanism import Adjacency
from lightning_recon.privacy.parameters import mechanism_named

FAILED = "failed.txt"

_BUNDLED = {"samples": "bundled photographs", "samples_grey16": "bundled grey images"}


@dataclass(frozen=True)
class Setting:
    """The protection and the data under attack, without the noise: runs that differ in any of it are never averaged.

    Args:
        granularity: "sample" or "update".
        per_layer: Whether each tensor is clipped by itself.
        batch_size: Images a client.
        rounds: Rounds with the same batch.
        aggregated: Clients whose updates reach the server as their sum only.
        noise_share: Each client's share of the noise of the sum.
        participation: Probability with which a client answers on the images under attack; None if not known.
        delta: At which epsilon is accounted.
        adjacency: Neighbouring relation of the epsilon that is named first.
        about: The network, the images and their size, in words; empty if not known.
        pictures: Hash of the source of the images; empty if not known.
        mechanism: Name of the mechanism.
        local_training: How clients train, in words; one step of plain SGD in records of earlier versions.
        compression: What their updates go through besides clip and noise, in words; empty for nothing.
        sampling: What batches are drawn from, and how, in words; empty where every round is about the same images.
        over_rounds: How noise and clipping norm depend on earlier rounds, in words; empty where they do not.
        quantization: How sums are those of integers, in words; empty for real numbers.
        client_dropout: Probability with which a client drops out of a sum.
    """

    granularity: str
    per_layer: bool
    batch_size: int
    rounds: int
    aggregated: int = 1
    noise_share: str = "local"
    participation: float | None = 1.0
    delta: float = 1e-5
    adjacency: str = "add_remove"
    about: str = ""
    pictures: str = field(default="", repr=False)
    mechanism: str = "gaussian"
    local_training: str = ""
    compression: str = ""
    sampling: str = ""
    over_rounds: str = ""
    quantization: str = ""
    client_dropout: float = 0.0


@dataclass(frozen=True, eq=False)
class Outcome:
    """One finished run.

    Args:
        attack: Name that the report gives the attack.
        name: Of the run.
        folder: Of the run.
        record: Content of `results.json`.
        originals: Entries of `truth/index.json` by client and index; see `callbacks.truth_writer`.
        about: The network, the images and their size, in words; empty if not known.
        pictures: Hash of the source of the images; empty if not known.
        change: The change of a protection that the run was made for; empty for a run of the sweep itself.
    """

    attack: str
    name: str
    folder: Path
    record: Mapping[str, Any]
    originals: Mapping[tuple[int, int], Mapping[str, Any]]
    about: str = ""
    pictures: str = ""
    change: str = ""

    @property
    def scored(self) -> bool:
        """Whether the true images were known, so that every victim has a PSNR."""
        victims = self.record["victims"]
        return bool(victims) and all(victim.get("psnr") is not None for victim in victims)

    @property
    def detects(self) -> bool:
        """Whether the attack detected a victim in any draw: `detected` of an entry of `victims`."""
        return any(victim["detected"] for victim in self.record["victims"])

    @property
    def setting(self) -> Setting:
        """The protection and the data under attack, without the noise."""
        privacy, local = self.record["privacy"], self.record.get("local_training") or {}
        compression = self.record.get("compression") or {}
        return Setting(
            granularity=privacy["granularity"],
            per_layer=bool(privacy["per_layer"]),
            batch_size=int(privacy["batch_size"]),
            rounds=int(privacy["rounds"]),
            aggregated=int(privacy.get("aggregated", 1)),
            noise_share=str(current_noise_share(privacy.get("noise_share", "local"))),
            participation=self.record.get("participation", 1.0),
            delta=float(privacy["delta"]),
            adjacency=str(privacy["adjacency"]),
            about=self.about,
            pictures=self.pictures,
            mechanism=str(privacy.get("mechanism", "gaussian")),
            local_training="" if local.get("plain_step", True) else printable(str(local["words"]), 300),
            compression=printable(str(compression.get("words", "")), 300),
            sampling=sampling_in_words(privacy.get("sampling")),
            over_rounds=over_rounds_in_words(privacy),
            quantization=printable(str((self.record.get("quantization") or {}).get("words", "")), 300),
            client_dropout=float(self.record.get("client_dropout") or 0.0),
        )

    def epsilon(self, rounds: int, adjacency: Adjacency) -> float | None:
        """Accounted epsilon of so many rounds together; None without noise, and of a mechanism that is not at hand."""
        return recorded_epsilon(self.record["privacy"], self.noise, rounds, adjacency)

    @property
    def noise(self) -> float:
        """The noise multiplier; 0 without clipping, where noise gives no guarantee."""
        privacy = self.record["privacy"]
        return 0.0 if privacy["max_grad_norm"] is None else float(privacy["noise_multiplier"])

    @property
    def seed(self) -> int:
        """The seed of the run; 0 where another program drew the noise."""
        return int(self.record["seed"] or 0)

    def image_of(self, victim: Mapping[str, Any]) -> object:
        """Key of a victim's image: its name, or seed, client and index where none is known."""
        place = victim["client"], victim["index"]
        original = self.originals.get(place)
        return original["name"] if original else (self.seed, *place)

    def by_image(self, gain: bool) -> dict[object, list[float]]:
        """PSNR in dB of every draw by image, so that one attacked under several seeds counts as one.

        Args:
            gain: Whether to subtract the PSNR of a mean image on the same image.

        Returns:
            Values by the image's name; by client and index where it is not known. Empty if `gain` is true and
            the scores of the mean image are not all known.
        """
        values: dict[object, list[float]] = defaultdict(list)
        for victim in self.record["victims"]:
            original = self.originals.get((victim["client"], victim["index"]))
            if gain and original is None:
                return {}
            baseline = original["mean_image_psnr"] if gain and original else 0.0
            values[self.image_of(victim)].append(victim["psnr"] - baseline)
        return dict(values)


def cell_folder(output: Path, name: str) -> Path:
    """Folder of a cell of an audit."""
    return output / "cells" / name


def is_finished(folder: Path) -> bool:
    """Whether a cell has a valid record; one whose record is damaged is measured again."""
    try:
        return read_results(folder) is not None
    except UserError:
        return False


def read_outcome(folder: Path, attack: str | None = None, change: str = "") -> Outcome | None:
    """A finished run; None if the folder holds none.

    Args:
        folder: Folder of the run.
        attack: Name that the report gives the attack; None for its own.
        change: The change of a protection that the run was made for, if it was.

    Raises:
        UserError: Its record, or that of its victims, is damaged.
    """
    record = read_results(folder)
    if record is None:
        return None
    originals: dict[tuple[int, int], Mapping[str, Any]] = {}
    if (path := folder / INDEX).exists():
        with readable(path):
            victims = read_json(path, ORIGINALS)["victims"]
            originals = {(entry["client"], entry["index"]): entry for entry in victims}
    about, pictures = _about(folder)
    name = printable(folder.name)
    return Outcome(attack or str(record["attack"]), name, folder, record, originals, about, pictures, change)


def _about(folder: Path) -> tuple[str, str]:
    """The target network and the images in words, and a hash of the images' source; empty without a config."""
    try:
        config = read_yaml(folder / "config.yaml")
        client, data = config["model"]["init_args"]["client"]["init_args"], config["data"]["init_args"]
        root, kind = data.get("root"), data.get("source", "samples")
        trained = "trained" if client.get("weights") else "untrained"
        # Neither the seed, which chooses among the images, nor how they are distributed over clients.
        source = {"class": config["data"]["class_path"], "root": root, "source": kind, "masks": data.get("masks")}
        network = f"{client['network']}, {trained}" if "network" in client else "an update from elsewhere"
        if "network" not in client:
            source["client"] = client  # another file, other images
        mark = hashlib.sha256(json.dumps(source, sort_keys=True, default=str).encode()).hexdigest()[:8]
        named = f"images of {Path(root).name}" if root else _BUNDLED.get(kind, kind)
    except FAULTS:  # missing, damaged, or of another kind of run
        return "", ""
    return printable(f"{network}; {named}, {_format_in_words(data)}", 300), mark


def _format_in_words(data: Mapping[str, Any]) -> str:
    """Size, and channels and bits of a value where they are not those of 8-bit RGB."""
    size, channels, bits = data["image_size"], data.get("channels", 3), data.get("bit_depth", 8)
    height, width = size if isinstance(size, list) else (size, size)
    words = f"{height} × {width} pixels"
    if (channels, bits) != (3, 8):
        words += f", {channels} channel{'s' if channels > 1 else ''} of {bits} bits"
    return words


def sampling_in_words(sampling: Mapping[str, Any] | None) -> str:
    """How batches are drawn; empty where every round is about the same images."""
    if not sampling:
        return ""
    how = {
        "shuffle": "shuffled in every epoch",
        "fixed_size": "drawn anew in every round",
        "poisson": "Poisson samples",
    }
    return f"from {sampling['images']} images, {how.get(sampling['method'], printable(str(sampling['method'])))}"


def over_rounds_in_words(privacy: Mapping[str, Any]) -> str:
    """How noise and clipping norm depend on earlier rounds; empty where they do not."""
    bands = int(privacy.get("noise_bands", 1))
    words = [f"noise correlated over {bands} rounds"] if bands > 1 else []
    words += ["a clipping norm that adapts over the rounds"] if privacy.get("adaptive_clip") else []
    return ", ".join(words)


def recorded_epsilon(
    privacy: Mapping[str, Any], noise_multiplier: float, rounds: int, adjacency: Adjacency
) -> float | None:
    """Accounted epsilon of a recorded mechanism under another noise multiplier, or for another number of rounds.

    Args:
        privacy: The section `privacy` of `results.json`.
        noise_multiplier: z.
        rounds: Releases of the same data.
        adjacency: "add_remove" or "replace_one".

    Returns:
        None without noise, and for a mechanism of the user's own whose module is not imported.
    """
    try:
        mechanism = mechanism_named(str(privacy.get("mechanism", "gaussian")))
    except UserError:
        return None
    drawn, bands = privacy.get("sampling"), int(privacy.get("noise_bands", 1))
    sampling = BatchSampling(drawn["method"], drawn["images"]) if drawn else BatchSampling()
    sampling = sampling.accounted(str(privacy["granularity"]), bands)
    each, guarantee = int(privacy.get("releases_per_round", 1)), (float(privacy["delta"]), adjacency)
    accounted = accounted_mechanism(
        mechanism,
        clients=int(privacy.get("aggregated", 1)),
        distributed=current_noise_share(privacy.get("noise_share", "local")) == "distributed",
        dropout=float(privacy.get("client_dropout", 0.0)),
        rounds=rounds,
        releases=each,
        noise_bands=bands,
        adaptive=bool(privacy.get("adaptive_clip")),
    )
    multiplier = equivalent_multiplier(noise_multiplier, bands, rounds)
    return sampled_epsilon(accounted, multiplier, rounds, each, sampling, int(privacy["batch_size"]), guarantee)
