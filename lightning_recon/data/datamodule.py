# SPDX-License-Identifier: Apache-2.0
"""Who holds which photographs: the clients' batches, chosen by seed and handed to the client that is attacked.

The attack itself is never handed an image: it gets its own step counter as training data.
"""

import os
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_recon.attack.base import Attack
from lightning_recon.data.dataset import Batches, Subjects, name_skipped, warn
from lightning_recon.data.download import DOWNLOADABLE, default_root
from lightning_recon.data.handover import TrainedTarget, hand_over, model_of, one_step, step_loader
from lightning_recon.data.mask_cache import cache_folder, fill_cache, read_mask
from lightning_recon.data.masks import GrabCutMasks, SubjectMasks
from lightning_recon.data.sources import ClientBatch, Pictures, Selection, Source, open_source, select
from lightning_recon.errors import UserError
from lightning_recon.ranges import COUNT, COUNT_OR_NONE, SEED, SIDE, check_ranges


class ClientDataModule(LightningDataModule):
    """Photographs, cut out and dealt to the clients of federated learning.

    The images are put in an order by `seed`; client 0 gets the first `batch_size` readable ones, client 1 the next,
    and so on: a client's batch does not depend on how many clients are attacked.
    """

    client_batches: list[ClientBatch]

    def __init__(
        self,
        root: str | None = None,
        source: Source = "samples",
        image_size: int = 64,
        batch_size: int = 16,
        clients: int = 1,
        masks: SubjectMasks | None = None,
        seed: int = 0,
        num_classes: int | None = None,
        download: bool = False,
        num_workers: int = 0,
        mask_cache: str | None = None,
    ) -> None:
        """Describe the data; nothing is read before `prepare_data`.

        Args:
            root: folder of the data; the environment variable LIGHTNING_RECON_DATA when not given.
            source: samples (the bundled photographs, or the image folder `root` if that is given), folder (any image
                folder, with a subfolder per class or without), imagenet, or a data set that torchvision downloads.
            image_size: side of the square images in pixels, at least 8.
            batch_size: images per client; of a step's batch when a target network is trained (for DP-SGD: expected).
            clients: how many clients are attacked.
            masks: finds the subject of each image, the rest becomes black; GrabCutMasks when not given.
            seed: chooses the images.
            num_classes: number of classes of the network: a label that does not fit is refused, and a folder without
                class subfolders gets labels below it; unchecked when not given.
            download: fetch CIFAR-100, Caltech-256 or Flowers-102 when missing, into `root` or, when that is not given
                either, $LIGHTNING_RECON_DATA or ~/.cache/lightning_recon/data.
            num_workers: processes that read images while a target network is trained.
            mask_cache: folder of found masks; $LIGHTNING_RECON_CACHE/masks or ~/.cache/lightning_recon/masks when not
                given.

        Raises:
            UserError: A number is out of its range.
        """
        super().__init__()
        check_ranges(
            "--data.",
            image_size=(image_size, SIDE),
            batch_size=(batch_size, COUNT),
            clients=(clients, COUNT),
            seed=(seed, SEED),
            num_classes=(num_classes, COUNT),
            num_workers=(num_workers, COUNT_OR_NONE),
        )
        given = root or (os.environ.get("LIGHTNING_RECON_DATA") if source != "samples" else None)
        self.root = Path(given).expanduser() if given else None
        if self.root is None and download and source in DOWNLOADABLE:
            self.root = default_root()
        self.source: Source = "folder" if source == "samples" and root else source
        self.image_size, self.batch_size, self.clients, self.seed = image_size, batch_size, clients, seed
        self.masks = masks if masks is not None else GrabCutMasks()
        self.num_classes, self.download, self.num_workers = num_classes, download, num_workers
        self.mask_cache = cache_folder(mask_cache)
        self._named: set[str] = set()
        self._chosen: tuple[Pictures, Selection, list[int]] | None = None

    def prepare_data(self) -> None:
        """Download what is missing and find the subjects of all images that will be used: one process, once.

        An attack needs the clients' images alone, the training of a target network every image of the source.
        """
        if self.download:
            open_source(self.source, self.root, self.num_classes, download=True)
        _, selection, _ = self._choose()
        fill_cache(selection.images, len(selection.images), self.masks, self.mask_cache)
        if self._trains_target():
            rest = self._rest()
            fill_cache(rest.readable(), len(rest), self.masks, self.mask_cache)

    def setup(self, stage: str | None = None) -> None:
        """Deal the batches and bind them to the client, if the model has one.

        Args:
            stage: fit, validate, test or predict; all are alike.
        """
        _, chosen, _ = self._choose()
        masks = torch.stack([read_mask(image, self.masks, self.mask_cache) for image in chosen.images])
        photographs, size = chosen.images.float() / 255, self.batch_size
        self.client_batches = []
        for start in range(0, self.clients * size, size):
            part = slice(start, start + size)
            subject = photographs[part] * masks[part]
            batch = ClientBatch(subject, photographs[part], masks[part], chosen.labels[part], chosen.names[part])
            self.client_batches.append(batch)
        hand_over(model_of(self.trainer), self.client_batches, self.image_size)

    def train_dataloader(self) -> DataLoader[Any]:
        """The attack's own step counter; for a target network, images that no attacked client holds."""
        if self._trains_target():
            return self._loader(validation=False)
        return step_loader(model_of(self.trainer))

    def val_dataloader(self) -> DataLoader[Any]:
        """One empty step for an attack; for a target network, a tenth of the images that it may see."""
        return self._loader(validation=True) if self._trains_target() else one_step()

    def test_dataloader(self) -> DataLoader[Any]:
        """As for validation."""
        return self.val_dataloader()

    def predict_dataloader(self) -> DataLoader[Any]:
        """As for validation."""
        return self.val_dataloader()

    @property
    def skipped_pictures(self) -> list[dict[str, str]]:
        """Name of each of the clients' images that could not be read, and why; another took its place."""
        skipped = [] if self._chosen is None else self._chosen[1].skipped
        return [{"name": name, "reason": reason} for name, reason in skipped]

    def pictures(self) -> Pictures:
        """All images that clients may hold; a data module for another source overrides this alone."""
        return open_source(self.source, self.root, self.num_classes)

    def _trains_target(self) -> bool:
        """Whether the model is a network to be trained, not an attack on a client's update."""
        model = model_of(self.trainer)
        return model is not None and not isinstance(model, Attack)

    def _choose(self) -> tuple[Pictures, Selection, list[int]]:
        """The source, the clients' images, and the order of all others; read once per process."""
        if self._chosen is None:
            pictures = self.pictures()
            if pictures.ignored:
                names, more = ", ".join(pictures.ignored[:5]), len(pictures.ignored) - 5
                warn(f"{pictures.origin}: not pictures, ignored: {names}{f' and {more} more' if more > 0 else ''}")
            order = torch.randperm(len(pictures), generator=torch.Generator().manual_seed(self.seed)).tolist()
            wanted = self.clients * self.batch_size
            selection = select(pictures, order, wanted, self.image_size)
            name_skipped(pictures, selection, self._named)
            if len(selection.images) < wanted:
                raise UserError(
                    f"{pictures.origin} has {len(selection.images)} readable pictures, {wanted} are needed "
                    f"({self.clients} clients with {self.batch_size} each): lower --data.batch_size or --data.clients"
                )
            highest = int(selection.labels.max())
            if self.num_classes is not None and highest >= self.num_classes:
                raise UserError(
                    f"{pictures.origin} has the label {highest}, but data.num_classes is {self.num_classes}: raise it"
                )
            self._chosen = pictures, selection, order[selection.used :]
        return self._chosen

    def _rest(self) -> Subjects:
        pictures, _, order = self._choose()
        return Subjects(pictures, order, self.image_size, self.masks, self.mask_cache, self._named)

    def _loader(self, validation: bool) -> DataLoader[tuple[Tensor, Tensor]]:
        """Nine tenths of the images that are left for training, or the last tenth in order.

        A `TrainedTarget` may choose a sampler for training; otherwise batches are shuffled.
        """
        rest = self._rest()
        held = max(1, len(rest) // 10)
        if len(rest) <= held:
            raise UserError(f"{self._choose()[0].origin} has too few pictures to train on: lower --data.batch_size")
        rest.order = rest.order[-held:] if validation else rest.order[:-held]
        model = model_of(self.trainer)
        if not validation and isinstance(model, TrainedTarget):
            sampler = model.sampler(len(rest), self.batch_size)
            if sampler is not None:
                return DataLoader(Batches(rest), batch_size=None, sampler=sampler, num_workers=self.num_workers)
        return DataLoader(rest, self.batch_size, shuffle=not validation, num_workers=self.num_workers)
