# SPDX-License-Identifier: Apache-2.0
"""Data sets that torchvision fetches: where they are kept, and what to do by hand where there is no network."""

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http.client import HTTPException
from pathlib import Path
from tarfile import TarError
from typing import Any

from torchvision import datasets

from lightning_recon.errors import UserError

# Seconds that a server may be silent.
PATIENCE = 20.0


@dataclass(frozen=True)
class Downloadable:
    """One data set.

    Args:
        reader: Opens it; takes the root and `download`.
        addresses: Of its files.
        folder: Below the root, where the files belong.
    """

    reader: Callable[..., Any]
    addresses: tuple[str, ...]
    folder: str


_FLOWERS = "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/"

DOWNLOADABLE = {
    "cifar100": Downloadable(
        partial(datasets.CIFAR100, train=True), ("https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",), ""
    ),
    "caltech256": Downloadable(
        datasets.Caltech256,
        ("https://data.caltech.edu/records/nyy15-4j048/files/256_ObjectCategories.tar",),
        "caltech256",
    ),
    "flowers102": Downloadable(
        partial(datasets.Flowers102, split="train"),
        tuple(_FLOWERS + name for name in ("102flowers.tgz", "imagelabels.mat", "setid.mat")),
        "flowers-102",
    ),
}


def default_root() -> Path:
    """Where data are downloaded to: $LIGHTNING_RECON_DATA or ~/.cache/lightning_recon/data."""
    return Path(os.environ.get("LIGHTNING_RECON_DATA") or "~/.cache/lightning_recon/data").expanduser()


def opened(source: str, root: Path, download: bool) -> Any:  # noqa: ANN401 - one of torchvision's data sets
    """A data set of torchvision, fetched if it is missing and may be.

    Args:
        source: A key of `DOWNLOADABLE`.
        root: Where it lies or is put.
        download: Whether to fetch it.

    Raises:
        UserError: It is not there, or cannot be fetched; addresses and folder are named.
    """
    one = DOWNLOADABLE[source]
    folder, addresses = root / one.folder, " and ".join(one.addresses)
    by_hand = f"fetch {addresses} by hand, put {'it' if len(one.addresses) == 1 else 'them'} into {folder}"
    try:
        if not (download or root.is_dir()):  # a reader may create the folder even so
            raise FileNotFoundError(root)
        with patience():
            return one.reader(root, download=download)
    except (RuntimeError, OSError, ImportError, HTTPException, TarError, EOFError) as error:
        reason = " ".join(str(getattr(error, "reason", None) or error).split())
        if download:
            raise UserError(
                f"{source} cannot be downloaded ({reason}): {by_hand}, then run the same command again"
            ) from error
        raise UserError(
            f"{source} is not complete in {root}: add --data.download true, or {by_hand} and add --data.download true"
        ) from error


@contextmanager
def patience() -> Iterator[None]:
    """Within it a server that does not answer is given up; torchvision itself would wait for ever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(PATIENCE)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
