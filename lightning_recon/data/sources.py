# SPDX-License-Identifier: Apache-2.0
"""Sources of labelled images: bundled images, image folders, and data sets of torchvision.

Every source is an `ImageSource`, a lazy list. An image is decoded only when it is selected, so that a folder of a
million images opens in seconds, and a damaged file does not end the run.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from PIL import Image
from torch import Tensor

from lightning_recon.data.array_files import (
    ARRAY_EXTENSIONS,
    Numbers,
    check_packages,
    extension_of,
    read_deep,
    read_numbers,
    read_tiff,
    slices_of,
)
from lightning_recon.data.download import opened
from lightning_recon.data.fitting import fitted
from lightning_recon.data.image_files import open_image, orientation_of
from lightning_recon.data.image_folders import EXTENSIONS, is_image, scan
from lightning_recon.errors import UserError
from lightning_recon.image_format import ImageFormat
from lightning_recon.printable import printable

Source = Literal["samples", "samples_grey16", "folder", "imagenet", "cifar100", "caltech256", "flowers102"]

# After so many images that cannot be read for the same reason, and none that can, the others are not tried.
_HOPELESS = 20
SAMPLES = Path(__file__).parent / "samples"
SAMPLES_GREY16 = Path(__file__).parent / "samples_grey16"


@dataclass(frozen=True)
class ClientBatch:
    """One client's images, which only the client and the scoring of an attack may use.

    Args:
        images: (B, C, H, W) float32 in [0, 1]: what the client trains on, the subject on black.
        photographs: (B, C, H, W) float32 in [0, 1]: the same with their background.
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
        bit_depth: bits of a value of an image.
    """

    batch_size: int
    subjects: bool | None = None
    local_images: int | None = None
    first_client: int = 0
    bit_depth: int = 8


@dataclass(frozen=True)
class ImageSource:
    """A lazy list of labelled images, in an order that does not depend on the file system.

    Args:
        origin: description of the source, for messages.
        names: one for each image.
        fetch: decodes the image of an index, and returns it with its label; may raise any exception on a damaged file.
        ignored: files among the images that are not images.
        value_range: numbers that mean 0 and 1 in images of more than 8 bits, see `fitted`.
    """

    origin: str
    names: Sequence[str]
    fetch: Callable[[int], tuple[Image.Image | Numbers, int]]
    ignored: Sequence[str] = ()
    value_range: tuple[float, float] | None = None

    def __len__(self) -> int:
        """Number of images, readable or not."""
        return len(self.names)

    def read(self, index: int, image_format: ImageFormat) -> tuple[Tensor, int]:
        """Decode one image.

        Args:
            index: position in the list.
            image_format: the format to which it is converted, see `fitted`.

        Returns:
            The image, (C, H, W), uint8, or int32 for more than 8 bits, and its label.

        Raises:
            ValueError: the file is damaged or not an image; the message says why.
        """
        try:
            image, label = self.fetch(index)
            return fitted(image, image_format, self.value_range), int(label)
        except Exception as error:  # decoders raise many types on damaged files: struct.error, SyntaxError, OSError...
            raise ValueError(printable(" ".join(str(error).split()) or type(error).__name__, 300)) from error


@dataclass(frozen=True)
class Selection:
    """Images that were selected and could be read.

    Args:
        images: (N, C, H, W), uint8, or int32 for more than 8 bits.
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


