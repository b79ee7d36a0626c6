# SPDX-License-Identifier: Apache-2.0
"""What a run comes to: pictures, `results.json`, and the last lines on the terminal."""

import hashlib
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from lightning_recon.attack import Attack, Reconstruction
from lightning_recon.callbacks.capture_check import Examined, examine, record_without_truth
from lightning_recon.callbacks.clipping_budget import share_record
from lightning_recon.callbacks.console_tables import show_capture, show_release, show_results, training_line
from lightning_recon.callbacks.ground_truth import label_accuracy, scored_one, truth_of, truths_of
from lightning_recon.callbacks.payload_check import alarms_of
from lightning_recon.callbacks.protection import privacy_of
from lightning_recon.client import VictimClient
from lightning_recon.console import say
from lightning_recon.errors import UserError
from lightning_recon.evaluation.metrics import lpips_per_image
from lightning_recon.evaluation.results import (
    Record,
    bounds_record,
    named_pictures,
    results_record,
    write_json,
)
from lightning_recon.evaluation.scoring import Scored, Truth
from lightning_recon.files.renamed_fields import record_with_both_names
from lightning_recon.files.schema import BELIEFS as BELIEFS_SCHEMA
from lightning_recon.files.schema import RESULTS
from lightning_recon.files.serialization import (
    read_json,
    read_sealed,
    readable,
    sha256,
    validated,
    write_picture,
    write_sealed,
)
from lightning_recon.structure.base import ReceivedFile
from lightning_recon.structure.coding.code_plan import channel_code_name
from lightning_recon.structure.layer import structure_bytes

PICTURES = "reconstructions"
BELIEFS = "beliefs"  # of the header: what the attacker says of its pictures


