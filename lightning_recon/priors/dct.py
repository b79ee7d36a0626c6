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


def cosine(images: Tensor) -> Tensor:
    """Orthonormal 2-D cosine transform of the last two dimensions."""
    rows, columns = (cosine_matrix(n).to(images) for n in images.shape[-2:])
    return rows @ images @ columns.T


def inverse_cosine(coefficients: Tensor) -> Tensor:
    """Invert `cosine`."""
    rows, columns = (cosine_matrix(n).to(coefficients) for n in coefficients.shape[-2:])
    return rows.T @ coefficients @ columns


def analyse(images: Tensor, mean: Tensor, colour: Tensor) -> Tensor:
    """Centre images and express them in decorrelated coefficients.

    Args:
        images: Shape (..., 3, H, W), values in [0, 1].
        mean: Mean image, shape (3, H, W).
        colour: Orthonormal colour axes, shape (3, 3).

    Returns:
        Coefficients, shape (..., 3, H, W); an isometry of `images - mean`.
    """
    return cosine(torch.einsum("dc,...chw->...dhw", colour.to(images), images - mean.to(images)))


def synthesise(coefficients: Tensor, mean: Tensor, colour: Tensor) -> Tensor:
    """Invert `analyse`: coefficients of shape (..., 3, H, W) to images of the same shape, not clamped."""
    centred = inverse_cosine(coefficients)
    return torch.einsum("dc,...dhw->...chw", colour.to(coefficients), centred) + mean.to(coefficients)


class Transform(Protocol):
    """An invertible map between images (..., 3, H, W) and coefficients of the same shape that keeps distances."""

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
        mean: Mean image, shape (3, H, W) or one for each image.
        colour: Orthonormal colour axes, shape (3, 3).
    """

    mean: Tensor
    colour: Tensor

    def analyse(self, images: Tensor) -> Tensor:
        """Coefficients of images."""
        return analyse(images, self.mean, self.colour)

    def synthesise(self, coefficients: Tensor) -> Tensor:
        """Images of coefficients, not clamped."""
        return synthesise(coefficients, self.mean, self.colour)

    def to(self, device: torch.device) -> "CosineTransform":
        """The same on a device, where using it copies nothing."""
        return CosineTransform(self.mean.to(device), self.colour.to(device))


class PixelTransform:
    """The identity: the coefficients are the pixels."""

    def analyse(self, images: Tensor) -> Tensor:
        """The images themselves."""
        return images

    def synthesise(self, coefficients: Tensor) -> Tensor:
        """The coefficients themselves."""
        return coefficients
