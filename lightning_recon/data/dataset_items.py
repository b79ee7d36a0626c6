# SPDX-License-Identifier: Apache-2.0
"""Items of any data set class: its images as PIL images, its labels as numbers of classes."""

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from lightning_recon.data.sources import ImageSource
from lightning_recon.errors import UserError

# Attributes in which data sets keep all labels, which are then known without decoding an image.
_LABELS = ("targets", "labels", "_labels")


def as_image(value: object) -> Image.Image:
    """An image of a data set as PIL image.

    Raises:
        TypeError: it is no image.
        ValueError: its values are not in [0, 1].
    """
    if isinstance(value, Image.Image):
        return value
    if isinstance(value, Tensor):
        image: Image.Image = transforms.to_pil_image(_in_8_bits(value) if value.is_floating_point() else value)
        return image
    if isinstance(value, np.ndarray) and value.ndim in (2, 3):
        if np.issubdtype(value.dtype, np.floating):
            value = _in_8_bits(torch.from_numpy(value)).numpy()
        if value.dtype == np.uint8:
            return Image.fromarray(value.squeeze())
    raise TypeError(f"an item holds {type(value).__name__}, not an image")


def _in_8_bits(values: Tensor) -> Tensor:
    """Values in [0, 1] as integers: torchvision would cut fractions off."""
    if not bool(((values >= 0) & (values <= 1)).all()):
        raise ValueError("its values are not in [0, 1]: leave normalization out of its transform")
    return (values * 255).round().to(torch.uint8)


def label_of(value: object) -> int:
    """A label of a data set: a number, or an array or tensor of one number.

    Raises:
        ValueError: it is something else.
    """
    found = np.asarray(value).reshape(-1)
    if found.size != 1 or not np.issubdtype(found.dtype, np.integer):
        raise ValueError("its label is not one class: choose another target by --data.options")
    return int(found[0])


def labels_of(data: Any, source: ImageSource) -> list[int]:  # noqa: ANN401 - a data set of any class
    """Labels of all images: as the data set keeps them, or by decoding every image.

    Raises:
        UserError: a label is not one class, or an image cannot be decoded.
    """
    try:
        for name in _LABELS:
            kept = getattr(data, name, None)
            if kept is not None and len(kept) == len(source):
                return [label_of(one) for one in kept]
        return [source.fetch(index)[1] for index in range(len(source))]
    except Exception as error:  # data sets raise any type on damaged files
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(
            f"the labels of {source.origin}, by which --data.alpha distributes the images, cannot be read: {reason}"
        ) from error
