# SPDX-License-Identifier: Apache-2.0
"""How large a quantised coefficient is expected to be, from those that are decoded before it, in exact integers.

The decoder knows all lower frequencies of all blocks, and the colour axes before. A weighted sum of their magnitudes
predicts the magnitude; the weights of neighbours are ratios of what public photographs hold at the two frequencies. The
encoder has all coefficients at once, so it finds all predictions at once.

Source: context modelling of transform coefficients, after Wu, "Context selection and quantization for lossless image
coding" (1995) and the coders of wavelet coefficients that followed.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_recon.structure.coding.block_transform import SIDE, UNIT

NDArray = np.typing.NDArray[np.float64]

# Contexts, the logarithms (base 2) of the magnitudes that the lowest and the highest one stand for.
LEVELS, _LOWEST, _HIGHEST = 32, -5.0, 8.0
# Predictions are in units of 1 / `_FINE`; magnitudes that predict are cut off here, as they hardly predict better.
_FINE, _LARGEST = 256, 2047
# Root mean square of the coefficients of public photographs at these frequencies, in cycles a block and a half, by
# colour axis, for 8-bit pixels: from the bundled statistics, between 64 and 224 pixels an image side.
_FREQUENCIES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
_SPECTRUM = (
    (2050.0, 1000.0, 460.0, 208.0, 91.0, 34.5, 10.3),
    (685.0, 330.0, 140.0, 58.0, 22.0, 6.3, 1.5),
    (245.0, 120.0, 56.0, 25.0, 10.4, 3.4, 0.9),
)
# Weights of relative magnitudes by colour axis: what is usual; the two next lower frequencies; the three after these;
# the former in the four neighbouring blocks; the same coefficient of the first axis, and of the second.
_WEIGHTS = (
    (0.14, 0.38, 0.31, 0.28, 0.0, 0.0),
    (0.02, 0.33, 0.20, 0.40, 0.19, 0.0),
    (0.02, 0.24, 0.16, 0.40, 0.03, 0.42),
)
# Lower frequencies that predict, as steps down and across, and which of the weights is theirs.
_LOWER = ((1, 0, 1), (0, 1, 1), (1, 1, 2), (2, 0, 2), (0, 2, 2))


class Contexts(nn.Module):
    """Predicts magnitudes in images of one size; all constants are integers."""

    usual: Tensor
    usual_plane: Tensor
    within: Tensor
    axes: Tensor
    beside_rows: Tensor
    beside_columns: Tensor
    plane: Tensor
    levels: Tensor
    order: Tensor

    def __init__(self, height: int, width: int) -> None:
        """Make the constants.

        Args:
            height: Of the images, in blocks.
            width: Likewise.
        """
        super().__init__()
        place = np.arange(SIDE)
        spectrum = _spectrum(np.hypot(place[:, None], place))
        plane_spectrum = _spectrum(np.hypot(np.arange(height)[:, None] / height, np.arange(width) / width))
        lower, usual = _weights(spectrum)
        plane, usual_plane = _weights(plane_spectrum)
        level = np.log2(np.arange(1, round(_FINE * 2**_HIGHEST) + 1) / _FINE)
        level = np.floor((level - _LOWEST) / (_HIGHEST - _LOWEST) * LEVELS).clip(0, LEVELS - 1)
        constants = {
            # Magnitudes in a pixel's units, to be divided by the step: by colour axis and frequency.
            "usual": (usual * UNIT).reshape(3, SIDE * SIDE, 1, 1),
            "usual_plane": usual_plane * UNIT,
            # Weights: of the lower frequencies of a block and of the sum over its neighbours; of the colour axes
            # before, at all frequencies alike; of each lower frequency in the plane of means.
            "within": np.concatenate([_matrix(lower), _matrix(_around(spectrum))], axis=2),
            "axes": _axes()[..., None, None, None],
            "plane": plane,
            "beside_rows": _neighbours(height) / _FINE,
            "beside_columns": _neighbours(width) / _FINE,
            # The context of each prediction; and the order of coding, as places in the flattened coefficients.
            "levels": np.append(0, level) / _FINE,
            "order": _order(height, width) / _FINE,
        }
        for name, values in constants.items():
            # Integers, which no cast of the module to another precision changes.
            self.register_buffer(name, torch.from_numpy(np.round(values * _FINE)).long(), persistent=False)

    def of(self, quantised: Tensor, size: Tensor) -> Tensor:
        """The context of every coefficient.

        Args:
            quantised: Shape (B, 3, 64, h, w), float64, integers.
            size: Each image's quantiser step, shape (B,), in the units of coefficients.

        Returns:
            Shape (B, 3, 64, h, w), int64, in [0, LEVELS).
        """
        blocks, size = quantised.abs().clamp(max=_LARGEST), size.double().view(-1, 1, 1, 1)
        beside = blocks @ self.beside_columns.double() + self.beside_rows.double() @ blocks
        # The blocks' means are no frequency of the blocks: their weights are 0.
        found = self.within.double() @ torch.cat([blocks, beside], dim=2).flatten(3)
        axes = self.axes.double()
        found = found.view(blocks.shape) + axes[0] * blocks[:, :1] + axes[1] * blocks[:, 1:2]
        found = found + (self.usual.double() / size[..., None]).floor()
        means, plane = blocks[:, :, 0], (self.usual_plane.double() / size).floor()
        for weight, (down, across, _) in zip(self.plane, _LOWER, strict=True):
            plane = plane + weight * F.pad(means, (across, 0, down, 0))[..., : means.shape[-2], : means.shape[-1]]
        plane = plane + axes[0, ..., 0] * means[:, :1] + axes[1, ..., 0] * means[:, 1:2]
        found = torch.cat([plane[:, :, None], found[:, :, 1:]], dim=2)
        places = found.clamp(max=len(self.levels) - 1).long()
        return self.levels.index_select(0, places.flatten()).view(places.shape)

    def groups(self) -> list[Tensor]:
        """Parts of `order` whose contexts depend on the parts before them alone."""
        height, width = self.plane.shape[-2:]
        plane = np.bincount(np.add.outer(np.arange(height), np.arange(width)).flatten())
        wave = np.bincount(np.add.outer(np.arange(SIDE), np.arange(SIDE)).flatten())[1:] * height * width
        return list(torch.split(self.order, [*plane, *plane, *plane, *wave, *wave, *wave]))


def expected(level: int) -> float:
    """The magnitude that a context stands for, the geometric mean of its ends."""
    return float(2 ** (_LOWEST + (level + 0.5) * (_HIGHEST - _LOWEST) / LEVELS))


def _spectrum(frequency: NDArray) -> NDArray:
    """What is usual at frequencies, by colour axis: a power law between the known ones, and on beyond them."""
    known, place = np.log(_FREQUENCIES), np.log(frequency.clip(_FREQUENCIES[0] / 8))
    found = []
    for usual in np.log(_SPECTRUM):
        below = usual[0] + (usual[1] - usual[0]) / (known[1] - known[0]) * (place - known[0])
        found.append(np.where(place < known[0], below, np.interp(place, known, usual)))
    spectrum: NDArray = np.exp(np.stack(found))
    return spectrum


def _ratio(spectrum: NDArray, down: int, across: int) -> NDArray:
    """Of what is usual at each frequency to what is at a lower one; 0 where there is none, or that is the mean."""
    height, width = spectrum.shape[1:]
    found = np.zeros_like(spectrum)
    lower = spectrum[:, : max(height - down, 0), : max(width - across, 0)]
    found[:, down:, across:] = spectrum[:, down:, across:] / lower
    found[:, down : down + 1, across : across + 1] = 0
    return found


def _weights(spectrum: NDArray) -> tuple[NDArray, NDArray]:
    """Weights of the lower frequencies, shape (5, ...), and the usual magnitudes that stand in for missing ones."""
    found = np.stack([_ratio(spectrum, down, across) for down, across, _ in _LOWER])
    share = np.zeros_like(spectrum)
    for kind in (1, 2):
        members = [place for place, (_, _, group) in enumerate(_LOWER) if group == kind]
        count = (found[members] > 0).sum(axis=0)
        weight = np.array([weights[kind] for weights in _WEIGHTS])[:, None, None]
        found[members] *= weight / np.maximum(count, 1)
        share += np.where(count == 0, weight, 0)
    usual = np.array([weights[0] for weights in _WEIGHTS])[:, None, None] + share
    return found, 0.8 * usual * spectrum


def _around(spectrum: NDArray) -> NDArray:
    """Weights of the next two lower frequencies in one of four neighbouring blocks, shape (2, 3, 8, 8)."""
    found = np.stack([_ratio(spectrum, down, across) for down, across, _ in _LOWER[:2]])
    weight = np.array([weights[3] for weights in _WEIGHTS])[:, None, None]
    weighted: NDArray = found * weight / np.maximum((found > 0).sum(axis=0), 1) / 4
    return weighted


def _axes() -> NDArray:
    """Weights of the colour axes before, shape (2, 3)."""
    found = np.zeros((2, 3))
    for axis in (1, 2):
        for before in range(axis):
            found[before, axis] = _WEIGHTS[axis][4 + before] * _SPECTRUM[axis][4] / _SPECTRUM[before][4]
    return found


def _matrix(weights: NDArray) -> NDArray:
    """Weights of lower frequencies, shape (n, 3, 8, 8), as matrices over all frequencies: shape (3, 64, 64)."""
    found = np.zeros((3, SIDE, SIDE, SIDE, SIDE))
    for weight, (down, across, _) in zip(weights, _LOWER, strict=False):
        for row in range(down, SIDE):
            for column in range(across, SIDE):
                found[:, row, column, row - down, column - across] = weight[:, row, column]
    return found.reshape(3, SIDE * SIDE, SIDE * SIDE)


def _neighbours(blocks: int) -> NDArray:
    """Which blocks of a row are side by side, shape (blocks, blocks)."""
    return np.eye(blocks, k=1) + np.eye(blocks, k=-1)


def _order(rows: int, columns: int) -> np.typing.NDArray[np.int64]:
    """Means first, then the blocks' frequencies from low to high, one colour axis after the other."""
    place = np.arange(3 * SIDE * SIDE * rows * columns).reshape(3, SIDE * SIDE, rows * columns)
    diagonal = np.add.outer(np.arange(rows), np.arange(columns)).flatten()
    ordered = [place[axis, 0, np.argsort(diagonal, kind="stable")] for axis in range(3)]
    wave = np.argsort(np.add.outer(np.arange(SIDE), np.arange(SIDE)).flatten(), kind="stable")[1:]
    ordered += [place[axis, wave].flatten() for axis in range(3)]
    return np.concatenate(ordered)
