# SPDX-License-Identifier: Apache-2.0
"""What every attack has in common: whom it asks, what it keeps of the answers, and how a stopped one goes on."""

import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from lightning_recon.attack.protocol import fingerprint, publish
from lightning_recon.capture import CapturedClient
from lightning_recon.errors import UserError
from lightning_recon.exchange import Client, RecordedClient, ServerPayload, Task
from lightning_recon.files.run_folder import begin_run
from lightning_recon.networks.setup_check import explained_batch_norm
from lightning_recon.priors.image_statistics import PublicStatistics
from lightning_recon.ranges import COUNT, check_ranges
from lightning_recon.structure.base import ReceivedFile
from lightning_recon.structure.clipping_budget import BudgetShare


@dataclass(frozen=True)
class Reconstruction:
    """What the attacker has of one update under one noise draw, in its own order.

    Args:
        client: Index of the update.
        draw: Index of the noise draw.
        pictures: Shape (M, 3, H, W), values in [0, 1], at most as many as the update has victims.
        initial: The same before refinement.
        unresolved: Rows that hold something no single picture explains.
        evident: Whether the pictures rest on more than the noise explains.
        labels: The classes that the attacker believes the update to be about, (victims,); None if it cares for none.
        files: For each picture how its file arrived, or None where none did; None if nothing was sent digitally.
        share: The structure's share of the clipping budget, as the update shows it; None where that cannot be told.
    """

    client: int
    draw: int
    pictures: Tensor
    initial: Tensor
    unresolved: int
    evident: bool
    labels: Tensor | None = None
    files: tuple[ReceivedFile | None, ...] | None = None
    share: BudgetShare | None = None


class Steps(IterableDataset[int]):
    """Counts steps; iterable, so that no sampler deals every rank only a share of them."""

    def __init__(self, count: int) -> None:
        """Count to `count`."""
        self.count = count

    def __len__(self) -> int:
        """How many steps there are."""
        return self.count

    def __iter__(self) -> Iterator[int]:
        """One number a step."""
        return iter(range(self.count))


