# SPDX-License-Identifier: Apache-2.0
"""Where photographs come from: a lazy, ordered list of labelled images, cut square and read one at a time.

Every source (bundled samples, image folders, torchvision's data sets) becomes `Pictures`. Nothing is decoded before
it is chosen, so a folder of a million images opens in seconds, and a damaged file costs one image, not the run.
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
from lightning_recon.data.image_files import open_picture, to_rgb
from lightning_recon.data.image_folders import is_picture, scan
from lightning_recon.errors import UserError
from lightning_recon.printable import printable

Source = Literal["samples", "folder", "imagenet", "cifar100", "caltech256", "flowers102"]

SAMPLES = Path(__file__).parent / "samples"


@dataclass(frozen=True)
class ClientBatch:
    """One client's images, which nobody but the client and the scorer may see.

    Args:
        images: (B, 3, H, W) float32 in [0, 1]: what the client trains on, the subject cut out on black.
        photographs: (B, 3, H, W) float32 in [0, 1]: before the cut-out.
        masks: (B, 1, H, W) bool: the subject.
        labels: (B,) int64: class indices.
        names: path below the data root, or index in the data set, of each image, for reports.
    """

    images: Tensor
    photographs: Tensor
    masks: Tensor
    labels: Tensor
    names: list[str]


@dataclass(frozen=True)
class Pictures:
    """A lazy list of labelled images in an order that does not depend on the file system.

    Args:
        origin: where they come from, for messages.
        names: one per image.
        fetch: decodes the image of an index and returns it with its label; may raise anything on a damaged file.
        ignored: files that lie among the images and are none.
    """

    origin: str
    names: Sequence[str]
    fetch: Callable[[int], tuple[Image.Image, int]]
    ignored: Sequence[str] = ()

    def __len__(self) -> int:
        """How many images there are, readable or not."""
        return len(self.names)

    def read(self, index: int, size: int) -> tuple[Tensor, int]:
        """Decode one image: its square of (3, size, size) uint8 and its label.

        Raises:
            ValueError: The file is damaged or no image; the message says why.
        """
        try:
            picture, label = self.fetch(index)
            return square(picture, size), int(label)
        except Exception as error:  # decoders raise many types on damaged files: struct.error, SyntaxError, OSError...
            raise ValueError(printable(" ".join(str(error).split()) or type(error).__name__, 300)) from error


@dataclass(frozen=True)
class Selection:
    """Images that were chosen and could be read.

    Args:
        images: (N, 3, size, size) uint8.
        labels: (N,) int64.
        names: N names.
        used: how many entries of the order were consumed, readable or not.
        skipped: name and reason of each image that could not be read.
    """

    images: Tensor
    labels: Tensor
    names: list[str]
    used: int
    skipped: list[tuple[str, str]]


def select(pictures: Pictures, order: Iterable[int], count: int, size: int) -> Selection:
    """The first `count` readable images in the given order; fewer if there are not so many.

    Args:
        pictures: the source.
        order: indices into it; an image that cannot be read is replaced by the next.
        count: how many are wanted.
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
            image, label = pictures.read(index, size)
        except ValueError as error:
            skipped.append((pictures.names[index], str(error)))
            continue
        images.append(image)
        labels.append(label)
        names.append(pictures.names[index])
    stacked = torch.stack(images) if images else torch.empty(0, 3, size, size, dtype=torch.uint8)
    return Selection(stacked, torch.tensor(labels, dtype=torch.int64), names, used, skipped)


def square(picture: Image.Image, size: int) -> Tensor:
    """The image upright, in RGB, its short side resized to `size` (antialiased) and its centre cropped.

    Args:
        picture: any mode; see `to_rgb` for what becomes of it.
        size: side of the result, in pixels.

    Returns:
        (3, size, size) uint8.
    """
    # fit() cuts the centre square first, so that an extremely long image cannot become huge
    fitted = ImageOps.fit(to_rgb(picture), (size, size), method=Image.Resampling.BILINEAR)
    return torch.Tensor(transforms.pil_to_tensor(fitted)).to(torch.uint8)


