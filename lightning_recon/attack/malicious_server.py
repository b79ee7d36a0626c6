# SPDX-License-Identifier: Apache-2.0
"""The malicious server's attack as a LightningModule: it ships a structure, decodes the answers, and refines."""

from pathlib import Path

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from lightning_recon.attack.base import Attack
from lightning_recon.attack.protocol import prepare, record_payload, run_protocol
from lightning_recon.attack.refinement import MomentMatching, PlugAndPlay
from lightning_recon.errors import UserError
from lightning_recon.exchange import Client, ServerPayload
from lightning_recon.priors.image_statistics import PublicStatistics
from lightning_recon.priors.unet_denoiser import SmallDenoiser
from lightning_recon.reconstruction import Reconstruction
from lightning_recon.structure.base import Decoded, Posterior, Structure


def whole_way(params: ParamsT) -> Optimizer:
    """The default optimiser: gradient descent that goes all the way to where a plug-and-play step leads."""
    return torch.optim.SGD(params, lr=1.0)


class ReconstructionAttack(Attack):
    """A malicious server reconstructs its clients' pictures from their privatised updates.

    Before the first step the structure is shipped, the clients answer, and their rows are decoded; each training step
    then moves the dummies of all victims once, to where channel and denoiser agree better.
    """

    def __init__(
        self,
        client: Client | None,
        structure: Structure,
        draws: int = 1,
        denoiser: nn.Module | None = None,
        record: bool = True,
        optimizer: OptimizerCallable = whole_way,
        update: str | None = None,
    ) -> None:
        """Set up the attack.

        Args:
            client: Who answers the server: a `VictimClient`, or a `RecordedClient` that repeats a recorded exchange;
                null with `update`.
            structure: What the server adds to the model, and how it decodes the answer.
            draws: How many independent noise realisations of each client's update to attack.
            denoiser: What refinement knows about pictures: a module called with pictures (M, 3, H, W) in [0, 1] and
                the standard deviation of their noise (M,), such as `lightning_recon.attack.TotalVariation` or
                `deepinv.models.DRUNet`. Default: the small one that ships with the package.
            record: Whether to keep what crossed the wire, without which a run can be neither resumed nor replayed.
            optimizer: Moves the dummies.
            update: File of a captured update, or a folder of them, to attack instead of asking `client`; see
                `lightning_recon.capture`.
        """
        super().__init__(client, draws, record, update)
        self.structure = structure
        # Fixed public knowledge, not what is optimised: out of parameters and checkpoints too.
        trained = SmallDenoiser() if denoiser is None else denoiser
        object.__setattr__(self, "denoiser", trained.eval().requires_grad_(False))
        self.denoiser: nn.Module
        self.optimizer = optimizer
        self.guesses: dict[tuple[int, int], Decoded] = {}

    @property
    def name(self) -> str:
        """Name of the structure."""
        return self.structure.name

    @property
    def statistics(self) -> PublicStatistics:
        """What the structure's server takes for granted about pictures of the task's size."""
        return self.structure.statistics(self.task)

    def make_payload(self, client: Client) -> ServerPayload:
        """The structure's payload; from a recording, the one that was shipped."""
        return prepare(client, self.structure)

    def announce(self, folder: Path) -> None:
        """Write down the task, and the payload of every round before any feedback."""
        assert self.payload is not None
        record_payload(self.payload, self.structure, self.task, folder)

    def allocate(self) -> None:
        """Make room for the dummies; every rank holds all, and moves its own updates', see `training_step`."""
        count = self.task.updates * self.draws * self.task.victims
        self.dummies = nn.Parameter(torch.zeros(count, *self.task.image_shape))

    def observe(self, client: Client, folder: Path | None) -> None:
        """Converse with every client of this rank, and decode."""
        assert self.payload is not None
        self.guesses = {
            (index, draw): run_protocol(client, self.structure, self.payload, index, draw, folder)
            for index in self.own_updates
            for draw in range(self.draws)
        }
        self.objective = self._objective()
        if self.trainer.state.fn == "fit":
            self._check_objective()
        first = [(index * self.draws + draw) * self.task.victims for index, draw in self.guesses]
        sizes = [len(guess.pictures) for guess in self.guesses.values()]
        self.slots = torch.tensor([f + m for f, size in zip(first, sizes, strict=True) for m in range(size)]).long()

    def _objective(self) -> PlugAndPlay | MomentMatching | None:
        """The objective of all this rank's pictures at once; None if the decoding leaves nothing to refine."""
        guesses, device = list(self.guesses.values()), self.trainer.strategy.root_device
        posteriors = [guess.posterior for guess in guesses if guess.posterior is not None]
        if posteriors:
            statistics = self.statistics
            parts = ("mean", "variance", "prior_variance")
            joined = {part: torch.cat([getattr(p, part) for p in posteriors]).to(device) for part in parts}
            return PlugAndPlay(
                Posterior(**joined), statistics.mean.to(device), statistics.colour.to(device), self.denoiser.to(device)
            )
        leaked = [guess.moments for guess in guesses if guess.moments is not None]
        if leaked:
            initial = torch.cat([guess.pictures for guess in guesses])
            return MomentMatching(initial.to(device), torch.cat(leaked).to(device))
        return None

    def _check_objective(self) -> None:
        """Refuse steps that would lead nowhere."""
        if self.guesses and self.objective is None and self.trainer.max_steps != 0:
            raise UserError(
                f"{type(self.structure).__name__} leaves nothing to refine: set --trainer.max_steps 0"
                + (", or --model.structure.moments true" if hasattr(self.structure, "moments") else "")
            )
        if isinstance(self.objective, MomentMatching) and self.optimizer is whole_way:
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
        # A likelihood of 50 dB needs more than the eight bits of bfloat16, whatever the trainer's precision.
        with torch.autocast(self.device.type, enabled=False):
            losses = self.objective.losses(self.dummies[self.slots.to(self.device)].float(), self.trainer.global_step)
        self.latest_objective = losses.detach().mean()
        return losses.sum() * self.trainer.world_size

    @torch.no_grad()
    def present_objective(self) -> Tensor | None:
        """The objective of the pictures as they are now, a mean over this rank's; None if there is none."""
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
        """This rank's pictures as they are now, in the order of updates and draws."""
        dummies = self.dummies.detach()[self.slots.to(self.dummies.device)].float()
        initial = [guess.pictures for guess in self.guesses.values()]
        sizes = [len(pictures) for pictures in initial]
        final = initial
        if self.objective is not None and self.trainer.global_step > 0:
            final = list(torch.split(self.objective.pictures(dummies).clamp(0, 1).cpu(), sizes))
        return [
            Reconstruction(
                index, draw, pictures, before, guess.unresolved, guess.evident, files=guess.files, share=guess.share
            )
            for ((index, draw), guess), pictures, before in zip(self.guesses.items(), final, initial, strict=True)
        ]
