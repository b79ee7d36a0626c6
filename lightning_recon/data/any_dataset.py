# SPDX-License-Identifier: Apache-2.0
"""Clients whose images come from any data set class: torchvision's by name, others by class path."""

import inspect
from collections.abc import Callable
from http.client import HTTPException
from importlib import import_module
from itertools import islice
from pathlib import Path
from tarfile import TarError
from typing import Any

from PIL import Image
from torchvision import datasets

from lightning_recon.data.datamodule import ClientDataModule
from lightning_recon.data.dataset_items import as_image, label_of, labels_of
from lightning_recon.data.dirichlet import dirichlet_partition
from lightning_recon.data.download import default_root, timeout
from lightning_recon.data.masks import SubjectMasks
from lightning_recon.data.sources import ImageSource
from lightning_recon.errors import UserError
from lightning_recon.plural import counted
from lightning_recon.ranges import COUNT, NOT_NEGATIVE, POSITIVE, check_ranges
from lightning_recon.suggestions import closest


class DatasetClients(ClientDataModule):
    """Images of a data set class: any of `torchvision.datasets` by name, or any map-style data set by class path.

    An item is an image and a label; further parts are ignored. Images are PIL images, arrays (H, W), (H, W, C), or
    tensors (C, H, W), of 8 bit or float in [0, 1].
    """

    def __init__(
        self,
        dataset: str,
        options: dict[str, Any] | None = None,
        alpha: float | None = None,
        partitions: int = 10,
        min_partition_size: int = 10,
        self_balancing: bool = False,
        root: str | None = None,
        image_size: int | list[int] = 64,
        batch_size: int = 16,
        clients: int = 1,
        masks: SubjectMasks | None = None,
        seed: int = 0,
        num_classes: int | None = None,
        download: bool = False,
        local_images: int | None = None,
        channels: int = 3,
        bit_depth: int = 8,
        targets: str = "labels",
        gallery: str | None = None,
        actual_batch_sizes: list[int] | None = None,
        clients_at_once: int | None = None,
        first_client: int = 0,
        first_image: int = 0,
    ) -> None:
        """Describe the data; nothing is read before `prepare_data`.

        Args:
            dataset: name of a class of `torchvision.datasets`, such as "MNIST", or a class path, such as
                "medmnist.PathMNIST".
            options: arguments of the class. `root` and `download` are given to classes that have them, and `train` is
                true where a class has it; what is here takes precedence.
            alpha: distribute the images by a Dirichlet distribution over labels with this concentration, see
                `data.dirichlet`; null: independently of their labels.
            partitions: with `alpha`: clients that share the data set, of which the first `clients` are attacked.
            min_partition_size: with `alpha`: fewest images of a client.
            self_balancing: with `alpha`: whether a client with more images than the average gets no further classes.
            root: see `ClientDataModule`; null: $LIGHTNING_RECON_DATA or ~/.cache/lightning_recon/data.
            image_size: see `ClientDataModule`, as all that follow.
            batch_size: number of images per client.
            clients: number of clients that are attacked.
            masks: how the subject of each image is found.
            seed: seed of the choice of images, and of their distribution.
            num_classes: number of classes of the network.
            download: let the class download the data if they are missing.
            local_images: number of images that each client holds.
            channels: of the images: 3 for RGB, 1 for grey.
            bit_depth: bits of a value to which images are rounded; the data sets have 8, or floats.
            targets: see `ClientDataModule`; in a CSV file the names of images are their indices.
            gallery: folder of further photographs, see `ClientDataModule`.
            actual_batch_sizes: numbers of images of the clients, see `ClientDataModule`.
            clients_at_once: clients in a wave, see `ClientDataModule`.
            first_client: number of the first client among all of the run.
            first_image: number of images that earlier waves have used.

        Raises:
            UserError: a number is out of its range.
        """
        super().__init__(
            root=str(default_root()) if root is None else root,
            source="folder",
            image_size=image_size,
            batch_size=batch_size,
            clients=clients,
            masks=masks,
            seed=seed,
            num_classes=num_classes,
            local_images=local_images,
            channels=channels,
            bit_depth=bit_depth,
            targets=targets,
            gallery=gallery,
            actual_batch_sizes=actual_batch_sizes,
            clients_at_once=clients_at_once,
            first_client=first_client,
            first_image=first_image,
        )
        check_ranges(
            "--data.",
            alpha=(alpha, POSITIVE),
            partitions=(partitions, COUNT),
            min_partition_size=(min_partition_size, NOT_NEGATIVE),
        )
        if alpha is not None and first_client + clients > partitions:
            every = first_client + clients
            raise UserError(f"--data.clients is {every}, more than --data.partitions, {partitions}: raise that")
        if alpha is not None and actual_batch_sizes:
            raise UserError("--data.alpha and --data.actual_batch_sizes both set what clients hold: give one")
        self.dataset, self.options, self.alpha, self.partitions = dataset, options or {}, alpha, partitions
        self.min_partition_size, self.self_balancing, self.downloads = min_partition_size, self_balancing, download
        self._opened: Any = None

    def prepare_data(self) -> None:
        """Download missing data, and find the subjects of the images."""
        if self.downloads:
            self._data(download=True)
        super().prepare_data()

    def image_source(self) -> ImageSource:
        """All images of the data set."""
        data = self._data()

        def fetch(index: int) -> tuple[Image.Image, int]:
            image, label, *_ = data[index]
            return as_image(image), label_of(label)

        return ImageSource(f"{self.dataset} in {self.root}", [str(index) for index in range(len(data))], fetch)

    def image_order(self, source: ImageSource) -> list[int]:
        """Each client's images in turn, from its own part of the data set, and then all others."""
        if self.alpha is None:
            return super().image_order(source)
        labels = labels_of(self._data(), source)
        parts = dirichlet_partition(
            labels, self.partitions, self.alpha, self.min_partition_size, self.self_balancing, self.seed
        )
        size, own = self.local_images or self.batch_size, []
        for client, part in enumerate(parts[: self.first_client + self.clients]):
            # What earlier waves have used only has to be counted.
            usable = (index for index in part if client < self.first_client or self._is_readable(source, index))
            held = list(islice(usable, size))
            if len(held) < size:
                raise UserError(
                    f"a client holds {counted(len(held), 'readable image')} of {self.dataset}; {size} are needed: "
                    "lower --data.batch_size or --data.partitions, or raise --data.alpha"
                )
            own += held
        taken = set(own)
        return own + [index for index in super().image_order(source) if index not in taken]

    def _is_readable(self, source: ImageSource, index: int) -> bool:
        """Whether an image can be decoded; otherwise the next one of the same client takes its place."""
        try:
            source.read(index, self.image_format)
        except ValueError:
            return False
        return True

    def _data(self, download: bool = False) -> Any:  # noqa: ANN401 - a data set of any class
        if self._opened is None:
            self._opened = open_dataset(self.dataset, self.root or default_root(), self.options, download)
        return self._opened


