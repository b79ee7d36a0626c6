# SPDX-License-Identifier: Apache-2.0
"""Clipping: scale gradients down until a norm of them keeps within a bound."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lightning_recon.errors import UserError

CHUNK = 1 << 20  # elements processed at a time, which bounds the temporary memory

NormOrder = Literal[1, 2]


@dataclass(frozen=True)
class Clip:
    """A bound on the norm of a gradient.

    Args:
        max_grad_norm: clipping norm C, above 0; None for no clipping.
        per_layer: whether each of the L tensors keeps within its share of C on its own: C/sqrt(L) of the Euclidean
            norm, C/L of the L1 norm.
        order: the norm that is bounded: 2, Euclidean, or 1, the sum of absolute values; over all parameters.
    """

    max_grad_norm: float | None
    per_layer: bool = False
    order: NormOrder = 2

    def norm(self, norms: Iterable[float]) -> float:
        """Norm of several tensors together, from the norm of each."""
        return math.hypot(*norms) if self.order == 2 else math.fsum(norms)

    def share(self, part: float) -> float:
        """Share of the clipping norm that some of many equal tensors have, from their share of the number."""
        return math.sqrt(part) if self.order == 2 else part

    def layer_bound(self, max_grad_norm: float, layers: int) -> float:
        """Bound on the norm of each of L tensors that are clipped on their own."""
        return max_grad_norm / (math.sqrt(layers) if self.order == 2 else layers)

    def factors(self, norms: Mapping[str, float]) -> dict[str, float]:
        """Factors that scale tensors of these norms down to the bound.

        Args:
            norms: norm by parameter name, see `tensor_norms`.

        Returns:
            min(1, C/norm) by parameter name: one number for all, or one for each tensor if `per_layer`.

        Source: Abadi et al. 2016 (arXiv 1607.00133), algorithm 1; McMahan et al. 2018 (arXiv 1710.06963), section 3,
        for the per-layer form.
        """
        if self.max_grad_norm is None:
            return dict.fromkeys(norms, 1.0)
        if self.per_layer:
            bound = self.layer_bound(self.max_grad_norm, len(norms))
            return {name: bound / max(norm, bound) for name, norm in norms.items()}
        return dict.fromkeys(norms, self.max_grad_norm / max(self.norm(norms.values()), self.max_grad_norm))

    def __call__(self, gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Clip gradients in place.

        Args:
            gradients: gradients by parameter name; their memory is reused for the result.

        Returns:
            The same tensors, scaled.

        Raises:
            UserError: a gradient holds NaN or infinity.
        """
        factors = self.factors(tensor_norms(gradients, self.order))
        return {name: tensor.mul_(factors[name]) for name, tensor in gradients.items()}


def tensor_norms(gradients: Mapping[str, Tensor], order: NormOrder = 2) -> dict[str, float]:
    """Norm of every tensor, summed in float64 so that a bound on it holds for large tensors too.

    Args:
        gradients: gradients by parameter name, of any shapes and device.
        order: 2 for the Euclidean norm, 1 for the sum of absolute values.

    Returns:
        Norm by parameter name.

    Raises:
        UserError: a gradient holds NaN or infinity.
    """
    pieces = {
        name: torch.stack([torch.linalg.vector_norm(piece, order) for piece in torch.split(tensor.reshape(-1), CHUNK)])
        for name, tensor in gradients.items()
    }
    # Together, so that the host waits for a GPU once rather than for every tensor.
    in_host = torch.cat(list(pieces.values())).cpu().double() if pieces else torch.zeros(0, dtype=torch.float64)
    norms = {}
    for name, part in zip(pieces, torch.split(in_host, [len(one) for one in pieces.values()]), strict=True):
        norms[name] = float(torch.linalg.vector_norm(part, order))
        if not math.isfinite(norms[name]):
            raise UserError(
                f"the gradient of {name} holds NaN or infinity, which no clip can bound: check the images and the "
                "network's weights, or lower the structure's strength"
            )
    return norms
