# SPDX-License-Identifier: Apache-2.0
"""The attack as a LightningModule: it talks to the clients in `setup` and refines its guesses in `training_step`."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, IterableDataset

from lightning_recon.attack.conversation import converse, prepare, record_payload
from lightning_recon.attack.objectives import ChannelLikelihood, MomentMatching
from lightning_recon.errors import UserError
from lightning_recon.exchange import Client, RecordedClient, ServerPayload
from lightning_recon.structure.guess import Guess, Posterior, Structure


@dataclass(frozen=True)
class Reconstruction:
    """What the attacker has of one client under one noise draw, in its own order.

    Args:
        client: Index of the client.
        draw: Index of the noise draw.
        pictures: Shape (M, 3, H, W), values in [0, 1], at most B of them.
        initial: The same before refinement.
        unresolved: Rows that hold something no single picture explains.
    """

    client: int
    draw: int
    pictures: Tensor
    initial: Tensor
    unresolved: int


def momentum(params: Any) -> Optimizer:
    """The default optimiser: gradient descent with Nesterov's momentum, whose step suits the whitened dummies."""
    return torch.optim.SGD(params, lr=0.05, momentum=0.9, nesterov=True)


class Steps(IterableDataset[int]):
    """Counts refinement steps; iterable, so that no sampler deals every rank only a share of the steps."""

    def __init__(self, count: int) -> None:
        """Count to `count`."""
        self.count = count

    def __len__(self) -> int:
        """How many steps there are."""
        return self.count

    def __iter__(self) -> Iterator[int]:
        """One number a step."""
        return iter(range(self.count))