class Attack(LightningModule, ABC):
    """A server that attacks its clients' updates.

    Nothing here ever sees a truth: scores are the business of callbacks. Ranks hold different updates.
    """

    def __init__(self, client: Client | None, draws: int, record: bool, update: str | None) -> None:
        """Name the other party.

        Args:
            client: Who answers; None with `update`.
            draws: How many independent noise realisations of each update to attack.
            record: Whether to keep what crossed the wire, without which a run can be neither resumed nor replayed.
            update: File of a captured update, or a folder of them, to attack instead of asking `client`.
        """
        super().__init__()
        if (client is None) == (update is None):
            raise UserError(
                "give either --model.client, who answers the server, or --model.update, what a client of another "
                "program has answered" + ("" if client is None else ": not both (--model.client null)")
            )
        check_ranges("--model.", draws=(draws, COUNT))
        # The client is another party, not a part of the attacker: out of its parameters, checkpoints and DDP.
        object.__setattr__(self, "client", client if update is None else CapturedClient(update))
        self.client: Client
        self.draws = draws
        self.record = record
        self.payload: ServerPayload | None = None
        # The objective before the last step, a mean over this rank's pictures; None without one.
        self.latest_objective: Tensor | None = None

    @property
    def oracles(self) -> tuple[str, ...]:
        """What the attack is told that no attacker knows."""
        return ()

    @property
    @abstractmethod
    def name(self) -> str:
        """Name of the attack in `results.json`."""

    @property
    @abstractmethod
    def statistics(self) -> PublicStatistics:
        """What the server takes for granted about pictures of the task's size."""

    @abstractmethod
    def make_payload(self, client: Client) -> ServerPayload:
        """What to ship; from a recording, what was shipped."""

    @abstractmethod
    def announce(self, folder: Path) -> None:
        """Write down what is announced and shipped to every client, into an empty folder."""

    @abstractmethod
    def observe(self, client: Client, folder: Path | None) -> None:
        """Let the clients of this rank answer, and prepare the search; keep what was read in the folder, if any."""

    @abstractmethod
    def allocate(self) -> None:
        """Make room for what is optimised, of all ranks, once the task is known."""

    @abstractmethod
    def reconstructions(self) -> list[Reconstruction]:
        """This rank's pictures as they are now, in the order of updates and draws."""

    def present_objective(self) -> Tensor | None:
        """The objective of the pictures as they are now, a mean over this rank's; None if there is none."""
        return self.latest_objective

    @property
    def exchange(self) -> Path:
        """Folder that keeps what crossed the wire."""
        return Path(self.trainer.default_root_dir) / "exchange"

    @property
    def staged(self) -> Path:
        """Where a new exchange is recorded; an earlier one stays in place until it is complete."""
        return self.exchange.with_name("exchange.new")

    @property
    def own_updates(self) -> range:
        """The updates that this rank attacks."""
        return range(self.global_rank, self.task.updates, self.trainer.world_size)

    @property
    def mean_image(self) -> Tensor:
        """The attacker's guess for a victim that it did not isolate, shape (3, H, W)."""
        return self.statistics.mean

    def setup(self, stage: str) -> None:
        """Make room for the dummies; a finished run repeats its recorded exchange.

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
            self._collect_updates(self._recorded_client(), record=False)

    def on_fit_start(self) -> None:
        """Talk to the clients of this rank; a resumed run, known as such only now, repeats its recorded exchange."""
        recording = self.record and not self.resumed
        try:
            self._collect_updates(self._recorded_client() if self.resumed else self.client, record=recording)
        except UserError:
            shutil.rmtree(self.staged, ignore_errors=True)
            raise
        self.trainer.strategy.barrier()
        begin_run(self.trainer)
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
        for name in asdict(recorded):
            now, before = getattr(self.client.task, name), getattr(recorded, name)
            if now != before:
                advice = "use the config.yaml of that run"
                if name == "normalization":  # which runs of before there was a choice do not name
                    advice += f", with --model.client.normalization {before}"
                raise UserError(f"{name} is {now}, but {self.exchange} was recorded with {before}: {advice}")

    def _collect_updates(self, client: Client, record: bool) -> None:
        """Ship to this rank's clients, and hear what they answer."""
        if isinstance(client, nn.Module):
            client.to(self.trainer.strategy.root_device)
        self.task = client.task
        if isinstance(client, RecordedClient) and not isinstance(self.client, RecordedClient):
            self._check_announced(client.task)
        self.payload = self.make_payload(client)
        if record and self.trainer.is_global_zero:
            shutil.rmtree(self.staged, ignore_errors=True)
            self.announce(self.staged)
        self.trainer.strategy.barrier()
        with explained_batch_norm():
            self.observe(client, self.staged if record else None)

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
        if not hasattr(self, "resumed"):
            raise UserError("this command attacks nothing: leave out --ckpt_path")
        self.resumed = True
        if checkpoint.get("exchange") != fingerprint(self.exchange):
            raise UserError(
                f"--ckpt_path names a checkpoint that does not belong to {self.exchange}: give last, or a file from "
                "checkpoints/ of this run"
            )
        taken = int(checkpoint.get("global_step", 0))
        if self.trainer.state.fn == "fit" and 0 <= self.trainer.max_steps < taken:
            raise UserError(
                f"the run has taken {taken} steps already, and --trainer.max_steps is {self.trainer.max_steps}: give "
                f"{taken} or more to go on, or --overwrite instead of --ckpt_path to start again"
            )

    def gathered(self) -> list[Reconstruction]:
        """All ranks' pictures; every rank must call it."""
        own = self.reconstructions()
        if self.trainer.world_size == 1:
            return own
        parts: list[list[Reconstruction]] = [[] for _ in range(self.trainer.world_size)]
        dist.all_gather_object(parts, own)
        return sorted((one for part in parts for one in part), key=lambda one: (one.client, one.draw))
