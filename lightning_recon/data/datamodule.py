# SPDX-License-Identifier: Apache-2.0
"""The data module that gives images to clients, or to the training of a target network.

An attack never gets an image: its training data are its own step numbers, see `handover`.
"""

import os
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_recon.attack.base import Attack
from lightning_recon.data.dataset import SubjectBatches, SubjectImages, warn, warn_skipped
from lightning_recon.data.download import DOWNLOADABLE, default_root
from lightning_recon.data.gallery import gallery_photographs
from lightning_recon.data.handover import TrainedTarget, hand_over, model_of, one_step, step_loader
from lightning_recon.data.mask_cache import cache_folder, fill_cache, read_mask
from lightning_recon.data.masks import GrabCutMasks, NoMasks, SubjectMasks
from lightning_recon.data.sources import (
    ClientBatch,
    DataProtocol,
    ImageSource,
    Selection,
    Source,
    open_folder,
    open_source,
    select,
)
from lightning_recon.errors import UserError
from lightning_recon.ranges import COUNT, COUNT_OR_NONE, SEED, SIDE, check_ranges


class ClientDataModule(LightningDataModule):
    """Images with their subject on black, in one batch for each client of federated learning.

    `seed` shuffles the images. Client 0 gets the first `batch_size` readable images, client 1 the next, and so on; a
    client's batch does not depend on the number of clients. The server of an attack learns what a protocol says anyway:
    the size of the images, the nominal `batch_size`, and whether subjects are cut out.
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
        actual_batch_sizes: list[int] | None = None,
        gallery: str | None = None,
        local_images: int | None = None,
        clients_at_once: int | None = None,
        first_client: int = 0,
        first_image: int = 0,
    ) -> None:
        """Describe the data; nothing is read before `prepare_data`.

        Args:
            root: folder of the data; null: the environment variable LIGHTNING_RECON_DATA.
            source: "samples" (the bundled photographs, or the image folder `root` if it is given), "folder" (an image
                folder, with a subfolder for each class or without), "imagenet", or a data set that torchvision
                downloads.
            image_size: side of the square images in pixels, at least 8.
            batch_size: number of images per client, as the server is told. When a target network is trained, images in
                a step's batch (for DP-SGD their expected number).
            clients: number of clients that are attacked.
            masks: how the subject of each image is found; everything else becomes black. null: GrabCutMasks.
            seed: seed of the choice of images.
            num_classes: number of classes of the network. Larger labels are refused, and a folder without class
                subfolders gets labels below this number. null: labels are not checked.
            download: let torchvision download the data set if it is missing, into `root` or, if that is not given, into
                $LIGHTNING_RECON_DATA or ~/.cache/lightning_recon/data.
            num_workers: number of processes that read images when a target network is trained.
            mask_cache: folder in which subject masks are stored; null: $LIGHTNING_RECON_CACHE/masks or
                ~/.cache/lightning_recon/masks.
            actual_batch_sizes: numbers of images that clients have where that is not `batch_size`, which the server
                still expects: one number for each client, or one for all. null: every client has `batch_size` images.
            gallery: folder of further photographs among which scores look for the original of each reconstruction
                (`identification` in `results.json`), beside other images of the source and the bundled ones. The attack
                never sees them.
            local_images: number of images that each client holds, of which it uses `batch_size` in a round, as
                `--model.client.sampling` says; the server is told this number. null: the images of one batch.
            clients_at_once: clients that `recon fit` attacks at once. If there are more, it attacks them in waves, each
                a run in the folder `waves/NUMBER`, so that memory holds one wave. Scores do not depend on it, except
                `identification` if the source has more than 1,000 images. null: as many as half of the memory holds;
                on several machines all.
            first_client: number of the first client among all clients of a run that is attacked in waves. Random
                numbers follow from a client's number, so that a client's result does not depend on its wave.
            first_image: number of images of the shuffled order that earlier waves have used.

        Raises:
            UserError: a number is out of its range.
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
            local_images=(local_images, COUNT),
            clients_at_once=(clients_at_once, COUNT),
            first_client=(first_client, COUNT_OR_NONE),
            first_image=(first_image, COUNT_OR_NONE),
        )
        if local_images is not None and actual_batch_sizes:
            raise UserError("--data.local_images and --data.actual_batch_sizes both set what clients hold: give one")
        sizes = actual_batch_sizes or [local_images or batch_size]
        for size in sizes:
            check_ranges("--data.", actual_batch_sizes=(size, COUNT))
        if len(sizes) not in (1, clients):
            raise UserError(
                f"--data.actual_batch_sizes has {len(sizes)} numbers for {clients} client(s): give one for each, "
                "or one for all"
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
        self.gallery = None if gallery is None else Path(gallery).expanduser()
        self.local_images = local_images
        self.clients_at_once, self.first_client, self.first_image = clients_at_once, first_client, first_image
        self.batch_sizes = sizes * clients if len(sizes) == 1 else list(sizes)
        self._warned: set[str] = set()
        self._selected: tuple[ImageSource, Selection, list[int]] | None = None

    def prepare_data(self) -> None:
        """Download missing data, and find the subjects of all images that will be used; runs in one process.

        An attack needs only the clients' images, the training of a target network every image of the source.
        """
        if self.download:
            open_source(self.source, self.root, self.num_classes, download=True)
        if self.gallery is not None:
            open_folder(self.gallery)  # a mistake is found before anything is attacked
        _, selection, _ = self._select()
        fill_cache(selection.images, len(selection.images), self.masks, self.mask_cache)
        if self._trains_target():
            rest = self._rest()
            fill_cache(rest.readable(), len(rest), self.masks, self.mask_cache)

    def setup(self, stage: str | None = None) -> None:
        """Make the batches and hand them over, see `handover`.

        Args:
            stage: the trainer's stage; it makes no difference.
        """
        _, chosen, _ = self._select()
        masks = torch.stack([read_mask(image, self.masks, self.mask_cache) for image in chosen.images])
        photographs, start = chosen.images.float() / 255, 0
        self.client_batches = []
        for size in self.batch_sizes:
            part = slice(start, start + size)
            subject = photographs[part] * masks[part]
            batch = ClientBatch(subject, photographs[part], masks[part], chosen.labels[part], chosen.names[part])
            self.client_batches.append(batch)
            start += size
        subjects = not isinstance(self.masks, NoMasks)
        protocol = DataProtocol(self.batch_size, subjects, self.local_images, self.first_client)
        hand_over(model_of(self.trainer), self.client_batches, self.image_size, protocol)

    def train_dataloader(self) -> DataLoader[Any]:
        """Step numbers for an attack; for a target network, images that no client holds."""
        if self._trains_target():
            return self._loader(validation=False)
        return step_loader(model_of(self.trainer))

    def val_dataloader(self) -> DataLoader[Any]:
        """One empty step for an attack; for a target network, a tenth of the images that no client holds."""
        return self._loader(validation=True) if self._trains_target() else one_step()

    def test_dataloader(self) -> DataLoader[Any]:
        """As for validation."""
        return self.val_dataloader()

    def predict_dataloader(self) -> DataLoader[Any]:
        """As for validation."""
        return self.val_dataloader()

    @property
    def next_image(self) -> int:
        """Number of images of the shuffled order that this wave and earlier ones have used, readable or not."""
        return self.first_image + self._select()[1].used

    @property
    def skipped_pictures(self) -> list[dict[str, str]]:
        """Name and reason for each of the clients' images that could not be read and was replaced by the next."""
        skipped = [] if self._selected is None else self._selected[1].skipped
        return [{"name": name, "reason": reason} for name, reason in skipped]

    def gallery_photographs(self, count: int) -> Tensor:
        """Photographs that no client holds, for the score `identification`, see `data.gallery`.

        Args:
            count: the most that are read.
        """
        source, _, rest = self._select()
        return gallery_photographs(self.gallery, source, rest, count, self.image_size)

    def image_source(self) -> ImageSource:
        """All images that clients may hold; a data module for another source overrides only this method."""
        return open_source(self.source, self.root, self.num_classes)

    def image_order(self, source: ImageSource) -> list[int]:
        """The indices of all images; clients get the first ones in turn.

        Args:
            source: from `image_source`.
        """
        order: list[int] = torch.randperm(len(source), generator=torch.Generator().manual_seed(self.seed)).tolist()
        return order

    def _trains_target(self) -> bool:
        """Whether the model is a target network to be trained, and not an attack."""
        model = model_of(self.trainer)
        return model is not None and not isinstance(model, Attack)

    def _select(self) -> tuple[ImageSource, Selection, list[int]]:
        """The source, the clients' images, and the order of all other images; read once per process."""
        if self._selected is None:
            source = self.image_source()
            if source.ignored:
                names, more = ", ".join(source.ignored[:5]), len(source.ignored) - 5
                warn(f"{source.origin}: not images, ignored: {names}{f' and {more} more' if more > 0 else ''}")
            order = self.image_order(source)
            wanted, earlier, order = sum(self.batch_sizes), order[: self.first_image], order[self.first_image :]
            selection = select(source, order, wanted, self.image_size)
            warn_skipped(source, selection, self._warned)
            if len(selection.images) < wanted:
                least, most = min(self.batch_sizes), max(self.batch_sizes)
                each = str(most) if least == most else f"{least} to {most}"
                held = "--data.batch_size" if self.local_images is None else "--data.local_images"
                raise UserError(
                    f"{source.origin} has {len(selection.images)} readable images"
                    f"{' after the first ' + str(self.first_image) if self.first_image else ''}, {wanted} are needed "
                    f"({self.clients} clients with {each} each): lower {held} or --data.clients"
                )
            highest = int(selection.labels.max())
            if self.num_classes is not None and highest >= self.num_classes:
                raise UserError(
                    f"{source.origin} has the label {highest}, but data.num_classes is {self.num_classes}: raise it"
                )
            self._selected = source, selection, order[selection.used :] + earlier
        return self._selected

    def _rest(self) -> SubjectImages:
        """The images that no client holds."""
        source, _, order = self._select()
        return SubjectImages(source, order, self.image_size, self.masks, self.mask_cache, self._warned)

    def _loader(self, validation: bool) -> DataLoader[tuple[Tensor, Tensor]]:
        """The first nine tenths of the images that no client holds, or the last tenth for validation.

        A `TrainedTarget` may choose a sampler for training; otherwise batches are shuffled.
        """
        rest = self._rest()
        held = max(1, len(rest) // 10)
        if len(rest) <= held:
            raise UserError(f"{self._select()[0].origin} has too few images to train on: lower --data.batch_size")
        rest.order = rest.order[-held:] if validation else rest.order[:-held]
        model = model_of(self.trainer)
        if not validation and isinstance(model, TrainedTarget):
            sampler = model.sampler(len(rest), self.batch_size)
            if sampler is not None:
                return DataLoader(SubjectBatches(rest), batch_size=None, sampler=sampler, num_workers=self.num_workers)
        return DataLoader(rest, self.batch_size, shuffle=not validation, num_workers=self.num_workers)
