# SPDX-License-Identifier: Apache-2.0
"""The output of a run: reconstructions, `results.json`, and the last lines on the terminal."""

import hashlib
import logging
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from lightning_recon.attack import Attack, Reconstruction, ReconstructionAttack
from lightning_recon.callbacks.capture_check import Examined, examine
from lightning_recon.callbacks.clipping_budget import share_record
from lightning_recon.callbacks.console_tables import show_capture, show_release, show_results, training_line
from lightning_recon.callbacks.ground_truth import scored_one, truth_of, truths_of
from lightning_recon.callbacks.identification import with_identification
from lightning_recon.callbacks.mismatch import mismatch_record, sends_feedback
from lightning_recon.callbacks.payload_check import alarms_of
from lightning_recon.callbacks.protection import privacy_of
from lightning_recon.callbacks.recognition import Classifier, recognition_of
from lightning_recon.callbacks.reconstruction_file import export, finished, refined, write_reconstructions
from lightning_recon.callbacks.run_record import denoiser_of, mean_lpips, run_record
from lightning_recon.client import VictimClient
from lightning_recon.console import say
from lightning_recon.display import window_of
from lightning_recon.errors import UserError
from lightning_recon.evaluation.results import Record
from lightning_recon.evaluation.run_record import RunRecord, read_results, results_record, write_results
from lightning_recon.evaluation.scoring import Truth
from lightning_recon.files.digests import sha256
from lightning_recon.files.image_writer import write_image

_DENOISER = "denoiser"

log = logging.getLogger("lightning_recon")