class ResultsWriter(Callback):
    """Writes what a run came to: pictures, `results.json`, and a table on the terminal."""

    def __init__(self, show: bool = True, inspect: bool = False) -> None:
        """Choose what to print, and what to look at.

        Args:
            show: Whether to print the table of results.
            inspect: Whether to note in `payload_alarms` which checks of `lightning_recon.defense` would have warned a
                client of the model that it is sent first; takes a few passes through that model in double precision.
        """
        self.show, self.inspect = show, inspect
        self._started = time.monotonic()
        self._spent = 0.0
        self._origin: dict[str, object] = {}
        self._record: Record | None = None
        self._examined: Examined | None = None
        self._training = self._written = ""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Start the clock: what the clients and the decoding take counts as well; look at a captured update."""
        self._started, self._spent = time.monotonic(), 0.0
        self._examined = examine(trainer, pl_module) if isinstance(pl_module, Attack) else None
        self._origin = origin(trainer, pl_module) if stage == "fit" else {}
        if self._examined is not None and stage == "fit":
            self._origin["hash of the captured update"] = self._examined.fingerprint

    @property
    def record(self) -> Record | None:
        """What this run has written to `results.json`, until teardown; None if nothing, and on all ranks but one."""
        return self._record

    def state_dict(self) -> dict[str, Any]:
        """Seconds so far and whose noise and pictures they were about, for the checkpoint."""
        return {"seconds": self._seconds(), "origin": self._origin}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting where the checkpoint was written; a resumed run is scored as the run that it was.

        Args:
            state_dict: What `state_dict` gave.

        Raises:
            UserError: The noise or the pictures configured now are not those of the recorded run.
        """
        for name, value in state_dict["origin"].items():
            if name in self._origin and self._origin[name] != value:
                raise UserError(
                    f"{name} is {self._origin[name]}, but the run to be resumed had {value}: use the config.yaml of "
                    "that run"
                )
        self._spent = float(state_dict["seconds"])

    def _seconds(self) -> float:
        """Seconds of all parts of this run, but for those that were lost after the last checkpoint."""
        return self._spent + time.monotonic() - self._started

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the attacker's pictures, and how good they are if the truth is at hand."""
        if isinstance(pl_module, VictimClient):
            self._training = training_line(pl_module, trainer.global_step)
        if not isinstance(pl_module, Attack):
            return
        seconds = self._seconds()
        found = pl_module.gathered()
        if not trainer.is_global_zero:
            return
        root = Path(trainer.default_root_dir)
        pictures = {_key(one): one.pictures.contiguous() for one in found}
        write_sealed(root / f"{PICTURES}.safetensors", pictures, BELIEFS, beliefs_of(found))
        cost: dict[str, Any] = {"seconds": seconds, "steps": trainer.global_step, **share_record(pl_module, found)}
        if truths_of(trainer):
            self._score(trainer, pl_module, found, cost)
            return
        export(pictures, root / "images")
        if self._examined is not None:
            images = [[f"images/{name}-{n:03d}.png" for n in range(len(pictures[name]))] for name in pictures]
            self._record = record_without_truth(pl_module, found, images, self._examined.privacy, cost)
            self._record |= {"capture": self._examined.capture, "skipped_pictures": []}
            write_json(root / "results.json", self._record)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Score a finished run again."""
        if not isinstance(pl_module, Attack):
            return
        decoded = pl_module.gathered()
        if not trainer.is_global_zero:
            return
        if not truths_of(trainer):
            raise UserError("nobody knows what the clients trained on: give --data to score the run")
        root = Path(trainer.default_root_dir)
        final, beliefs = finished(root)
        if fault := _misfit(decoded, final):
            raise UserError(f"{root / PICTURES}.safetensors does not belong to this run ({fault}): run recon fit again")
        found = [replace(one, pictures=final[_key(one)], **beliefs.get(_key(one), {})) for one in decoded]
        old = recorded(root)
        cost = {name: old["summary"].get(name) or 0 for name in ("seconds", "steps")}
        self._score(
            trainer,
            pl_module,
            found,
            cost
            | share_record(pl_module, found)
            | {name: old[name] for name in old.keys() & {"seed", "participation", "batchnorm", "payload_alarms"}},
        )

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Export the pictures of a finished run, in the attacker's order."""
        if isinstance(pl_module, Attack) and trainer.is_global_zero:
            root = Path(trainer.default_root_dir)
            pictures = finished(root)[0]
            export(pictures, root / "predictions")
            count = sum(map(len, pictures.values()))
            self._written = f"{count} reconstructions of {root} as PNG files in {root / 'predictions'}"

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show what the client would release, for `recon validate`."""
        if trainer.state.fn != "validate" or not trainer.is_global_zero:
            return
        if isinstance(pl_module, Attack) and isinstance(pl_module.client, VictimClient):
            show_release(pl_module.client, pl_module.make_payload(pl_module.client))
        if self._examined is not None:
            show_capture(self._examined.privacy, self._examined.capture)
            if self._examined.network is not None:
                say(self._examined.network)
        say("nothing was attacked, and nothing written; recon fit with the same options attacks")

    def _score(self, trainer: Trainer, module: Attack, found: list[Reconstruction], cost: dict[str, Any]) -> None:
        """Match with the truth, write `results.json` and the images, log, print."""
        truths, root = truths_of(trainer), Path(trainer.default_root_dir)
        scored = [scored_one(one, truths, module) for one in found]
        cost = cost | {"label_accuracy": label_accuracy(found, truths, module)}
        if self.inspect and cost.get("payload_alarms") is None:
            cost = cost | {"payload_alarms": alarms_of(trainer, module)}
        record = run_record(module, truths, scored, cost, self._examined)
        if self._examined is not None:
            record["capture"] = self._examined.capture
        record["skipped_pictures"] = list(getattr(getattr(trainer, "datamodule", None), "skipped_pictures", []))
        for name, picture in named_pictures(scored):
            write_picture(root / name, picture.clamp(0, 1))
        summary: Any = record["summary"]
        distances = [
            lpips_per_image(one.pictures, truth_of(truths, attacked.client, module).images.cpu())
            for attacked, one in zip(found, scored, strict=True)
        ]
        if known := [distance for distance in distances if distance is not None]:
            summary["lpips_mean"] = float(torch.cat(known).mean())
        write_json(root / "results.json", record)
        self._record = record

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Print the table once the progress bar is gone."""
        if self.show and self._record is not None:
            show_results(self._record, Path(trainer.default_root_dir))
        if self.show and self._training and trainer.is_global_zero:
            say(self._training)
        if self._written:
            say(self._written)
        self._record, self._training, self._written = None, "", ""