def open_dataset(name: str, root: Path, options: dict[str, Any], download: bool) -> Any:  # noqa: ANN401
    """Open a data set.

    Args:
        name: class of `torchvision.datasets`, or a class path.
        root: folder of the data.
        options: arguments of the class.
        download: whether the class may download missing data.

    Raises:
        UserError: there is no such class, or it cannot be opened.
    """
    kind = dataset_class(name)
    known = inspect.signature(kind).parameters
    given: dict[str, Any] = {"train": True} if "train" in known else {}
    if "root" in known:
        given["root"] = str(root)
    if download and "download" in known:
        root.mkdir(parents=True, exist_ok=True)
        given["download"] = True
    try:
        with timeout():
            data = kind(**given | options)
        len(data)
    except (
        RuntimeError,
        OSError,
        ImportError,
        HTTPException,
        TarError,
        EOFError,
        TypeError,
        ValueError,
        AssertionError,
    ) as error:
        reason = " ".join(str(getattr(error, "reason", None) or error).split())[:300]
        hint = "" if download or "download" not in known else "add --data.download true, or "
        raise UserError(
            f"{name} cannot be opened in {root} ({reason}): {hint}put its files there, and give the arguments of the "
            "class by --data.options"
        ) from error
    return data


def dataset_class(name: str) -> Callable[..., Any]:
    """The class of a data set by its name.

    Raises:
        UserError: there is none.
    """
    if "." in name:
        module, _, attribute = name.rpartition(".")
        try:
            found = getattr(import_module(module), attribute)
        except (ImportError, AttributeError, ValueError) as error:
            hint = ": pip install 'lightning_recon[medmnist]'" if module == "medmnist" else ""
            raise UserError(f"the data set {name} cannot be imported ({error}){hint}") from error
    else:
        own = {one.lower(): one for one in datasets.__all__}
        if name.lower() not in own:
            near = closest(name, datasets.__all__)
            raise UserError(
                f"torchvision has no data set {name}: {f'did you mean {near}? ' if near else ''}"
                "Give a class of torchvision.datasets, or a class path"
            )
        found = getattr(datasets, own[name.lower()])
    if not isinstance(found, type) or not hasattr(found, "__getitem__"):
        raise UserError(f"{name} is no map-style data set: give a class with __len__ and __getitem__")
    return found
