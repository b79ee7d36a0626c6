# SPDX-License-Identifier: Apache-2.0
"""A cosine transform of blocks in exact integers, so that every runtime computes the same coefficients.

All numbers are integers below 2^53 in float64, which matrix products hold exactly in whatever order they add up; and
neither autocasting nor TF32 touches float64. Quantisers divide, and IEEE division is rounded alike everywhere.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_recon.priors.dct import cosine_matrix

# Side of a block.
SIDE = 8
# Quantiser steps that there are.
STEPS = 256
# Units of a coefficient in a pixel's; of a colour axis, and of a basis function.
UNIT, _COLOUR_UNIT, _BASIS_UNIT = 2.0**10, 2.0**8, 2.0**12
# Orthonormal colour axes times `_COLOUR_UNIT`: those of the bundled public statistics, luminance first.
_COLOUR = ((148, 148, 148), (181, 0, -181), (105, -209, 105))
# The finest step, in a pixel's units, and how many steps double it.
_FINEST, _PER_OCTAVE = 0.35, 24
# Share of a step that is added to a magnitude before it is rounded down.
_ROUNDING = 0.4
# Where the coefficients of photographs lie in their cells on average, above a magnitude of 1 and above larger ones.
_CENTRES = (0.0, 0.05)


class BlockTransform(nn.Module):
    """The transform and its quantiser for images of one size."""

    colour: Tensor
    basis: Tensor
    rows: Tensor
    columns: Tensor
    steps: Tensor

    def __init__(self, height: int, width: int) -> None:
        """Make the constants, which are integers, so that no cast of a module to another precision changes them.

        Args:
            height: Of the images, at least 1; the last row is repeated until blocks fill the image.
            width: Likewise.
        """
        super().__init__()
        self.size = height, width
        self.padding = (0, -width % SIDE, 0, -height % SIDE)
        self.blocks = -(-height // SIDE), -(-width // SIDE)
        steps = UNIT * _FINEST * 2 ** (torch.arange(STEPS, dtype=torch.float64) / _PER_OCTAVE)
        constants = {
            "colour": torch.tensor(_COLOUR),
            "basis": cosine_matrix(SIDE) * _BASIS_UNIT,
            "rows": cosine_matrix(self.blocks[0]) * _BASIS_UNIT,
            "columns": cosine_matrix(self.blocks[1]) * _BASIS_UNIT,
            "steps": steps,
        }
        for name, values in constants.items():
            self.register_buffer(name, values.round().long(), persistent=False)

    def coefficients(self, images: Tensor) -> Tensor:
        """Coefficients of images.

        Args:
            images: Shape (B, 3, H, W), values in [0, 1].

        Returns:
            Shape (B, 3, 64, h, w), float64, integers: for every colour axis and frequency those of all blocks; in
            place of the blocks' means the transform of their plane.
        """
        pixels = (images * 255).round().clamp(0, 255).double() - 128
        if any(self.padding):
            pixels = F.pad(pixels, self.padding, mode="replicate")
        height, width = self.blocks
        axes = self.colour.double() @ pixels.flatten(2)
        axes = axes.reshape(-1, 3, height, SIDE, width, SIDE).permute(0, 1, 2, 4, 3, 5)
        basis = self.basis.double()
        blocks = (basis @ axes @ basis.T).flatten(-2).permute(0, 1, 4, 2, 3)
        found = _rounded(blocks, _COLOUR_UNIT * _BASIS_UNIT**2 / UNIT)
        means = _rounded(self.rows.double() @ found[:, :, 0] @ self.columns.double().T, _BASIS_UNIT**2)
        return torch.cat([means[:, :, None], found[:, :, 1:]], dim=2)

    def quantised(self, coefficients: Tensor, step: Tensor) -> Tensor:
        """Coefficients in steps, integers in float64.

        Args:
            coefficients: Shape (B, 3, 64, h, w).
            step: Which step each image takes, shape (B,), int64.
        """
        size = self.steps.index_select(0, step).double().view(-1, 1, 1, 1, 1)
        magnitude = ((coefficients.abs() + (_ROUNDING * size).floor()) / size).floor()
        return magnitude * coefficients.sign()

    def images(self, quantised: Tensor, step: int) -> Tensor:
        """Images of quantised coefficients; only the decoder needs them, so that their rounding is free.

        Args:
            quantised: Shape (B, 3, 64, h, w).
            step: Which step they were quantised with.

        Returns:
            Shape (B, 3, H, W), float64, values in [0, 1].
        """
        magnitude = quantised.abs().double()
        centre = torch.where(magnitude > 1, _CENTRES[1], _CENTRES[0]) * (magnitude > 0)
        found = (magnitude + centre) * quantised.sign() * self.steps[step] / UNIT
        rows, columns, basis = (torch.linalg.inv(one / _BASIS_UNIT) for one in (self.rows, self.columns, self.basis))
        found[:, :, 0] = rows.double() @ found[:, :, 0] @ columns.double().T
        height, width = self.blocks
        blocks = found.permute(0, 1, 3, 4, 2).reshape(-1, 3, height, width, SIDE, SIDE)
        axes = (basis.double() @ blocks @ basis.double().T).permute(0, 1, 2, 4, 3, 5)
        axes = axes.reshape(-1, 3, height * SIDE * width * SIDE)
        pixels = torch.linalg.inv(self.colour.double() / _COLOUR_UNIT) @ axes + 128
        pixels = pixels.view(-1, 3, height * SIDE, width * SIDE)[..., : self.size[0], : self.size[1]]
        images: Tensor = (pixels / 255).clamp(0, 1)
        return images


def _rounded(values: Tensor, unit: float) -> Tensor:
    """Integers in a larger unit, a power of two."""
    return (values / unit + 0.5).floor()