def select(source: ImageSource, order: Iterable[int], count: int, image_format: ImageFormat) -> Selection:
    """Read the first `count` readable images in the given order; fewer if there are not enough.

    Args:
        source: where the images come from.
        order: indices into the source; an unreadable image is replaced by the next.
        count: number of images.
        image_format: the format to which they are converted.

    Raises:
        UserError: none of the first images can be used, all of them for the same reason.
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
            image, label = source.read(index, image_format)
        except ValueError as error:
            skipped.append((source.names[index], str(error)))
            if not images and len(skipped) == _HOPELESS and len({reason for _, reason in skipped}) == 1:
                raise UserError(
                    f"{source.origin}: none of the first {_HOPELESS} images can be used: {error}"
                ) from error
            continue
        images.append(image)
        labels.append(label)
        names.append(source.names[index])
    stacked = torch.stack(images) if images else torch.empty(0, *image_format.shape, dtype=image_format.dtype)
    return Selection(stacked, torch.tensor(labels, dtype=torch.int64), names, used, skipped)


def open_source(
    source: Source,
    root: Path | None,
    num_classes: int | None = None,
    download: bool = False,
    value_range: tuple[float, float] | None = None,
    deep: bool = False,
) -> ImageSource:
    """Open a source of images.

    Args:
        source: "samples" reads the bundled photographs, "samples_grey16" the bundled grey images of 16 bits; "folder"
            and "imagenet" read an image folder ("imagenet" also finds it in `root/val` or `root/train`, where
            torchvision unpacks it); the others are torchvision's data sets (the training split if there is one).
        root: folder of the data, also for downloads; not needed for bundled images.
        num_classes: number of classes of a folder without class subfolders, see `open_folder`.
        download: whether to download CIFAR-100, Caltech-256 or Flowers-102 if it is missing.
        value_range: numbers that mean 0 and 1 in images of more than 8 bits, see `fitted`.
        deep: whether all bits of files with more than 8 bits a channel are read, see `open_folder`.

    Raises:
        UserError: the data are missing, or hold no images.
    """
    if source == "samples":
        return open_folder(SAMPLES)
    if source == "samples_grey16":
        return open_folder(SAMPLES_GREY16, value_range=value_range, deep=deep)
    if root is None:
        raise UserError(f"no data root for the source {source}: give --data.root DIR or set LIGHTNING_RECON_DATA")
    if source in ("folder", "imagenet"):
        return open_folder(_imagenet_folder(root) if source == "imagenet" else root, num_classes, value_range, deep)
    data = opened(source, root, download)
    return ImageSource(f"{source} in {root}", [str(index) for index in range(len(data))], data.__getitem__)


def open_folder(
    root: Path,
    num_classes: int | None = None,
    value_range: tuple[float, float] | None = None,
    deep: bool = False,
    gallery: bool = False,
) -> ImageSource:
    """Open an image folder, in the order of sorted paths; `scan` says which files are ignored.

    Files of numbers (DICOM, NIfTI, NumPy) are read where a folder holds no other images.

    With a subfolder for each class (torchvision's ImageFolder layout, images at any depth below), the label is the
    position of the class among the sorted folder names. Without subfolders, the label is the position of the image
    among the sorted file names, modulo `num_classes` (1000 by default).

    Args:
        root: the folder.
        num_classes: number of labels of a folder without class subfolders.
        value_range: numbers that mean 0 and 1 in images of more than 8 bits, see `fitted`.
        deep: whether all bits and channels of files are read; otherwise Pillow reduces colours of 16 bits to 8.
        gallery: whether it was given as --data.gallery, for messages; otherwise as --data.root.

    Raises:
        UserError: the folder does not exist or holds no image.
    """
    what, flag = ("gallery", "--data.gallery") if gallery else ("data root", "--data.root")
    if not root.is_dir():
        raise UserError(f"{what} {root} does not exist or is not a folder: set {flag} to a folder of images")
    try:
        found = scan(root)
    except OSError as error:
        raise UserError(f"{what} {root} cannot be listed ({error.strerror}): choose another {flag}") from error
    everything = [*found.loose, *(path for path, _ in found.files)]
    wanted: Callable[[Path], object] = is_image if any(map(is_image, everything)) else extension_of
    loose = [path for path in found.loose if wanted(path)]
    entries = [(path, label) for path, label in found.files if wanted(path)]
    ignored = found.ignored
    if entries:
        ignored += [_name(path, root) for path, _ in found.files if not wanted(path)]
        ignored += [_name(path, root) for path in loose]
    else:
        entries = [(path, position % (num_classes or 1000)) for position, path in enumerate(loose)]
        ignored += [_name(path, root) for path in found.loose if not wanted(path)]
    if not entries:
        endings = " ".join([*EXTENSIONS, *ARRAY_EXTENSIONS])
        raise UserError(f"{what} {root} holds no images ({endings}): put them into it, or into class subfolders")
    shown = [printable(name) for name in ignored]
    if wanted is is_image:
        names = [_name(path, root) for path, _ in entries]
        return ImageSource(str(root), names, partial(_open_file, entries, deep), shown, value_range)
    check_packages({ending for path, _ in entries if (ending := extension_of(path))})
    names, parts = list[str](), list[tuple[Path, int, int]]()
    for path, label in entries:
        count = slices_of(path)
        names += [_name(path, root) + (f"#{part}" if count > 1 else "") for part in range(count)]
        parts += [(path, label, part) for part in range(count)]
    return ImageSource(str(root), names, partial(_read_part, parts), shown, value_range)


def _name(path: Path, root: Path) -> str:
    """The path below the root for messages, with bytes that are not UTF-8 and control characters escaped."""
    return printable(path.relative_to(root).as_posix())


def _open_file(entries: Sequence[tuple[Path, int]], deep: bool, index: int) -> tuple[Image.Image | Numbers, int]:
    path, label = entries[index]
    if not deep:
        return open_image(path), label
    try:
        header = open_image(path, decode=False)
        numbers = read_deep(path, header)
    except Exception:
        if path.suffix.lower() not in (".tif", ".tiff"):
            raise
        return read_tiff(path), label
    return open_image(path) if numbers is None else replace(numbers, turn=orientation_of(header)), label


def _read_part(entries: Sequence[tuple[Path, int, int]], index: int) -> tuple[Numbers, int]:
    path, label, part = entries[index]
    return read_numbers(path, part), label


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