class ReconstructionAttack(LightningModule):
    """A server reconstructs its clients' pictures from their privatised updates.

    In `setup` the structure is shipped, the clients answer, and their rows are decoded; each training step then moves
    the dummies of all victims once, downhill on the channel's likelihood with priors. Nothing here ever sees a truth:
    scores are the business of callbacks.
    """

    def __init__(
        self,
        client: Client,
        structure: Structure,
        draws: int = 1,
        contrast_window: float = 2.0,
        total_variation: float = 0.0,
        optimizer: OptimizerCallable = momentum,
    ) -> None:
        """Set up the attack.

        Args:
            client: Who answers the server: a `VictimClient`, or a `RecordedClient` that repeats a recorded exchange.
            structure: What the server adds to the model, and how it decodes the answer.
            draws: How many independent noise realisations of each client's update to attack.
            contrast_window: Window, in pixels, over which the refinement's prior estimates local contrast; 0 for the
                plain spectral prior, with which refinement changes nothing.
            total_variation: Weight of a total-variation prior in the refinement.
            optimizer: Moves the dummies.
        """
        super().__init__()
        if draws < 1:
            raise UserError(f"--model.draws is {draws}: ask for at least one noise draw")
        # The client is another party, not a part of the attacker: out of its parameters, checkpoints and DDP.
        object.__setattr__(self, "client", client)
        self.client: Client
        self.structure = structure
        self.draws = draws
        self.contrast_window = contrast_window
        self.total_variation = total_variation
        self.optimizer = optimizer
        self.payload: ServerPayload | None = None
        self.guesses: dict[tuple[int, int], Guess] = {}

    @property
    def exchange(self) -> Path:
        """Folder that keeps what crossed the wire."""
        return Path(self.trainer.default_root_dir) / "exchange"

    def setup(self, stage: str) -> None:
        """Talk to the clients of this rank; a resumed or finished run repeats its recorded exchange.

        Args:
            stage: The trainer's stage; nothing is asked of any client in "validate".
        """
        if stage == "validate":
            return
        recorded = stage != "fit" or self.trainer.ckpt_path is not None
        if recorded and not (self.exchange / "task.json").exists():
            raise UserError(f"no recorded exchange in {self.exchange}: run `recon fit` with this output folder first")
        client = RecordedClient(self.exchange) if recorded else self.client
        if isinstance(client, nn.Module):
            client.to(self.trainer.strategy.root_device)
        self.task = client.task
        self.payload = prepare(client, self.structure)
        keep = None if recorded else self.exchange
        if keep is not None and self.trainer.is_global_zero:
            record_payload(self.payload, self.task, keep)
        own = range(self.global_rank, self.task.clients, self.trainer.world_size)
        self.guesses = {
            (index, draw): converse(client, self.structure, self.payload, index, draw, keep)
            for index in own
            for draw in range(self.draws)
        }
        self.objective = self._objective()
        if self.guesses and self.objective is None and stage == "fit" and self.trainer.max_steps != 0:
            raise UserError(
                f"{type(self.structure).__name__} leaves nothing to refine: set --trainer.max_steps 0"
                + (", or --model.structure.moments true" if hasattr(self.structure, "moments") else "")
            )
        # Every rank holds all dummies, and moves its own clients': see `training_step`.
        self.dummies = nn.Parameter(
            torch.zeros(self.task.clients * self.draws * self.task.batch_size, *self.task.image_shape)
        )
        first = [(index * self.draws + draw) * self.task.batch_size for index, draw in self.guesses]
        sizes = [len(guess.pictures) for guess in self.guesses.values()]
        self.slots = torch.tensor([f + m for f, size in zip(first, sizes, strict=True) for m in range(size)]).long()

    def _objective(self) -> ChannelLikelihood | MomentMatching | None:
        """The objective of all this rank's pictures at once; None if the decoding leaves nothing to refine."""
        guesses, device = list(self.guesses.values()), self.trainer.strategy.root_device
        posteriors = [guess.posterior for guess in guesses if guess.posterior is not None]
        if posteriors:
            statistics = self.structure.statistics(self.task)
            parts = ("mean", "variance", "prior_variance")
            joined = {part: torch.cat([getattr(p, part) for p in posteriors]).to(device) for part in parts}
            return ChannelLikelihood(
                Posterior(**joined),
                statistics.mean.to(device),
                statistics.colour.to(device),
                self.contrast_window,
                self.total_variation,
            )
        leaked = [guess.moments for guess in guesses if guess.moments is not None]
        if leaked:
            initial = torch.cat([guess.pictures for guess in guesses])
            return MomentMatching(initial.to(device), torch.cat(leaked).to(device))
        return None

    def step_loader(self) -> DataLoader[int]:
        """What the attack trains on: its own step counter, never a picture."""
        return DataLoader(Steps(max(1, self.trainer.max_steps)), batch_size=None)

    def train_dataloader(self) -> DataLoader[int]:
        """The step counter again, for a run without a data module."""
        return self.step_loader()

    def val_dataloader(self) -> DataLoader[int]:
        """One empty step, for a run without a data module."""
        return DataLoader(range(1))  # type: ignore[arg-type]

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
            losses = self.objective.losses(self.dummies[self.slots.to(self.device)].float())
        self.log("loss", losses.detach().mean(), rank_zero_only=True)
        return losses.sum() * self.trainer.world_size

    def validation_step(self, batch: object, batch_idx: int) -> None:
        """Nothing: what a client would release is shown by the results callback."""

    def test_step(self, batch: object, batch_idx: int) -> None:
        """Nothing: scoring is the business of the results callback, which knows the truth."""

    def predict_step(self, batch: object, batch_idx: int) -> object:
        """Nothing: the results callback exports the pictures."""
        return batch

    @property
    def mean_image(self) -> Tensor:
        """The attacker's guess for a victim that it did not isolate, shape (3, H, W)."""
        return self.structure.statistics(self.task).mean

    def configure_optimizers(self) -> Optimizer:
        """The optimiser over the dummies, the only parameters."""
        return self.optimizer([self.dummies])

    @torch.no_grad()
    def reconstructions(self) -> list[Reconstruction]:
        """This rank's pictures as they are now, in the order of clients and draws."""
        dummies = self.dummies.detach()[self.slots.to(self.dummies.device)].float()
        initial = [guess.pictures for guess in self.guesses.values()]
        sizes = [len(pictures) for pictures in initial]
        refined = self.trainer.global_step > 0 and self.objective is not None
        final = self.objective.pictures(dummies).clamp(0, 1).cpu().split(sizes) if refined and self.objective else initial
        return [
            Reconstruction(index, draw, pictures, before, guess.unresolved)
            for ((index, draw), guess), pictures, before in zip(self.guesses.items(), final, initial, strict=True)
        ]

    def gathered(self) -> list[Reconstruction]:
        """All ranks' pictures; every rank must call it."""
        own = self.reconstructions()
        if self.trainer.world_size == 1:
            return own
        parts: list[list[Reconstruction]] = [[] for _ in range(self.trainer.world_size)]
        dist.all_gather_object(parts, own)
        return sorted((one for part in parts for one in part), key=lambda one: (one.client, one.draw))
