# SPDX-License-Identifier: Apache-2.0
"""The `Client` protocol, and a client that answers from a recorded exchange."""

from pathlib import Path
from typing import Protocol, runtime_checkable

from lightning_recon.errors import UserError
from lightning_recon.exchange.payload import ServerPayload, payload_name
from lightning_recon.exchange.task import Task
from lightning_recon.exchange.update import ClientUpdate, update_name
from lightning_recon.plural import counted


@runtime_checkable
class Client(Protocol):
    """Answers a server's payloads: a simulated client with images, recorded or captured updates."""

    @property
    def task(self) -> Task:
        """What the server knows about the training."""
        ...

    def share(self, payload: ServerPayload, client: int, draw: int, round: int) -> ClientUpdate:
        """Answer one round's payload with a privatised update."""
        ...


class RecordedClient:
    """Answers from a recorded exchange, without images or a network."""

    def __init__(self, folder: str | Path) -> None:
        """Open a recording.

        Args:
            folder: the `exchange` folder of an earlier run.

        Raises:
            UserError: the folder has no readable `task.json`.
        """
        self.folder = Path(folder)
        self._task = Task.load(self.folder)

    @property
    def task(self) -> Task:
        """What the server knows about the training, as recorded."""
        return self._task

    def require(self, rounds: int) -> None:
        """Check before anything is written that the folder has the files that the task announces.

        Args:
            rounds: number of rounds to check.

        Raises:
            UserError: a round's payload or a client's update is missing.
        """
        for number in range(rounds):
            names = [payload_name(number), *(update_name(client, 0, number) for client in range(self.task.updates))]
            for name in names:
                if not (self.folder / f"{name}.json").is_file():
                    raise UserError(
                        f"{self.folder} lacks {name}.json, but its task.json announces "
                        f"{counted(self.task.updates, 'update')} in {counted(self.task.rounds, 'round')}: "
                        "restore the exchange folder of the run"
                    )

    def payload(self, round: int, client: int | None = None, draw: int | None = None) -> ServerPayload:
        """The recorded payload of this round: for all clients, or for this client in this noise draw."""
        return ServerPayload.load(self.folder, payload_name(round, client, draw))

    def share(self, payload: ServerPayload, client: int, draw: int, round: int) -> ClientUpdate:
        """The recorded update of this client, draw and round, if the payload equals the recorded one."""
        update = ClientUpdate.load(self.folder, update_name(client, draw, round))
        if (update.client, update.draw, update.round) != (client, draw, round):
            wrong = update_name(update.client, update.draw, update.round)
            raise UserError(f"{self.folder / update_name(client, draw, round)}.json holds {wrong}: restore the files")
        if update.payload != (digest := payload.digest()):
            raise UserError(
                f"this run recorded a different payload: round {round} of {self.folder} answers {update.payload[:12]}, "
                f"the server now sends {digest[:12]}: replay with the config.yaml of the same run"
            )
        return update
