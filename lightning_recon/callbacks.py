# SPDX-License-Identifier: Apache-2.0
"""The audience: callbacks that know the truth, the loggers and the run folder, and tell the attack nothing."""

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from rich.console import Console
from safetensors.torch import load_file
from torch import Tensor
from torchvision.utils import make_grid, save_image

from lightning_recon.attack import Reconstruction, ReconstructionAttack
from lightning_recon.attack.conversation import converse
from lightning_recon.errors import UserError
from lightning_recon.evaluation.comparison import comparison_figure
from lightning_recon.evaluation.fidelity import lpips_per_image
from lightning_recon.evaluation.results import (
    Record,
    bounds_record,
    named_pictures,
    privacy_record,
    results_record,
    write_json,
)
from lightning_recon.evaluation.scoring import Attacked, Scored, Truth, score
from lightning_recon.storage import readable, write_tensors
from lightning_recon.structure import Structure
from lightning_recon.structure.inference import structure_bytes
from lightning_recon.terminal import show_release, show_results
from lightning_recon.victim import VictimClient

PICTURES = "reconstructions"


class ImageGrid(Callback):
    """Shows each attacked batch in TensorBoard as it is refined: truth, first decoding, present state."""

    def __init__(self, every_n_steps: int = 20, clients: int = 4) -> None:
        """Choose how much to show.

        Args:
            every_n_steps: Steps between two grids.
            clients: At most so many client batches are shown, the first draw of each.
        """
        self.every_n_steps = every_n_steps
        self.clients = clients
        self._shown = -1

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the first decoding."""
        self._show(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        """Show the present state now and then."""
        if trainer.global_step % self.every_n_steps == 0:
            self._show(trainer, pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the last state, if no step has."""
        if trainer.global_step != self._shown:
            self._show(trainer, pl_module)

    def _show(self, trainer: Trainer, module: LightningModule) -> None:
        truths = truths_of(trainer)
        if not isinstance(module, ReconstructionAttack) or not truths:
            return
        self._shown = trainer.global_step
        found = module.gathered()
        if not trainer.is_global_zero:
            return
        scored = [scored_one(one, truths, module) for one in found if one.client < self.clients]
        victims = [victim for one in scored for victim in one.victims]
        for logger in trainer.loggers:
            logger.log_metrics({"psnr": sum(v.psnr for v in victims) / len(victims)}, trainer.global_step)
            if not isinstance(logger, TensorBoardLogger):
                continue
            for one in scored:
                client, draw = one.victims[0].client, one.victims[0].draw
                if draw == 0:
                    rows = torch.cat([truths[client].images.cpu(), one.initial.cpu(), one.pictures.cpu()])
                    grid = make_grid(rows, nrow=len(one.victims))
                    logger.experiment.add_image(f"client_{client}/truth_decoded_refined", grid, trainer.global_step)


class ResultsWriter(Callback):
    """Writes what a run came to: pictures, `results.json`, and a table on the terminal."""

    def __init__(self, show: bool = True) -> None:
        """Choose what to print.

        Args:
            show: Whether to print the table of results.
        """
        self.show = show
        self._started = time.monotonic()
        self._record: Record | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Start the clock: what the clients and the decoding take counts as well."""
        self._started = time.monotonic()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the attacker's pictures, and how good they are if the truth is at hand."""
        if not isinstance(pl_module, ReconstructionAttack):
            return
        seconds = time.monotonic() - self._started
        found = pl_module.gathered()
        if not trainer.is_global_zero:
            return
        root = Path(trainer.default_root_dir)
        pictures = {_key(one): one.pictures.contiguous() for one in found}
        write_tensors(root, PICTURES, pictures)
        if truths_of(trainer):
            self._score(trainer, pl_module, found, {"seconds": seconds, "steps": trainer.global_step})
        else:
            export(pictures, root / "images")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Score a finished run again."""
        if not isinstance(pl_module, ReconstructionAttack):
            return
        decoded = pl_module.gathered()
        if not trainer.is_global_zero:
            return
        root = Path(trainer.default_root_dir)
        final = finished_pictures(root)
        found = [Reconstruction(o.client, o.draw, final[_key(o)], o.initial, o.unresolved) for o in decoded]
        old = json.loads((root / "results.json").read_text()) if (root / "results.json").exists() else {"summary": {}}
        cost = {name: old["summary"].get(name) or 0 for name in ("seconds", "steps")}
        self._score(trainer, pl_module, found, cost)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Export the pictures of a finished run, in the attacker's order."""
        if isinstance(pl_module, ReconstructionAttack) and trainer.is_global_zero:
            root = Path(trainer.default_root_dir)
            export(finished_pictures(root), root / "predictions")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show what the client would release, for `recon validate`."""
        if trainer.state.fn != "validate" or not trainer.is_global_zero:
            return
        if isinstance(pl_module, ReconstructionAttack) and isinstance(pl_module.client, VictimClient):
            show_release(pl_module.client, pl_module.structure)

    def _score(
        self, trainer: Trainer, module: ReconstructionAttack, found: list[Reconstruction], cost: dict[str, Any]
    ) -> None:
        """Match with the truth, write `results.json` and the images, log, print."""
        truths, root = truths_of(trainer), Path(trainer.default_root_dir)
        scored = [scored_one(one, truths, module) for one in found]
        record = run_record(trainer, module, truths, scored, cost)
        for name, picture in named_pictures(scored):
            (root / name).parent.mkdir(exist_ok=True)
            save_image(picture.clamp(0, 1), root / name)
        summary: Any = record["summary"]
        privacy: Any = record["privacy"]
        distances = [lpips_per_image(one.pictures, truths[one.victims[0].client].images.cpu()) for one in scored]
        if known := [distance for distance in distances if distance is not None]:
            summary["lpips_mean"] = float(torch.cat(known).mean())
        write_json(root / "results.json", record)
        for logger in trainer.loggers:
            metrics = {name: summary[name] for name in ("psnr_mean", "ssim_mean")}
            if isinstance(logger, TensorBoardLogger):
                logger.log_hyperparams({"attack": record["attack"], **privacy}, metrics)
        self._record = record

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Print the table once the progress bar is gone."""
        if self.show and self._record is not None:
            show_results(self._record, Path(trainer.default_root_dir))
        self._record = None


