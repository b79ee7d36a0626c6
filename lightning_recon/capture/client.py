# SPDX-License-Identifier: Apache-2.0
"""A client that answers with captured updates, so that attacks handle them like those of a simulated client."""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

from lightning_recon.capture.sensitivity import remarks_of
from lightning_recon.capture.tensor_check import Shape
from lightning_recon.capture.update_file import ENDING, CapturedUpdate, load_captured, load_header
from lightning_recon.capture.validator import check_update
from lightning_recon.errors import UserError
from lightning_recon.exchange import ClientUpdate, ServerPayload, Task, update_name

TRUTH = "truth"  # prefix of files with the true images, which are only for scoring
NETWORK = "network"  # stem of the file with the weights that the server sent; only attacks by an honest server need it


class CapturedClient:
    """A `Client` whose answers were captured from another program; see `capture.update_file`."""

    def __init__(self, path: str | Path) -> None:
        """Open a captured update, or a folder of them; tensors are read when they are needed.

        Args:
            path: a file, or a folder with a file for each client and round. In a folder, network.safetensors, hidden
                files, and files whose names begin with "truth" are ignored.

        Raises:
            UserError: a file is missing, damaged, not a captured update, or does not belong to the others.
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
            self._add(file, header)
        clients, draws, rounds = (sorted({place[part] for place in self.files}) for part in range(3))
        for wanted, have, what in ((self.task.updates, clients, "client"), (self.task.rounds, rounds, "round")):
            if have != list(range(wanted)):
                raise UserError(
                    f"{self.path} holds {what}s {', '.join(map(str, have))}, but the task announces {wanted}: give the "
                    f"folder with every {what}'s file, or announce as many as were captured when you make the payload"
                )
        if missing := [p for p in self._places(len(draws)) if p not in self.files]:
            raise UserError(f"{self.path} lacks {update_name(*missing[0])}: capture every client, round and draw")

    @property
    def task(self) -> Task:
        """What the server knows about the training, as captured."""
        return self.first.task

    @cached_property
    def remarks(self) -> list[str]:
        """Warnings about the privacy that the capturing program declared."""
        return remarks_of(self.first)

    def share(self, payload: ServerPayload, client: int, draw: int, round: int) -> ClientUpdate:
        """The captured update of this client, draw and round, if it is valid and answers this payload."""
        return self._checked(payload, (client, draw, round), None)

    def check(self, payload: ServerPayload, network: Mapping[str, Shape] | None, head: str | None = None) -> None:
        """Check every file before anything is attacked.

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
                f"{self.path} holds no {update_name(*place)}: captured updates cannot be given other noise, so set "
                "--model.draws to the number of captured draws"
            )
        path = self.files[place]
        try:
            return check_update(load_captured(path), payload, network, head)
        except (UserError, ValueError) as error:
            reason = error.for_command_line if isinstance(error, UserError) else error
            raise UserError(f"{path}: {reason}") from error

    def _add(self, path: Path, header: CapturedUpdate) -> None:
        """Add one file, if it belongs to the first."""
        place = header.place
        if place in self.files:
            raise UserError(f"{path} and {self.files[place].name} both hold {update_name(*place)}: remove one of them")
        for name in ("task", "convention", "source", "declared"):
            if getattr(header, name) != getattr(self.first, name):
                raise UserError(f"{path} has another {name} than the files beside it: use one folder for each task")
        self.files[place] = path

    def _places(self, draws: int) -> list[tuple[int, int, int]]:
        task = self.task
        return [(c, d, r) for c in range(task.updates) for d in range(draws) for r in range(task.rounds)]
