# SPDX-License-Identifier: Apache-2.0
"""How many clients are attacked together: as many as memory holds."""

import os
from dataclasses import dataclass
from pathlib import Path

from lightning_recon.client import VictimClient
from lightning_recon.data import ClientDataModule
from lightning_recon.errors import UserError
from lightning_recon.files.run_folder import WAVES

_BYTES_PER_VALUE = 100  # memory for each value of an image and draw: an upper estimate
_SHARE_OF_MEMORY = 0.5
_LIMIT = Path("/sys/fs/cgroup/memory.max")


@dataclass(frozen=True)
class Wave:
    """Clients that are attacked together.

    Args:
        number: Of the wave, from 0.
        first_client: Number of its first client.
        clients: How many there are.
    """

    number: int
    first_client: int
    clients: int

    @property
    def folder(self) -> str:
        """Its folder, relative to the run folder."""
        return f"{WAVES}/{self.number:05d}"


def clients_at_once(data: ClientDataModule, client: object, draws: int, ranks: int = 1, nodes: int = 1) -> int:
    """How many clients a wave has.

    Args:
        data: The data module.
        client: Of the attack.
        draws: Noise draws of each client.
        ranks: Processes on this machine, each of which holds the images of the wave.
        nodes: Number of machines. Their memory may differ, so that nothing is chosen from it.

    Raises:
        UserError: Clients of different waves would have to meet.
    """
    group = client.aggregated if isinstance(client, VictimClient) else 1
    meet = isinstance(client, VictimClient) and client.participation < 1
    wanted = data.clients_at_once
    if wanted is None and (meet or nodes > 1):
        return data.clients
    if wanted is None:
        images = max(data.batch_sizes) * draws
        values = data.image_format.channels * data.image_format.pixels
        wanted = max(1, int(_SHARE_OF_MEMORY * memory() / ranks / (images * values * _BYTES_PER_VALUE)))
        wanted = max(group, wanted - wanted % group)
    if wanted >= data.clients:
        return data.clients
    if wanted % group:
        raise UserError(
            f"--data.clients_at_once is {wanted}, and updates of {group} clients are summed: give a multiple of {group}"
        )
    if meet:
        raise UserError(
            "clients that do not take part in a round answer on the images of others, which may be in another wave: "
            f"set --data.clients_at_once to {data.clients}, or --model.client.participation to 1"
        )
    return wanted


def memory() -> int:
    """Memory that this process may use, in bytes: the machine's, or less in a container or a job of a cluster."""
    if not hasattr(os, "sysconf"):  # Windows
        return 8 << 30
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(machine, int(_LIMIT.read_text()))
    except (OSError, ValueError):  # no such file, or "max"
        return machine


def waves_of(clients: int, at_once: int) -> list[Wave]:
    """All waves of a run."""
    starts = range(0, clients, at_once)
    return [Wave(number, first, min(at_once, clients - first)) for number, first in enumerate(starts)]


def check_images(data: ClientDataModule) -> None:
    """Refuse a source that has too few images, before the first wave.

    Raises:
        UserError: As does a source that cannot be opened.
    """
    source, wanted = data.image_source(), sum(data.batch_sizes)
    if len(source) - data.first_image < wanted:
        raise UserError(
            f"{source.origin} has {max(0, len(source) - data.first_image)} images for these clients, {wanted} are "
            "needed: lower --data.batch_size or --data.clients"
        )
