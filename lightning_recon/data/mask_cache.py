# SPDX-License-Identifier: Apache-2.0
"""Cache of subject masks on disk: one process computes them, all others read them.

A mask is a one-bit PNG, named after the hash of the image and of the settings under which the mask was found. Training
and attacks only read masks.
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lightning_recon.console import counting
from lightning_recon.data.image_files import open_image
from lightning_recon.data.masks import NoMasks, SubjectMasks
from lightning_recon.display import visible
from lightning_recon.errors import UserError


def cache_folder(given: str | None) -> Path:
    """Folder of the cache: the argument, $LIGHTNING_RECON_CACHE/masks or ~/.cache/lightning_recon/masks."""
    if given:
        return Path(given).expanduser()
    return Path(os.environ.get("LIGHTNING_RECON_CACHE") or "~/.cache/lightning_recon").expanduser() / "masks"


def fill_cache(images: Iterable[Tensor], total: int, masks: SubjectMasks, folder: Path) -> int:
    """Find and store the masks that are not in the cache yet, with a progress bar.

    Args:
        images: each (C, H, W), uint8 or int32; subjects are found in what `visible` shows of them.
        total: the largest possible number of images.
        masks: how masks are found; called once, with the images whose mask is missing.
        folder: folder of the cache.

    Returns:
        Number of masks that were added.

    Raises:
        UserError: the folder cannot be written.
    """
    if isinstance(masks, NoMasks):
        return 0
    keys: list[Path] = []

    def missing(seen: set[Path], done: Callable[[int], None]) -> Iterator[Tensor]:
        for number, image in enumerate(images):
            done(number)
            path = _path(image, masks, folder)
            if path not in seen and _load(path, image) is None:
                seen.add(path)
                keys.append(path)
                yield visible(image)

    with counting("subject masks", total) as done:  # out here, so that an error closes it at once
        for count, mask in enumerate(masks(missing(set(), done))):
            _store(keys[count], mask)
    return len(keys)


def read_mask(image: Tensor, masks: SubjectMasks, folder: Path) -> Tensor:
    """The stored mask of an image, (1, H, W) bool.

    Args:
        image: (C, H, W), uint8 or int32.
        masks: how the mask was found; only the fingerprint is used.
        folder: folder of the cache.

    Raises:
        UserError: the mask is not in the cache.
    """
    if isinstance(masks, NoMasks):
        return next(masks([image]))
    mask = _load(_path(image, masks, folder), image)
    if mask is None:
        raise UserError(f"a subject mask is missing from {folder}: run prepare_data() with access to this folder first")
    return mask


def _path(image: Tensor, masks: SubjectMasks, folder: Path) -> Path:
    content = hashlib.sha256(f"{masks.fingerprint} {tuple(image.shape)} ".encode())
    content.update(image.contiguous().numpy().tobytes())
    key = content.hexdigest()
    return folder / key[:2] / f"{key}.png"


def _load(path: Path, image: Tensor) -> Tensor | None:
    """A stored mask; None if it is missing, unreadable or of another size, so that it is found again."""
    try:
        mask = torch.from_numpy(np.array(open_image(path).convert("1")))[None]
    except (OSError, SyntaxError, ValueError):
        return None
    return mask if mask.shape[1:] == image.shape[1:] else None


def _store(path: Path, mask: Tensor) -> None:
    """Write a mask atomically: beside its target, then renamed."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask[0].numpy().astype(np.uint8) * 255).convert("1").save(partial, format="PNG")
        os.replace(partial, path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        message = f"cannot write to the mask cache {path.parent} ({error}): choose another --data.mask_cache"
        raise UserError(message) from error
