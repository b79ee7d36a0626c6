# SPDX-License-Identifier: Apache-2.0
"""Captured updates answer in a client's place: the attack does not know the difference."""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

from lightning_recon.capture.update_file import ENDING, CapturedUpdate, load_captured, load_header
from lightning_recon.capture.validator import Shape, check_update, remarks_of
from lightning_recon.errors import UserError
from lightning_recon.exchange import ClientUpdate, ServerPayload, Task, update_name

TRUTH = "truth"  # files that begin so hold images, for the scorer alone
NETWORK = "network"  # the file that is called so holds the weights that the server shipped, for an honest one's attack


class CapturedClient:
    """A `Client` whose answers were captured from another program; see `capture.update_file`."""

    def __init__(self, path: str | Path) -> None:
        """Open a captured update, or a folder of them; the numbers themselves are read when they are asked for.

        Args:
            path: a file, or a folder with a file for each client and round (network.safetensors, hidden files, and
                files that begin with "truth", are left alone).

        Raises:
            UserError: a file is missing, damaged, no captured update, or does not belong to the others.
        """
        self.path = Path(path)
        paths = [self.path]
        if self.path.is_dir():
            found = sorted(self.path.glob(f"*{ENDING}"))
            paths = [file for file in found if not file.name.startswith((TRUTH, ".")) and file.stem != NETWORK]
            if not paths:
                raise UserError(f"{self.path} holds no captured update (*{ENDING}): capture one first")
        self.files: dict[tuple[int, int, int], Path] = {}
        self.headers = {file: load_header(file) for file in paths}
        self.first = self.headers[paths[0]]
        for file, header in self.headers.items():
            self._file(file, header)
        clients, draws, rounds = (sorted({place[part] for place in self.files}) for part in range(3))
        for wanted, have, what in ((self.task.updates, clients, "client"), (self.task.rounds, rounds, "round")):
            if have != list(range(wanted)):
                raise UserError(
                    f"{self.path} holds {what}s {', '.join(map(str, have))}, and the task announces {wanted}: give the "
                    f"folder with every {what}'s file, or announce as many as were captured when the payload is made"
                )
        if missing := [p for p in self._places(len(draws)) if p not in self.files]:
            raise UserError(f"{self.path} lacks {update_name(*missing[0])}: capture every client, round and draw")

    @property
    def task(self) -> Task:
        """What the server knows of the training, as captured."""
        return self.first.task

    @cached_property
    def remarks(self) -> list[str]:
        """What the program that made the updates does not tell its users."""
        return remarks_of(self.first)

    def share(self, payload: ServerPayload, client: int, draw: int, round: int) -> ClientUpdate:
        """The captured update of this client, draw and round, if it answers this payload and makes sense."""
        return self._checked(payload, (client, draw, round), None)

    def check(self, payload: ServerPayload, network: Mapping[str, Shape] | None, head: str | None = None) -> None:
        """Look at every file before anything is attacked.

        Args:
            payload: what the configured structure ships.
            network: shape of the network's parameters by name; None if the network is not known here.
            head: name of the bias of its last layer; None if that is not known.

        Raises:
            UserError: the first thing that is wrong.
        """
        for place in self.files:
            self._checked(payload, place, network, head)

    def _checked(
        self,
        payload: ServerPayload,
        place: tuple[int, int, int],
        network: Mapping[str, Shape] | None,
        head: str | None = None,
    ) -> ClientUpdate:
        if place not in self.files:
            raise UserError(
                f"{self.path} holds no {update_name(*place)}: an update has the noise that it has, so leave "
                "--model.draws at the number of captured draws"
            )
        path = self.files[place]
        try:
            return check_update(load_captured(path), payload, network, head)
        except (UserError, ValueError) as error:
            raise UserError(f"{path}: {error}") from error

    def _file(self, path: Path, header: CapturedUpdate) -> None:
        """Take one file in, if it belongs to the first."""
        place = header.place
        if place in self.files:
            raise UserError(f"{path} and {self.files[place].name} both hold {update_name(*place)}: leave one out")
        for name in ("task", "convention", "source", "declared"):
            if getattr(header, name) != getattr(self.first, name):
                raise UserError(f"{path} has another {name} than the files beside it: give a folder for each task")
        self.files[place] = path

    def _places(self, draws: int) -> list[tuple[int, int, int]]:
        task = self.task
        return [(c, d, r) for c in range(task.updates) for d in range(draws) for r in range(task.rounds)]