class Comparison(Callback):
    """Attacks the first client with a second structure too, and draws `comparison.png`."""

    def __init__(self, structure: Structure, title: str = "seed paper", victims: int = 8) -> None:
        """Choose the rival.

        Args:
            structure: The structure to compare with; same client, same protection, same seed of the noise.
            title: Heading of its column.
            victims: At most so many rows are drawn.
        """
        self.structure = structure
        self.title = title
        self.victims = victims
        self._report = ""

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw photograph, subject, the rival's and our pictures of the first client."""
        truths = truths_of(trainer)
        if not isinstance(pl_module, ReconstructionAttack) or not truths or not trainer.is_global_zero:
            return
        path = Path(trainer.default_root_dir) / "comparison.png"
        if pl_module.resumed and path.exists():
            return  # a resumed run asks no client again
        ours = scored_one(pl_module.reconstructions()[0], truths, pl_module)
        client = pl_module.client
        guess = converse(client, self.structure, self.structure.payload(client.task), 0, 0, None)
        mean = self.structure.statistics(client.task).mean
        theirs = score(truths[0], Attacked(0, 0, guess.pictures, guess.pictures, guess.unresolved), mean)
        columns: list[tuple[str, Tensor, list[float] | None]] = [
            ("photograph", truths[0].photographs, None),
            ("what the client used", truths[0].images, None),
            (self.title, theirs.pictures, [victim.psnr for victim in theirs.victims]),
            ("lightning_recon", ours.pictures, [victim.psnr for victim in ours.victims]),
        ]
        comparison_figure([(name, images[: self.victims], psnr) for name, images, psnr in columns]).save(path)
        means = [sum(v.psnr for v in one.victims) / len(one.victims) for one in (theirs, ours)]
        scores = f"{self.title} {means[0]:.1f} dB, lightning_recon {means[1]:.1f} dB"
        self._report = f"same client and protection: {scores}; {path}"

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Print the comparison once the progress bar is gone."""
        if self._report:
            Console().print(self._report)
        self._report = ""


def truths_of(trainer: Trainer) -> list[Truth]:
    """The clients' batches; none in a replay, which has no data."""
    return list(getattr(getattr(trainer, "datamodule", None), "client_batches", []))


def scored_one(one: Reconstruction, truths: list[Truth], module: ReconstructionAttack) -> Scored:
    """Match one client's pictures to its victims and score them."""
    attacked = Attacked(one.client, one.draw, one.pictures, one.initial, one.unresolved)
    return score(truths[one.client], attacked, module.mean_image)


def run_record(
    trainer: Trainer, module: ReconstructionAttack, truths: list[Truth], scored: list[Scored], cost: dict[str, Any]
) -> Record:
    """The whole of `results.json`."""
    client, statistics = module.client, module.structure.statistics(module.task)
    if not isinstance(client, VictimClient) or module.payload is None:
        raise UserError("only a run with its own clients can be scored: use `recon replay` for a recorded exchange")
    privacy = asdict(client.privacy)
    clipping = {name: privacy[name] for name in ("noise_multiplier", "granularity", "per_layer", "rounds")}
    return results_record(
        attack=module.structure.name,
        config="config.yaml",
        seed=client.seed,
        privacy=privacy_record(**privacy, batch_size=module.task.batch_size),
        oracles=[],
        public_statistics=statistics.name,
        batchnorm=client.batch_norm if client.normalises_batches else None,
        truths=truths,
        scored=scored,
        mean_image=statistics.mean,
        bounds=bounds_record(truths, statistics.variance, **clipping),
        structure_bytes=structure_bytes(module.payload),
        **cost,
    )


def finished_pictures(root: Path) -> dict[str, Tensor]:
    """The reconstructions that a run left in its folder."""
    path = root / f"{PICTURES}.safetensors"
    with readable(path):
        return load_file(path)


def export(pictures: dict[str, Tensor], folder: Path) -> None:
    """Write every picture as PNG, in the attacker's order."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, batch in pictures.items():
        for number, picture in enumerate(batch):
            save_image(picture, folder / f"{name}-{number:03d}.png")


def _key(one: Reconstruction) -> str:
    return f"client{one.client:03d}-draw{one.draw:03d}"