def open_source(source: Source, root: Path | None, num_classes: int | None = None, download: bool = False) -> Pictures:
    """Open a source of images.

    Args:
        source: which reader. "samples" reads the bundled photographs; "folder" and "imagenet" an image folder
            ("imagenet" also finds it in `root/val` or `root/train`, as torchvision unpacks it); the others are
            torchvision's data sets (the training split where there is one).
        root: where the data lie, or where to download them to; not needed for "samples".
        num_classes: only for folders without classes, see `open_folder`.
        download: let torchvision download CIFAR-100, Caltech-256 or Flowers-102.

    Raises:
        UserError: The data are not there, or hold no images.
    """
    if source == "samples":
        return open_folder(SAMPLES)
    if root is None:
        raise UserError(f"no data root for the source {source}: give --data.root DIR or set LIGHTNING_RECON_DATA")
    if source in ("folder", "imagenet"):
        return open_folder(_imagenet_folder(root) if source == "imagenet" else root, num_classes)
    data = opened(source, root, download)
    return Pictures(f"{source} in {root}", [str(index) for index in range(len(data))], data.__getitem__)


def open_folder(root: Path, num_classes: int | None = None) -> Pictures:
    """Images of a folder, in the order of their sorted paths; see `scan` for what is left out.

    With a folder per class (torchvision's ImageFolder layout, any depth below it), the label is the position of the
    class among the sorted folder names. Without class folders, the label is the position of the image among the
    sorted file names, modulo `num_classes` (1000 when that is not given).

    Args:
        root: the folder.
        num_classes: number of labels of a folder without classes.

    Raises:
        UserError: The folder does not exist or holds no image.
    """
    if not root.is_dir():
        raise UserError(f"data root {root} does not exist or is no folder: give the folder of pictures by --data.root")
    try:
        found = scan(root)
    except OSError as error:
        raise UserError(f"data root {root} cannot be listed ({error.strerror}): choose another --data.root") from error
    loose = [path for path in found.loose if is_picture(path)]
    entries = [(path, label) for path, label in found.files if is_picture(path)]
    ignored = found.left_out
    if entries:
        ignored += [_name(path, root) for path, _ in found.files if not is_picture(path)]
        ignored += [_name(path, root) for path in loose]
    else:
        entries = [(path, position % (num_classes or 1000)) for position, path in enumerate(loose)]
        ignored += [_name(path, root) for path in found.loose if not is_picture(path)]
    if not entries:
        endings = " ".join(IMG_EXTENSIONS)
        raise UserError(f"data root {root} holds no pictures ({endings}): put them in it or in a subfolder per class")
    names = [_name(path, root) for path, _ in entries]
    return Pictures(str(root), names, partial(_open_file, entries), [printable(name) for name in ignored])


def _name(path: Path, root: Path) -> str:
    """For people: bytes that are not UTF-8, and what would confuse a terminal, are written out."""
    return printable(path.relative_to(root).as_posix())


def _open_file(entries: Sequence[tuple[Path, int]], index: int) -> tuple[Image.Image, int]:
    path, label = entries[index]
    return open_picture(path), label


def _imagenet_folder(root: Path) -> Path:
    """The folder that holds ImageNet's class folders: `root/val`, `root/train` or `root` itself."""
    for split in ("val", "train"):
        if (root / split).is_dir():
            return root / split
    for archive in root.glob("ILSVRC2012_img_*.tar"):
        split = archive.stem.rsplit("_", 1)[1]
        unpack = f"from torchvision.datasets import ImageNet; ImageNet({str(root)!r}, split={split!r})"
        raise UserError(f'{archive} is not unpacked yet: run python -c "{unpack}"')
    return root
