# SPDX-License-Identifier: Apache-2.0
"""The attack as a LightningModule: it talks to the clients in `on_fit_start` and refines its guesses step by step."""

import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT
from torch.utils.data import DataLoader, IterableDataset

from lightning_recon.attack.conversation import converse, fingerprint, prepare, publish, record_payload
from lightning_recon.attack.denoiser import SmallDenoiser
from lightning_recon.attack.objectives import MomentMatching, PlugAndPlay
from lightning_recon.capture import CapturedClient
from lightning_recon.errors import UserError
from lightning_recon.exchange import Client, RecordedClient, ServerPayload, Task
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
        evident: Whether the pictures rest on more than the noise explains.
    """

    client: int
    draw: int
    pictures: Tensor
    initial: Tensor
    unresolved: int
    evident: bool


def whole_way(params: ParamsT) -> Optimizer:
    """The default optimiser: gradient descent that goes all the way to where a plug-and-play step leads."""
    return torch.optim.SGD(params, lr=1.0)


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

    Before the first step the structure is shipped, the clients answer, and their rows are decoded; each training step
    then moves the dummies of all victims once, to where channel and denoiser agree better. Nothing here ever sees a
    truth: scores are the business of callbacks.
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
        super().__init__()
        if (client is None) == (update is None):
            raise UserError(
                "give either --model.client, who answers the server, or --model.update, what a client of another "
                "program has answered" + ("" if client is None else ": not both (--model.client null)")
            )
        if update is not None:
            client = CapturedClient(update)
        if draws < 1:
            raise UserError(f"--model.draws is {draws}: ask for at least one noise draw")
        # The client is another party, not a part of the attacker: out of its parameters, checkpoints and DDP.
        object.__setattr__(self, "client", client)
        self.client: Client
        self.structure = structure
        self.draws = draws
        # Fixed public knowledge, not what is optimised: out of parameters and checkpoints too.
        trained = SmallDenoiser() if denoiser is None else denoiser
        object.__setattr__(self, "denoiser", trained.eval().requires_grad_(False))
        self.denoiser: nn.Module
        self.record = record
        self.optimizer = optimizer
        self.payload: ServerPayload | None = None
        self.guesses: dict[tuple[int, int], Guess] = {}

    @property
    def exchange(self) -> Path:
        """Folder that keeps what crossed the wire."""
        return Path(self.trainer.default_root_dir) / "exchange"

    @property
    def staged(self) -> Path:
        """Where a new exchange is recorded; an earlier one stays in place until it is complete."""
        return self.exchange.with_name("exchange.new")

    def setup(self, stage: str) -> None:
        """Make room for the dummies; a finished run repeats its recorded exchange.

        Args:
            stage: The trainer's stage; nothing is attacked in "validate".
        """
        if stage == "validate":
            return
        if stage == "fit" and self.trainer.max_steps < 0 and (self.trainer.max_epochs or -1) < 0:
            raise UserError("the refinement has no end: give a number of steps by --trainer.max_steps")
        if stage == "fit":
            self.task, self.resumed = self.client.task, False
        else:
            self._listen(self._recorded_client(), record=False)
        # Every rank holds all dummies, and moves its own clients': see `training_step`.
        self.dummies = nn.Parameter(
            torch.zeros(self.task.updates * self.draws * self.task.victims, *self.task.image_shape)
        )

    def on_fit_start(self) -> None:
        """Talk to the clients of this rank; a resumed run, known as such only now, repeats its recorded exchange."""
        try:
            recording = self.record and not self.resumed
            self._listen(self._recorded_client() if self.resumed else self.client, record=recording)
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
        except UserError:
            shutil.rmtree(self.staged, ignore_errors=True)
            raise
        self.trainer.strategy.barrier()
        if not self.record and self.trainer.is_global_zero:
            # An earlier run's recording must not stand beside these pictures.
            shutil.rmtree(self.exchange, ignore_errors=True)
        if recording and self.trainer.is_global_zero:
            publish(self.staged, self.exchange)
        self.trainer.strategy.barrier()
        self.recording = fingerprint(self.exchange) if self.record else ""

    def _recorded_client(self) -> RecordedClient:
        if not (self.exchange / "task.json").exists():
            raise UserError(f"no recorded exchange in {self.exchange}: run `recon fit` with this output folder first")
        return RecordedClient(self.exchange)

    def _check_announced(self, recorded: Task) -> None:
        """Refuse to go on with a recording under another protection or other data than are configured now."""
        for name, value in asdict(self.client.task).items():
            if value != getattr(recorded, name):
                raise UserError(
                    f"{name} is {value}, but {self.exchange} was recorded with {getattr(recorded, name)}: "
                    "use the config.yaml of that run"
                )

    def _listen(self, client: Client, record: bool) -> None:
        """Ship the structure to this rank's clients and decode what they answer."""
        if isinstance(client, nn.Module):
            client.to(self.trainer.strategy.root_device)
        self.task = client.task
        if isinstance(client, RecordedClient) and not isinstance(self.client, RecordedClient):
            self._check_announced(client.task)
        self.payload = prepare(client, self.structure)
        if record and self.trainer.is_global_zero:
            shutil.rmtree(self.staged, ignore_errors=True)
            record_payload(self.payload, self.structure, self.task, self.staged)
        self.trainer.strategy.barrier()
        own = range(self.global_rank, self.task.updates, self.trainer.world_size)
        self.guesses = {
            (index, draw): converse(client, self.structure, self.payload, index, draw, self.staged if record else None)
            for index in own
            for draw in range(self.draws)
        }
        self.objective = self._objective()
        first = [(index * self.draws + draw) * self.task.victims for index, draw in self.guesses]
        sizes = [len(guess.pictures) for guess in self.guesses.values()]
        self.slots = torch.tensor([f + m for f, size in zip(first, sizes, strict=True) for m in range(size)]).long()

    def _objective(self) -> PlugAndPlay | MomentMatching | None:
        """The objective of all this rank's pictures at once; None if the decoding leaves nothing to refine."""
        guesses, device = list(self.guesses.values()), self.trainer.strategy.root_device
        posteriors = [guess.posterior for guess in guesses if guess.posterior is not None]
        if posteriors:
            statistics = self.structure.statistics(self.task)
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

    def step_loader(self) -> DataLoader[int]:
        """What the attack trains on: its own step counter, never a picture."""
        return DataLoader(Steps(max(1, self.trainer.max_steps)), batch_size=None)

    def train_dataloader(self) -> DataLoader[int]:
        """The step counter again, for a run without a data module."""
        return self.step_loader()

    def val_dataloader(self) -> DataLoader[int]:
        """One empty step, for a run without a data module."""
        return DataLoader(range(1))  # type: ignore[arg-type]

    def test_dataloader(self) -> DataLoader[int]:
        """As for validation."""
        return self.val_dataloader()

    def predict_dataloader(self) -> DataLoader[int]:
        """As for validation."""
        return self.val_dataloader()

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
        self.log("loss", losses.detach().mean(), rank_zero_only=True)
        return losses.sum() * self.trainer.world_size

    def validation_step(self, batch: object, batch_idx: int) -> None:
        """Nothing: what a client would release is shown by the results callback."""

    def test_step(self, batch: object, batch_idx: int) -> None:
        """Nothing: scoring is the business of the results callback, which knows the truth."""

    def predict_step(self, batch: object, batch_idx: int) -> object:
        """Nothing: the results callback exports the pictures."""
        return batch

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Name the recorded exchange that the dummies belong to.

        Args:
            checkpoint: What is about to be written.
        """
        checkpoint["exchange"] = self.recording

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Resume; dummies that were made for another exchange are refused.

        Args:
            checkpoint: What was read.

        Raises:
            UserError: They belong to another run, or nothing is attacked.
        """
        if not hasattr(self, "dummies"):
            raise UserError("this command attacks nothing: leave out --ckpt_path")
        self.resumed = True
        if checkpoint.get("exchange") != fingerprint(self.exchange):
            raise UserError(
                f"--ckpt_path names a checkpoint that does not belong to {self.exchange}: give last, or a file from "
                "checkpoints/ of this run"
            )

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
        final = initial
        if self.objective is not None and self.trainer.global_step > 0:
            final = list(torch.split(self.objective.pictures(dummies).clamp(0, 1).cpu(), sizes))
        return [
            Reconstruction(index, draw, pictures, before, guess.unresolved, guess.evident)
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
