# SPDX-License-Identifier: Apache-2.0
"""The LightningModule under every attack: asks the clients, records the exchange, resumes."""

import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch.distributed as dist
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from lightning_recon.attack.protocol import fingerprint, publish
from lightning_recon.attack.recording import (
    Record,
    check_resumable,
    check_same_task,
    recorded_client,
    recorded_updates,
)
from lightning_recon.capture import CapturedClient
from lightning_recon.errors import UserError
from lightning_recon.exchange import Client, RecordedClient, ServerPayload
from lightning_recon.files.run_folder import begin_run
from lightning_recon.networks.setup_check import explained_batch_norm
from lightning_recon.priors.image_statistics import PublicStatistics
from lightning_recon.ranges import COUNT, check_ranges
from lightning_recon.reconstruction import Reconstruction


class Steps(IterableDataset[int]):
    """Counts steps. Iterable, because Lightning would split a map-style data set between the ranks."""

    def __init__(self, count: int) -> None:
        """Count to `count`."""
        self.count = count

    def __len__(self) -> int:
        """Number of steps."""
        return self.count

    def __iter__(self) -> Iterator[int]:
        """One number a step."""
        return iter(range(self.count))


class Attack(LightningModule, ABC):
    """A server that attacks its clients' updates.

    The true images never reach it: callbacks compute the scores. Each rank attacks other updates.
    """

    def __init__(self, client: Client | None, draws: int, record: Record, update: str | None) -> None:
        """Store the client.

        Args:
            client: Answers the server; None with `update`.
            draws: Number of independent noise realisations of each update to attack.
            record: How much of the exchange to record, see `ReconstructionAttack`.
            update: File of a captured update, or a folder of them, to attack instead of asking `client`.
        """
        super().__init__()
        if (client is None) == (update is None):
            raise UserError(
                "give either --model.client, who answers the server, or --model.update, what a client of another "
                "program has answered" + ("" if client is None else ": not both (--model.client null)")
            )
        check_ranges("--model.", draws=(draws, COUNT))
        if not isinstance(record, bool | str):
            check_ranges("--model.", record=(record, COUNT))
        # The client is another party, not a part of the attacker: out of its parameters, checkpoints and DDP.
        object.__setattr__(self, "client", client if update is None else CapturedClient(update))
        self.client: Client
        self.draws = draws
        self.record = record
        self.payload: ServerPayload | None = None
        # Number of the first client among all clients of a run that is attacked in waves.
        self.first_client = 0
        # The objective before the last step, a mean over this rank's images; None without one.
        self.latest_objective: Tensor | None = None

    @property
    def oracles(self) -> tuple[str, ...]:
        """Oracle information used."""
        return ()

    @property
    @abstractmethod
    def name(self) -> str:
        """Name of the attack in `results.json`."""

    @property
    @abstractmethod
    def statistics(self) -> PublicStatistics:
        """Public statistics of images of the task's size."""

    @abstractmethod
    def make_payload(self, client: Client) -> ServerPayload:
        """The payload to send; from a recording, the one that was sent."""

    @abstractmethod
    def announce(self, folder: Path) -> None:
        """Record the task, and what is sent to every client, in an empty folder."""

    @abstractmethod
    def observe(self, client: Client, folder: Path | None) -> None:
        """Collect the updates of this rank's clients and prepare the search; record what was read, if asked to."""

    @abstractmethod
    def allocate(self) -> None:
        """Allocate what is optimised, of all ranks, once the task is known."""

    @abstractmethod
    def reconstructions(self) -> list[Reconstruction]:
        """This rank's current images, in the order of updates and draws."""

    def present_objective(self) -> Tensor | None:
        """The objective of the current images, a mean over this rank's; None if there is none."""
        return self.latest_objective

    @property
    def exchange(self) -> Path:
        """Folder of the recorded exchange."""
        return Path(self.trainer.default_root_dir) / "exchange"

    @property
    def staged(self) -> Path:
        """Folder in which a new exchange is recorded; an earlier one is replaced once the new one is complete."""
        return self.exchange.with_name("exchange.new")

    @property
    def own_updates(self) -> range:
        """Indices of the updates that this rank attacks."""
        return range(self.global_rank, self.task.updates, self.trainer.world_size)

    @property
    def mean_image(self) -> Tensor:
        """The image that stands for a victim which was not isolated, shape (C, H, W)."""
        return self.statistics.mean

    def setup(self, stage: str) -> None:
        """Allocate the dummies; a finished run repeats its recorded exchange.

        Args:
            stage: The trainer's stage; nothing is attacked in "validate".
        """
        if stage == "validate":
            return
        if stage == "fit" and self.trainer.max_steps < 0 and (self.trainer.max_epochs or -1) < 0:
            raise UserError("the search has no end: give a number of steps by --trainer.max_steps")
        if isinstance(self.client, RecordedClient):
            self.client.require(1)  # memory is taken for every update that the task announces
        self.task, self.resumed = self.client.task, False
        self.allocate()
        if stage != "fit":
            self._collect_updates(recorded_client(self.exchange), record=False)

    def on_fit_start(self) -> None:
        """Collect the updates. A resumed run, known as such only now, repeats its recorded exchange."""
        kept = recorded_updates(self.record, self.task) > 0
        recording = kept and not self.resumed
        try:
            self._collect_updates(recorded_client(self.exchange) if self.resumed else self.client, record=recording)
        except UserError:
            shutil.rmtree(self.staged, ignore_errors=True)
            raise
        self.trainer.strategy.barrier()
        begin_run(self.trainer)
        if not kept and self.trainer.is_global_zero:
            # An earlier run's recording does not belong to these images.
            shutil.rmtree(self.exchange, ignore_errors=True)
        if recording and self.trainer.is_global_zero:
            publish(self.staged, self.exchange)
        self.trainer.strategy.barrier()
        self.recording = fingerprint(self.exchange) if kept else ""

    def folder_of(self, index: int, folder: Path | None) -> Path | None:
        """Where an update is recorded: nowhere if only clients before it are."""
        return folder if index < recorded_updates(self.record, self.task) else None

    def _collect_updates(self, client: Client, record: bool) -> None:
        """Send the payload to this rank's clients, and receive their updates."""
        if isinstance(client, nn.Module):
            client.to(self.trainer.strategy.root_device)
        self.task = client.task
        if isinstance(client, RecordedClient) and not isinstance(self.client, RecordedClient):
            check_same_task(self.client.task, client.task, self.exchange)
        self.payload = self.make_payload(client)
        if record and self.trainer.is_global_zero:
            shutil.rmtree(self.staged, ignore_errors=True)
            self.announce(self.staged)
        self.trainer.strategy.barrier()
        with explained_batch_norm():
            self.observe(client, self.staged if record else None)

    def step_loader(self) -> DataLoader[int]:
        """The attack's training data: a step counter, no images."""
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

    def validation_step(self, batch: object, batch_idx: int) -> None:
        """Nothing: the results callback shows what a client would release."""

    def test_step(self, batch: object, batch_idx: int) -> None:
        """Nothing: the results callback, which knows the truth, computes the scores."""

    def predict_step(self, batch: object, batch_idx: int) -> object:
        """Nothing: the results callback exports the images."""
        return batch

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store which recorded exchange the dummies belong to.

        Args:
            checkpoint: The content of the file.
        """
        checkpoint["exchange"] = self.recording

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Resume; dummies of another exchange are refused.

        Args:
            checkpoint: The content of the file.

        Raises:
            UserError: The checkpoint belongs to another run, or this command attacks nothing.
        """
        if not hasattr(self, "resumed"):
            raise UserError("this command attacks nothing: leave out --ckpt_path")
        self.resumed = True
        check_resumable(checkpoint, self.exchange, self.trainer.max_steps if self.trainer.state.fn == "fit" else None)

    def gathered(self) -> list[Reconstruction]:
        """The reconstructions of all ranks; every rank must call it."""
        own = self.reconstructions()
        if self.trainer.world_size == 1:
            return own
        parts: list[list[Reconstruction]] = [[] for _ in range(self.trainer.world_size)]
        dist.all_gather_object(parts, [one.compact() for one in own])
        return sorted((one for part in parts for one in part), key=lambda one: (one.client, one.draw))
