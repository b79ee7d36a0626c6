# SPDX-License-Identifier: Apache-2.0
"""Isometries between images and coefficients: decorrelated colour axes with a 2-D cosine transform, or the pixels."""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor


@lru_cache
def cosine_matrix(size: int) -> Tensor:
    """Orthonormal DCT-II matrix, shape (size, size), float64: coefficients = matrix @ samples."""
    index = torch.arange(size, dtype=torch.float64)
    matrix = torch.cos(math.pi / size * (index[None, :] + 0.5) * index[:, None]) * math.sqrt(2 / size)
    matrix[0] /= math.sqrt(2)
    return matrix


Matrices = tuple[Tensor, Tensor]  # `cosine_matrix` of the height and of the width


def cosine(images: Tensor, matrices: Matrices | None = None) -> Tensor:
    """Orthonormal 2-D cosine transform of the last two dimensions, with matrices that were made before, if any."""
    rows, columns = _like(images, matrices)
    return rows @ images @ columns.T


def inverse_cosine(coefficients: Tensor, matrices: Matrices | None = None) -> Tensor:
    """Invert `cosine`."""
    rows, columns = _like(coefficients, matrices)
    return rows.T @ coefficients @ columns


def _like(images: Tensor, matrices: Matrices | None) -> Matrices:
    if matrices is not None and matrices[0].dtype == images.dtype:
        return matrices
    rows, columns = (cosine_matrix(n).to(images) for n in images.shape[-2:])
    return rows, columns


def analyse(images: Tensor, mean: Tensor, colour: Tensor, matrices: Matrices | None = None) -> Tensor:
    """Centre images and express them in decorrelated coefficients.

    Args:
        images: Shape (..., C, H, W), values in [0, 1].
        mean: Mean image, shape (C, H, W).
        colour: Orthonormal colour axes, shape (C, C).
        matrices: Of the cosine transform, on the device of the images; None: they are made.

    Returns:
        Coefficients, shape (..., C, H, W); an isometry of `images - mean`.
    """
    return cosine(torch.einsum("dc,...chw->...dhw", colour.to(images), images - mean.to(images)), matrices)


def synthesise(coefficients: Tensor, mean: Tensor, colour: Tensor, matrices: Matrices | None = None) -> Tensor:
    """Invert `analyse`: coefficients of shape (..., C, H, W) to images of the same shape, not clamped."""
    centred = inverse_cosine(coefficients, matrices)
    return torch.einsum("dc,...dhw->...chw", colour.to(coefficients), centred) + mean.to(coefficients)


class Transform(Protocol):
    """An invertible map between images (..., C, H, W) and coefficients of the same shape that keeps distances."""

    def analyse(self, images: Tensor) -> Tensor:
        """Coefficients of images."""
        ...

    def synthesise(self, coefficients: Tensor) -> Tensor:
        """Images of coefficients, not clamped."""
        ...


@dataclass(frozen=True)
class CosineTransform:
    """`analyse` and `synthesise` with a given mean image and colour axes: nearly decorrelated for photographs.

    Args:
        mean: Mean image, shape (C, H, W) or one for each image.
        colour: Orthonormal colour axes, shape (C, C).
        matrices: Of the cosine transform, on the device and of the dtype of `mean`; None: every use makes them.
    """

    mean: Tensor
    colour: Tensor
    matrices: Matrices | None = None

    def analyse(self, images: Tensor) -> Tensor:
        """Coefficients of images."""
        return analyse(images, self.mean, self.colour, self.matrices)

    def synthesise(self, coefficients: Tensor) -> Tensor:
        """Images of coefficients, not clamped."""
        return synthesise(coefficients, self.mean, self.colour, self.matrices)

    def to(self, device: torch.device) -> "CosineTransform":
        """The same on a device, where using it copies nothing."""
        mean = self.mean.to(device)
        rows, columns = (cosine_matrix(n).to(mean) for n in mean.shape[-2:])
        return CosineTransform(mean, self.colour.to(device), (rows, columns))


class PixelTransform:
    """The identity: the coefficients are the pixels."""

    def analyse(self, images: Tensor) -> Tensor:
        """The images themselves."""
        return images

    def synthesise(self, coefficients: Tensor) -> Tensor:
        """The coefficients themselves."""
        return coefficients
