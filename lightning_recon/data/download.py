# SPDX-License-Identifier: Apache-2.0
"""Data sets that torchvision downloads, with instructions for a manual download when there is no network."""

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

# Time in seconds after which a server that does not respond is given up.
TIMEOUT = 20.0


@dataclass(frozen=True)
class Downloadable:
    """A data set of torchvision.

    Args:
        reader: opens the data set; takes the root and `download`.
        addresses: URLs of its files.
        folder: folder of the files, below the root.
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
    """Folder for downloads: $LIGHTNING_RECON_DATA or ~/.cache/lightning_recon/data."""
    return Path(os.environ.get("LIGHTNING_RECON_DATA") or "~/.cache/lightning_recon/data").expanduser()


def opened(source: str, root: Path, download: bool) -> Any:  # noqa: ANN401 - one of torchvision's data sets
    """Open a data set of torchvision, and download it if it is missing and `download` is set.

    Args:
        source: a key of `DOWNLOADABLE`.
        root: folder of the data.
        download: whether to download missing data.

    Raises:
        UserError: the data are missing or cannot be downloaded; the message names the URLs and the folder.
    """
    one = DOWNLOADABLE[source]
    folder, addresses = root / one.folder, " and ".join(one.addresses)
    by_hand = f"download {addresses} by hand, put {'it' if len(one.addresses) == 1 else 'them'} into {folder}"
    try:
        if not (download or root.is_dir()):  # otherwise a reader may create the folder
            raise FileNotFoundError(root)
        with timeout():
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
def timeout() -> Iterator[None]:
    """Give up servers that do not respond within `TIMEOUT`; torchvision itself waits forever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
