# SPDX-License-Identifier: Apache-2.0
"""Sources of labelled images: bundled samples, image folders, and data sets of torchvision.

Every source is an `ImageSource`, a lazy list. An image is decoded only when it is selected, so that a folder of a
million images opens in seconds, and a damaged file does not end the run.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.transforms.v2 import functional as transforms

from lightning_recon.data.download import opened
from lightning_recon.data.image_files import open_image, to_rgb
from lightning_recon.data.image_folders import is_image, scan
from lightning_recon.errors import UserError
from lightning_recon.printable import printable

Source = Literal["samples", "folder", "imagenet", "cifar100", "caltech256", "flowers102"]

SAMPLES = Path(__file__).parent / "samples"


@dataclass(frozen=True)
class ClientBatch:
    """One client's images, which only the client and the scoring of an attack may use.

    Args:
        images: (B, 3, H, W) float32 in [0, 1]: what the client trains on, the subject on black.
        photographs: (B, 3, H, W) float32 in [0, 1]: the same with their background.
        masks: (B, 1, H, W) bool: true on the subject.
        labels: (B,) int64: class indices; or other targets (B, ...) float32, see `data.targets`.
        names: path below the data root, or index in the data set, of each image, for reports.
    """

    images: Tensor
    photographs: Tensor
    masks: Tensor
    labels: Tensor
    names: list[str]


@dataclass(frozen=True)
class DataProtocol:
    """What the protocol of the training says of the clients' data, so that the server knows it too.

    Args:
        batch_size: nominal number of images in a client's batch; a client may have more or fewer.
        subjects: whether clients cut the subject out on black; None: not announced.
        local_images: number of images that a client holds, of which a round uses a part; None: as many as its batch.
        first_client: number of the first of these clients among all clients of the run, where a run attacks them in
            waves; random numbers of a client follow from its number.
    """

    batch_size: int
    subjects: bool | None = None
    local_images: int | None = None
    first_client: int = 0


@dataclass(frozen=True)
class ImageSource:
    """A lazy list of labelled images, in an order that does not depend on the file system.

    Args:
        origin: description of the source, for messages.
        names: one for each image.
        fetch: decodes the image of an index, and returns it with its label; may raise any exception on a damaged file.
        ignored: files among the images that are not images.
    """

    origin: str
    names: Sequence[str]
    fetch: Callable[[int], tuple[Image.Image, int]]
    ignored: Sequence[str] = ()

    def __len__(self) -> int:
        """Number of images, readable or not."""
        return len(self.names)

    def read(self, index: int, size: int) -> tuple[Tensor, int]:
        """Decode one image.

        Args:
            index: position in the list.
            size: side of the square, in pixels.

        Returns:
            The square image, (3, size, size) uint8, and its label.

        Raises:
            ValueError: the file is damaged or not an image; the message says why.
        """
        try:
            image, label = self.fetch(index)
            return square(image, size), int(label)
        except Exception as error:  # decoders raise many types on damaged files: struct.error, SyntaxError, OSError...
            raise ValueError(printable(" ".join(str(error).split()) or type(error).__name__, 300)) from error


@dataclass(frozen=True)
class Selection:
    """Images that were selected and could be read.

    Args:
        images: (N, 3, size, size) uint8.
        labels: (N,) int64.
        names: name of each image.
        used: number of indices that were used, of readable images or not.
        skipped: name and reason for each image that could not be read.
    """

    images: Tensor
    labels: Tensor
    names: list[str]
    used: int
    skipped: list[tuple[str, str]]


def select(source: ImageSource, order: Iterable[int], count: int, size: int) -> Selection:
    """Read the first `count` readable images in the given order; fewer if there are not enough.

    Args:
        source: where the images come from.
        order: indices into the source; an unreadable image is replaced by the next.
        count: number of images.
        size: side of the square, in pixels.
    """
    images: list[Tensor] = []
    labels: list[int] = []
    names: list[str] = []
    skipped: list[tuple[str, str]] = []
    used = 0
    for index in order:
        if len(images) == count:
            break
        used += 1
        try:
            image, label = source.read(index, size)
        except ValueError as error:
            skipped.append((source.names[index], str(error)))
            continue
        images.append(image)
        labels.append(label)
        names.append(source.names[index])
    stacked = torch.stack(images) if images else torch.empty(0, 3, size, size, dtype=torch.uint8)
    return Selection(stacked, torch.tensor(labels, dtype=torch.int64), names, used, skipped)


def square(image: Image.Image, size: int) -> Tensor:
    """Convert to upright RGB, resize the short side to `size` (antialiased), and crop the center.

    Args:
        image: decoded image of any mode, see `to_rgb`.
        size: side of the result, in pixels.

    Returns:
        (3, size, size) uint8.
    """
    # fit() crops the center square first, so that an extremely long image does not become huge
    fitted = ImageOps.fit(to_rgb(image), (size, size), method=Image.Resampling.BILINEAR)
    return torch.Tensor(transforms.pil_to_tensor(fitted)).to(torch.uint8)


def open_source(
    source: Source, root: Path | None, num_classes: int | None = None, download: bool = False
) -> ImageSource:
    """Open a source of images.

    Args:
        source: "samples" reads the bundled photographs; "folder" and "imagenet" read an image folder ("imagenet" also
            finds it in `root/val` or `root/train`, where torchvision unpacks it); the others are torchvision's data
            sets (the training split if there is one).
        root: folder of the data, also for downloads; not needed for "samples".
        num_classes: number of classes of a folder without class subfolders, see `open_folder`.
        download: whether to download CIFAR-100, Caltech-256 or Flowers-102 if it is missing.

    Raises:
        UserError: the data are missing, or hold no images.
    """
    if source == "samples":
        return open_folder(SAMPLES)
    if root is None:
        raise UserError(f"no data root for the source {source}: give --data.root DIR or set LIGHTNING_RECON_DATA")
    if source in ("folder", "imagenet"):
        return open_folder(_imagenet_folder(root) if source == "imagenet" else root, num_classes)
    data = opened(source, root, download)
    return ImageSource(f"{source} in {root}", [str(index) for index in range(len(data))], data.__getitem__)


def open_folder(root: Path, num_classes: int | None = None) -> ImageSource:
    """Open an image folder, in the order of sorted paths; `scan` says which files are ignored.

    With a subfolder for each class (torchvision's ImageFolder layout, images at any depth below), the label is the
    position of the class among the sorted folder names. Without subfolders, the label is the position of the image
    among the sorted file names, modulo `num_classes` (1000 by default).

    Args:
        root: the folder.
        num_classes: number of labels of a folder without class subfolders.

    Raises:
        UserError: the folder does not exist or holds no image.
    """
    if not root.is_dir():
        raise UserError(f"data root {root} does not exist or is not a folder: set --data.root to a folder of images")
    try:
        found = scan(root)
    except OSError as error:
        raise UserError(f"data root {root} cannot be listed ({error.strerror}): choose another --data.root") from error
    loose = [path for path in found.loose if is_image(path)]
    entries = [(path, label) for path, label in found.files if is_image(path)]
    ignored = found.ignored
    if entries:
        ignored += [_name(path, root) for path, _ in found.files if not is_image(path)]
        ignored += [_name(path, root) for path in loose]
    else:
        entries = [(path, position % (num_classes or 1000)) for position, path in enumerate(loose)]
        ignored += [_name(path, root) for path in found.loose if not is_image(path)]
    if not entries:
        endings = " ".join(IMG_EXTENSIONS)
        raise UserError(f"data root {root} holds no images ({endings}): put them into it, or into class subfolders")
    names = [_name(path, root) for path, _ in entries]
    return ImageSource(str(root), names, partial(_open_file, entries), [printable(name) for name in ignored])


def _name(path: Path, root: Path) -> str:
    """The path below the root for messages, with bytes that are not UTF-8 and control characters escaped."""
    return printable(path.relative_to(root).as_posix())


def _open_file(entries: Sequence[tuple[Path, int]], index: int) -> tuple[Image.Image, int]:
    path, label = entries[index]
    return open_image(path), label


def _imagenet_folder(root: Path) -> Path:
    """The folder of ImageNet's class folders: `root/val`, `root/train` or `root` itself."""
    for split in ("val", "train"):
        if (root / split).is_dir():
            return root / split
    for archive in root.glob("ILSVRC2012_img_*.tar"):
        split = archive.stem.rsplit("_", 1)[1]
        unpack = f"from torchvision.datasets import ImageNet; ImageNet({str(root)!r}, split={split!r})"
        raise UserError(f'{archive} is not unpacked yet: run python -c "{unpack}"')
    return root