def run_record(
    module: Attack,
    truths: list[Truth],
    scored: list[Scored],
    cost: dict[str, Any],
    examined: Examined | None,
) -> Record:
    """The whole of `results.json`, but for what is known of a captured update."""
    client, task, statistics = module.client, module.task, module.statistics
    # A run that is scored again was made as its own record says.
    own: dict[str, Any] = {"seed": None, "batchnorm": None, "participation": None}
    if examined is not None:
        privacy = examined.privacy
    elif isinstance(client, VictimClient):
        privacy = privacy_of(client)
        normalised = client.batch_norm if client.normalises_batches else None
        own = {"seed": client.seed, "batchnorm": normalised, "participation": client.participation}
    else:
        raise UserError("only a run with its own clients can be scored: use `recon replay` for a recorded exchange")
    clipping: Any = {name: getattr(task, name) for name in ("granularity", "per_layer", "rounds", "mechanism")}
    return results_record(
        attack=module.name,
        config="config.yaml",
        privacy=privacy,
        oracles=module.oracles,
        public_statistics=statistics.name,
        truths=truths,
        scored=scored,
        mean_image=statistics.mean,
        bounds=bounds_record(truths, statistics.variance, noise_multiplier=task.update_multiplier, **clipping),
        structure_bytes=structure_bytes(module.payload) if module.payload is not None else 0,
        channel_code=channel_code_name(module.payload) if module.payload is not None else None,
        **(own | cost),
    )


def origin(trainer: Trainer, module: LightningModule) -> dict[str, object]:
    """Whose noise and whose pictures a run is about: what resuming it must find unchanged.

    The server is not told either, so the exchange cannot hold them.

    Args:
        trainer: The trainer, with its data module set up.
        module: The attack.

    Returns:
        What the client does that the server does not know, and a hash of the pictures, as far as the run has a client
        of its own and pictures.
    """
    client = getattr(module, "client", None)
    found: dict[str, object] = {}
    if isinstance(client, VictimClient):
        found = {f"client.{name}": getattr(client, name) for name in ("seed", "participation", "batch_norm")}
    if truths := truths_of(trainer):
        found["hash of the clients' pictures"] = _digest(truths)
    return found


def finished(root: Path) -> tuple[dict[str, Tensor], dict[str, dict[str, Any]]]:
    """The reconstructions that a run left in its folder, and what `beliefs_of` said of them.

    Raises:
        UserError: the file is missing, damaged, or not what was written.
    """
    path = root / f"{PICTURES}.safetensors"
    with readable(path):
        pictures, beliefs = read_sealed(path, BELIEFS)
        for name, batch in pictures.items():
            if batch.ndim != 4 or batch.shape[1] != 3 or not bool(batch.isfinite().all()):
                raise ValueError(f"{name} holds no pictures")
        said: Any = validated(beliefs, BELIEFS_SCHEMA)
    for one in said.values():
        one["labels"] = None if one["labels"] is None else torch.tensor(one["labels"], dtype=torch.int64)
        if one.get("files") is not None:
            one["files"] = tuple(file and ReceivedFile(**file) for file in one["files"])
    return pictures, dict(said)


def recorded(root: Path) -> dict[str, Any]:
    """The run's `results.json`, of which scoring again keeps what it cannot measure; without one an empty summary.

    Raises:
        UserError: it is damaged.
    """
    path = root / "results.json"
    if not path.exists():
        return {"summary": {}}
    with readable(path):
        record: Any = read_json(path, RESULTS)
    return record_with_both_names(record)


def _misfit(decoded: list[Reconstruction], final: dict[str, Tensor]) -> str:
    """Why stored pictures cannot be those of the updates at hand; empty if they can."""
    for one in decoded:
        if (stored := final.get(_key(one))) is None:
            return f"it lacks {_key(one)}"
        if stored.shape != one.pictures.shape:
            return f"{_key(one)} has shape {tuple(stored.shape)}, not {tuple(one.pictures.shape)}"
    return ""


def beliefs_of(found: list[Reconstruction]) -> dict[str, Any]:
    """What the attacker says of its pictures beside them: whether it vouches for them, labels, files."""
    said = {}
    for one in found:
        labels = None if one.labels is None else one.labels.tolist()
        files = None if one.files is None else [file and asdict(file) for file in one.files]
        said[_key(one)] = {"evident": one.evident, "labels": labels, "files": files}
    return said


def export(pictures: dict[str, Tensor], folder: Path) -> None:
    """Write every picture as PNG, in the attacker's order."""
    for name, batch in pictures.items():
        for number, picture in enumerate(batch):
            write_picture(folder / f"{name}-{number:03d}.png", picture)


def _digest(truths: list[Truth]) -> str:
    return hashlib.sha256("".join(sha256(truth.images) for truth in truths).encode()).hexdigest()[:12]


def _key(one: Reconstruction) -> str:
    return f"client{one.client:03d}-draw{one.draw:03d}"
