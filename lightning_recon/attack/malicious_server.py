# SPDX-License-Identifier: Apache-2.0
"""The malicious server's attack as a LightningModule: it ships a structure, decodes the updates, and refines."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from lightning_recon.attack.base import Attack
from lightning_recon.attack.protocol import prepare, record_payload, run_protocol
from lightning_recon.attack.recording import Record, recorded_task
from lightning_recon.errors import UserError
from lightning_recon.exchange import Client, ServerPayload
from lightning_recon.priors.image_statistics import PublicStatistics
from lightning_recon.priors.unet_denoiser import LargeDenoiser
from lightning_recon.reconstruction import Reconstruction
from lightning_recon.structure.base import Decoded, Structure, most_found
from lightning_recon.structure.refinement import Objective
from lightning_recon.structure.seed_paper import SeedPaper


def whole_way(params: ParamsT) -> Optimizer:
    """The default optimiser: gradient descent with step size 1, which goes to where a plug-and-play step leads."""
    return torch.optim.SGD(params, lr=1.0)


class ReconstructionAttack(Attack):
    """A malicious server reconstructs its clients' images from their privatised updates.

    Before the first step the server ships the structure, the clients answer, and the server decodes their rows; each
    training step then moves the dummies of all victims once, under the channel's likelihood and a denoiser prior.
    """

    def __init__(
        self,
        client: Client | None,
        structure: Structure,
        draws: int = 1,
        denoiser: nn.Module | None = None,
        record: Record = "rows",
        optimizer: OptimizerCallable = whole_way,
        update: str | None = None,
    ) -> None:
        """Set up the attack.

        Args:
            client: The client: a `VictimClient`, or a `RecordedClient` that repeats a recorded exchange;
                null with `update`.
            structure: What the server adds to the model, and how it decodes the updates.
            draws: How many independent noise realisations of each client's update to attack.
            denoiser: Prior of the refinement: a module called with images (M, C, H, W) in [0, 1] and the standard
                deviation of their noise (M,), such as `SmallDenoiser`, which is faster, `TotalVariation` or
                `deepinv.models.DRUNet`. Default: `LargeDenoiser`.
            record: How much of the exchange to record, without which a run can be neither resumed nor replayed. "rows":
                what the attack reads of every update. true: a hash of all other tensors too, for which all of the noise
                is drawn. A number: as "rows", of the first so many clients. false: nothing.
            optimizer: Moves the dummies.
            update: File of a captured update, or a folder of them, to attack instead of asking `client`; see
                `lightning_recon.capture`.
        """
        super().__init__(client, draws, record, update)
        if not isinstance(structure, Structure):
            raise UserError(
                f"--model.structure is a {type(structure).__name__}, which lacks a part of "
                "lightning_recon.structure.Structure: inherit from that class"
            )
        self.structure = structure
        # Fixed public knowledge, not what is optimised: out of parameters and checkpoints too.
        trained = LargeDenoiser() if denoiser is None else denoiser
        object.__setattr__(self, "denoiser", trained.eval().requires_grad_(False))
        self.denoiser: nn.Module
        self.optimizer = optimizer
        self.decoded: dict[tuple[int, int], Decoded] = {}

    @property
    def name(self) -> str:
        """Name of the structure."""
        return self.structure.name

    @property
    def statistics(self) -> PublicStatistics:
        """Public statistics that the structure assumes, at the task's image size."""
        return self.structure.statistics(self.task)

    def make_payload(self, client: Client) -> ServerPayload:
        """The structure's payload; from a recording, the one that was shipped."""
        return prepare(client, self.structure)

    def announce(self, folder: Path) -> None:
        """Record the task, and the payload of every round before any feedback."""
        assert self.payload is not None
        record_payload(self.payload, self.structure, recorded_task(self.record, self.task), folder)

    def allocate(self) -> None:
        """Create the dummies; every rank holds all, and moves those of its own updates, see `training_step`.

        An update may hold more images than announced, so there are dummies for `most_found` of each.
        """
        count = self.task.updates * self.draws * most_found(self.task)
        self.dummies = nn.Parameter(torch.zeros(count, *self.task.image_shape))

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Resume, also from a checkpoint of an earlier version, which has as many dummies as images were announced.

        Args:
            checkpoint: The content of the file.
        """
        super().on_load_checkpoint(checkpoint)
        announced, limit = self.task.victims, most_found(self.task)
        stored = checkpoint["state_dict"].get("dummies")
        if stored is not None and len(stored) * limit == len(self.dummies) * announced:
            updates = torch.zeros(len(stored) // announced, limit, *stored.shape[1:])
            updates[:, :announced] = stored.view(-1, announced, *stored.shape[1:])
            checkpoint["state_dict"]["dummies"] = updates.flatten(0, 1)

    def observe(self, client: Client, folder: Path | None) -> None:
        """Run the protocol with every client of this rank, and decode."""
        assert self.payload is not None
        self.decoded = {
            (index, draw): run_protocol(
                client, self.structure, self.payload, index, draw, self.folder_of(index, folder), self.record is True
            )
            for index in self.own_updates
            for draw in range(self.draws)
        }
        self.objective = self._objective()
        if self.trainer.state.fn == "fit":
            self._check_objective()
        first = [(index * self.draws + draw) * most_found(self.task) for index, draw in self.decoded]
        sizes = [len(decoded.images) for decoded in self.decoded.values()]
        self.slots = torch.tensor([f + m for f, size in zip(first, sizes, strict=True) for m in range(size)]).long()

    def _objective(self) -> Objective | None:
        """The objective of all this rank's images at once; None if decoding leaves nothing to refine."""
        decoded, device = list(self.decoded.values()), self.trainer.strategy.root_device
        parts = [one.refinement for one in decoded if one.refinement is not None]
        if not parts:
            return None
        initial = torch.cat([one.images for one in decoded]).to(device)
        transform = self.statistics.transform.to(device)
        return type(parts[0]).joined(parts).to(device).objective(initial, transform, self.denoiser.to(device))

    def _check_objective(self) -> None:
        """Refuse steps that would refine nothing."""
        if self.decoded and self.objective is None and self.trainer.max_steps != 0:
            raise UserError(
                f"{type(self.structure).__name__} leaves nothing to refine: set --trainer.max_steps 0"
                + (", or --model.structure.moments true" if isinstance(self.structure, SeedPaper) else "")
            )
        if self.objective is not None and self.objective.needs_optimizer and self.optimizer is whole_way:
            raise UserError(
                "leaked moments are matched by small steps: give --model.optimizer torch.optim.Adam and "
                "--model.optimizer.lr 5e-3, or set --trainer.max_steps 0"
            )

    def training_step(self, batch: object, batch_idx: int) -> Tensor:
        """Move the dummies of all victims once.

        Args:
            batch: The step counter.
            batch_idx: Likewise.

        Returns:
            The sum of the victims' objectives. DDP averages gradients over ranks, each of which holds other victims:
            hence the factor.
        """
        if self.objective is None:
            return 0.0 * self.dummies.sum()
        # A likelihood at 50 dB needs more than the eight bits of bfloat16, whatever the trainer's precision.
        with torch.autocast(self.device.type, enabled=False):
            losses = self.objective.losses(self.dummies[self.slots.to(self.device)].float(), self.trainer.global_step)
        self.latest_objective = losses.detach().mean() if len(losses) else None
        return losses.sum() * self.trainer.world_size

    @torch.no_grad()
    def present_objective(self) -> Tensor | None:
        """The objective of the present images, a mean over this rank's; None if there is none."""
        if self.objective is None or not len(self.slots):
            return None
        dummies = self.dummies.detach()[self.slots.to(self.dummies.device)].float()
        with torch.autocast(self.dummies.device.type, enabled=False):
            return self.objective.losses(dummies, self.trainer.global_step).mean()

    def configure_optimizers(self) -> Optimizer:
        """The optimiser over the dummies, the only parameters."""
        return self.optimizer([self.dummies])

    @torch.no_grad()
    def reconstructions(self) -> list[Reconstruction]:
        """This rank's present images, in the order of updates and draws."""
        dummies = self.dummies.detach()[self.slots.to(self.dummies.device)].float()
        initial = [decoded.images for decoded in self.decoded.values()]
        sizes = [len(images) for images in initial]
        final = initial
        if self.objective is not None and self.trainer.global_step > 0:
            final = list(torch.split(self.objective.images(dummies).clamp(0, 1).cpu(), sizes))
        return [
            Reconstruction(
                index,
                draw,
                images,
                before,
                one.unresolved,
                one.evident,
                files=one.files,
                share=one.share,
                mismatch=one.mismatch,
                mean_image=one.mean_image,
                seen=one.seen,
            )
            for ((index, draw), one), images, before in zip(self.decoded.items(), final, initial, strict=True)
        ]