class ResultsWriter(Callback):
    """Writes the reconstructions of a run and `results.json`, and prints a table of results."""

    def __init__(self, show: bool = True, inspect: bool = False, classifier: Classifier | None = None) -> None:
        """Choose what to print and what to check.

        Args:
            show: Whether to print the table of results.
            inspect: Whether to note in `payload_alarms` which checks of `lightning_recon.defense` would have warned a
                client of the model that it is sent first; takes a few passes through that model in double precision.
            classifier: A pretrained classifier, for the scores `recognition_top1` and `recognition_top5`: how often it
                predicts of a reconstruction what it predicts of the original. The attack never sees it.
        """
        self.show, self.inspect, self.classifier = show, inspect, classifier
        self._started = time.monotonic()
        self._spent = 0.0
        self._origin: dict[str, object] = {}
        self._record: Record | None = None
        self._examined: Examined | None = None
        self._network: nn.Module | None = None
        self._training = self._written = ""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Start the clock, which counts the clients' computation and the decoding too; check a captured update."""
        self._started, self._spent = time.monotonic(), 0.0
        if self.classifier is not None and stage != "predict" and isinstance(pl_module, Attack):
            self._network = self.classifier.build()
        self._examined = examine(trainer, pl_module) if isinstance(pl_module, Attack) else None
        self._origin = origin(trainer, pl_module) if stage == "fit" else {}
        if self._examined is not None and stage == "fit":
            self._origin["hash of the captured update"] = self._examined.fingerprint

    @property
    def record(self) -> Record | None:
        """What this run has written to `results.json`, until teardown; None if nothing, and on all ranks but one."""
        return self._record

    def state_dict(self) -> dict[str, Any]:
        """Seconds so far, and which noise and images they were spent on, for the checkpoint."""
        return {"seconds": self._seconds(), "origin": self._origin}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue the count of the checkpoint; a resumed run must have the noise and the images of its first part.

        Args:
            state_dict: What `state_dict` gave.

        Raises:
            UserError: The noise or the images configured now are not those of the recorded run.
        """
        if _DENOISER in self._origin and _DENOISER not in state_dict["origin"]:
            log.warning(
                "the checkpoint does not say which denoiser refined the run so far: an earlier version wrote it, whose "
                "default was `--model.denoiser SmallDenoiser`"
            )
        for name, value in state_dict["origin"].items():
            if name in self._origin and self._origin[name] != value:
                raise UserError(
                    f"{name} is {self._origin[name]}, but the run to be resumed had {value}: use the config.yaml of "
                    "that run"
                )
        self._spent = float(state_dict["seconds"])

    def _seconds(self) -> float:
        """Seconds of all parts of this run, without those that were lost after the last checkpoint."""
        return self._spent + time.monotonic() - self._started

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the reconstructions, and their scores if the true images are known."""
        if isinstance(pl_module, VictimClient):
            self._training = training_line(pl_module, pl_module.accountant.total(trainer.global_step))
        if not isinstance(pl_module, Attack):
            return
        seconds = self._seconds()
        found = pl_module.gathered()
        if not trainer.is_global_zero:
            return
        root, scorable = Path(trainer.default_root_dir), bool(truths_of(trainer))
        reconstructed, images = write_reconstructions(root, found), list[str]()
        if not scorable:
            exported = export(reconstructed, root / "images", pl_module.task.bit_depth)
            images = [f"images/{name}" for name in exported]
        if not scorable and self._examined is None:
            # They warn; a replay, which knows neither the images nor the clients, writes no results.
            share_record(pl_module, found)
            mismatch_record(pl_module.task, found, pl_module.payload, sends_feedback(pl_module))
            return
        run = run_record(trainer, pl_module, found, seconds, trainer.global_step, self._capture)
        if scorable:
            self._score(trainer, pl_module, found, run)
        else:
            self._write(root, results_record(run, found, [], images))

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Score a finished run again."""
        if not isinstance(pl_module, Attack):
            return
        decoded = pl_module.gathered()
        if not trainer.is_global_zero:
            return
        if not truths_of(trainer):
            raise UserError("the true images are not known: give --data to score the run")
        root = Path(trainer.default_root_dir)
        found, old = refined(root, decoded), read_results(root) or {"summary": {}}
        seconds, steps = (old["summary"].get(name) or 0 for name in ("seconds", "steps"))
        run = run_record(trainer, pl_module, found, seconds, steps, self._capture)
        own = ("seed", "participation", "batchnorm", "payload_alarms", "denoiser")
        kept: Any = {"denoiser": None} | {name: old[name] for name in own if name in old}
        if old_privacy := old.get("privacy"):
            # Records of earlier versions do not say so, but their noise followed from `seed`.
            kept["privacy"] = run.privacy | {"reproducible_noise": old_privacy.get("reproducible_noise", "seed" in old)}
        self._score(trainer, pl_module, found, replace(run, **kept))

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Export the reconstructions of a finished run, in the attacker's order."""
        if isinstance(pl_module, Attack) and trainer.is_global_zero:
            root = Path(trainer.default_root_dir)
            count = len(export(finished(root)[0], root / "predictions", pl_module.task.bit_depth))
            self._written = f"{count} reconstructions of {root} as PNG files in {root / 'predictions'}"

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show what the client would release, for `recon validate`."""
        if trainer.state.fn != "validate" or not trainer.is_global_zero:
            return
        if isinstance(pl_module, Attack) and isinstance(pl_module.client, VictimClient):
            payload = pl_module.make_payload(pl_module.client)
            show_release(pl_module.client, payload)
            mismatch_record(pl_module.client.task, [], payload, sends_feedback(pl_module))  # warns
        if isinstance(pl_module, Attack) and self._examined is not None:
            show_capture(privacy_of(pl_module.client), self._examined.capture)
            if self._examined.network is not None:
                say(self._examined.network)
        say("nothing was attacked, and nothing written; recon fit with the same options attacks")

    @property
    def _capture(self) -> Record | None:
        """The section `capture`; None unless the update was captured."""
        return None if self._examined is None else self._examined.capture

    def _score(self, trainer: Trainer, module: Attack, found: list[Reconstruction], run: RunRecord) -> None:
        """Match with the true images, write `results.json` and the images."""
        truths, root = truths_of(trainer), Path(trainer.default_root_dir)
        scored = [scored_one(one, truths, module) for one in found]
        of_each = [truth_of(truths, one.client, module) for one in found]
        scored, run = with_identification(trainer, module, found, scored, of_each, run)
        if self.inspect and run.payload_alarms is None:
            run = replace(run, payload_alarms=alarms_of(trainer, module))
        if self.classifier is not None and self._network is not None:
            agreement, baseline = recognition_of(
                scored, of_each, module.mean_image, self._network, self.classifier.image_size
            )
            run = replace(run, recognition=agreement, recognition_of_mean_image=baseline)
        run = replace(run, lpips_mean=mean_lpips(scored, of_each))
        images = [image for one in scored for image in one.images]
        names = [f"images/{number:03d}.png" for number in range(len(images))]
        record = results_record(run, found, scored, names)
        depth = module.task.bit_depth
        window = window_of(torch.cat([truth.photographs for truth in of_each]), depth) if depth > 8 else None
        for name, image in zip(names, images, strict=True):
            write_image(root / name, image.clamp(0, 1), depth, window)
        self._write(root, record)

    def _write(self, root: Path, record: Record) -> None:
        write_results(root / "results.json", record)
        self._record = record

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Print the table after the progress bar has been closed."""
        if self.show and self._record is not None:
            show_results(self._record, Path(trainer.default_root_dir))
        if self.show and self._training and trainer.is_global_zero:
            say(self._training)
        if self._written:
            say(self._written)
        self._record, self._training, self._written = None, "", ""


def origin(trainer: Trainer, module: LightningModule) -> dict[str, object]:
    """Identify the noise and the images of a run, which resuming it must find unchanged.

    The server does not know them, so the recorded exchange cannot hold them.

    Args:
        trainer: The trainer, with its data module set up.
        module: The attack.

    Returns:
        What the client does that the server does not know, and a hash of the images, as far as the run has a simulated
        client and images.
    """
    client = getattr(module, "client", None)
    found: dict[str, object] = {}
    if isinstance(client, VictimClient):
        found = {f"client.{name}": getattr(client, name) for name in ("seed", "participation", "batch_norm")}
    if truths := truths_of(trainer):
        found["hash of the clients' pictures"] = _digest(truths)
    if isinstance(module, ReconstructionAttack):
        found[_DENOISER] = denoiser_of(module.denoiser)
    return found


def _digest(truths: list[Truth]) -> str:
    return hashlib.sha256("".join(sha256(truth.images) for truth in truths).encode()).hexdigest()[:12]
