# SPDX-License-Identifier: Apache-2.0
"""The data module that gives images to clients, or to the training of a target network.

An attack never gets an image: its training data are its own step numbers, see `handover`.
"""

import math
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
from lightning_recon.data.targets import Targets, open_targets
from lightning_recon.errors import UserError
from lightning_recon.image_format import ImageFormat
from lightning_recon.plural import counted
from lightning_recon.ranges import BIT_DEPTH, CHANNELS, COUNT, COUNT_OR_NONE, SEED, SIDE, check_ranges


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
        image_size: int | list[int] = 64,
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
        channels: int = 3,
        bit_depth: int = 8,
        value_range: list[float] | None = None,
        targets: str = "labels",
    ) -> None:
        """Describe the data; nothing is read before `prepare_data`.

        Args:
            root: folder of the data; null: the environment variable LIGHTNING_RECON_DATA.
            source: "samples" (the bundled photographs) and "samples_grey16" (the bundled grey images of 16 bits), or in
                their place the image folder `root` if it is given; "folder" (an image folder, with a subfolder for each
                class or without), "imagenet", or a data set that torchvision downloads.
            image_size: side of square images in pixels, or their height and width; each at least 8.
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
            channels: of the images: 3 for RGB, 1 for grey, any other number for files with so many channels.
            bit_depth: bits of a value, 8 to 16. Images are rounded to multiples of 1 / (2^bits - 1), and bit-exact
                means exact in these.
            value_range: the numbers that become 0 and 1 in files of more than 8 bits or of floats; numbers beyond them
                are set to the nearest of the two. null: the range of the file's type or header.
            targets: what the network learns of an image. "labels": its class. "masks": the mask of its subject, for
                segmentation; images then stay whole. Otherwise a CSV file with a line for each image: its path below
                `root`, and one number or more, which are labels of 0 or 1, or values.

        Raises:
            UserError: a number is out of its range.
        """
        super().__init__()
        check_ranges(
            "--data.",
            channels=(channels, CHANNELS),
            bit_depth=(bit_depth, BIT_DEPTH),
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
        sides = image_size if isinstance(image_size, list) else [image_size, image_size]
        if len(sides) != 2:
            raise UserError(f"--data.image_size is {sides}: give one number, or height and width")
        for side in sides:
            check_ranges("--data.", image_size=(side, SIDE))
        if value_range is not None and not (
            len(value_range) == 2 and -math.inf < value_range[0] < value_range[1] < math.inf
        ):
            raise UserError(f"--data.value_range is {value_range}: give two numbers, the lower one first")
        if local_images is not None and actual_batch_sizes:
            raise UserError("--data.local_images and --data.actual_batch_sizes both set what clients hold: give one")
        sizes = actual_batch_sizes or [local_images or batch_size]
        for size in sizes:
            check_ranges("--data.", actual_batch_sizes=(size, COUNT))
        if len(sizes) not in (1, clients):
            raise UserError(
                f"--data.actual_batch_sizes has {counted(len(sizes), 'number')} for {counted(clients, 'client')}: "
                "give one for each, or one for all"
            )
        given = root or (os.environ.get("LIGHTNING_RECON_DATA") if not source.startswith("samples") else None)
        self.root = Path(given).expanduser() if given else None
        if self.root is None and download and source in DOWNLOADABLE:
            self.root = default_root()
        self.source: Source = "folder" if source.startswith("samples") and root else source
        self.image_format = ImageFormat(channels, sides[0], sides[1], bit_depth)
        self.value_range = None if value_range is None else (float(value_range[0]), float(value_range[1]))
        self.batch_size, self.clients, self.seed = batch_size, clients, seed
        self.masks = masks if masks is not None else GrabCutMasks()
        if targets == "masks" and isinstance(self.masks, NoMasks):
            raise UserError("--data.targets is masks, and --data.masks is NoMasks: name a class that finds subjects")
        self.targets = targets
        self.num_classes, self.download, self.num_workers = num_classes, download, num_workers
        self.mask_cache = cache_folder(mask_cache)
        self.gallery = None if gallery is None else Path(gallery).expanduser()
        self.local_images = local_images
        self.clients_at_once, self.first_client, self.first_image = clients_at_once, first_client, first_image
        self.batch_sizes = sizes * clients if len(sizes) == 1 else list(sizes)
        self._warned: set[str] = set()
        self._selected: tuple[ImageSource, Selection, list[int]] | None = None
        self._targets: Targets | None = None

    def prepare_data(self) -> None:
        """Download missing data, and find the subjects of all images that will be used; runs in one process.

        An attack needs only the clients' images, the training of a target network every image of the source.
        """
        if self.download:
            open_source(self.source, self.root, self.num_classes, download=True)
        if self.gallery is not None:
            open_folder(self.gallery, gallery=True)  # a mistake is found before anything is attacked
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
        photographs, start = self.image_format.values(chosen.images), 0
        targets, whole = (
            self._opened_targets().of(chosen.names, chosen.labels, masks),
            self._opened_targets().whole_images,
        )
        if whole:
            masks = torch.ones_like(masks)
        self.client_batches = []
        for size in self.batch_sizes:
            part = slice(start, start + size)
            subject = photographs[part] * masks[part]
            batch = ClientBatch(subject, photographs[part], masks[part], targets[part], chosen.names[part])
            self.client_batches.append(batch)
            start += size
        subjects = not isinstance(self.masks, NoMasks) and not whole
        protocol = DataProtocol(
            self.batch_size, subjects, self.local_images, self.first_client, self.image_format.bit_depth
        )
        hand_over(model_of(self.trainer), self.client_batches, self.image_format, protocol)

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
        return gallery_photographs(self.gallery, source, rest, count, self.image_format)

    def image_source(self) -> ImageSource:
        """All images that clients may hold; a data module for another source overrides only this method."""
        deep = self.image_format.bit_depth > 8 or self.image_format.channels not in (1, 3)
        return open_source(self.source, self.root, self.num_classes, value_range=self.value_range, deep=deep)

    def _opened_targets(self) -> Targets:
        """The targets of all images, read once per process."""
        if self._targets is None:
            self._targets = open_targets(self.targets, self.root)
        return self._targets

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
            selection = select(source, order, wanted, self.image_format)
            warn_skipped(source, selection, self._warned)
            if len(selection.images) < wanted:
                least, most = min(self.batch_sizes), max(self.batch_sizes)
                each = counted(most, "image") if least == most else f"{least} to {most} images"
                held = "--data.batch_size" if self.local_images is None else "--data.local_images"
                raise UserError(
                    f"{source.origin} has {counted(len(selection.images), 'readable image')}"
                    f"{' after the first ' + str(self.first_image) if self.first_image else ''}; {wanted} are needed "
                    f"({counted(self.clients, 'client')} with {each}{' each' if self.clients > 1 else ''}): "
                    f"lower {held} or --data.clients"
                )
            highest = int(selection.labels.max())
            if self.targets == "labels" and self.num_classes is not None and highest >= self.num_classes:
                raise UserError(
                    f"the images of {source.origin} have labels up to {highest}, but --data.num_classes is "
                    f"{self.num_classes}: raise it"
                )
            self._selected = source, selection, order[selection.used :] + earlier
        return self._selected

    def _rest(self) -> SubjectImages:
        """The images that no client holds."""
        source, _, order = self._select()
        cache, targets = self.mask_cache, self._opened_targets()
        return SubjectImages(source, order, self.image_format, self.masks, cache, self._warned, targets)

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
