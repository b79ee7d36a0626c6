# SPDX-License-Identifier: Apache-2.0
"""Privacy settings and gradient clipping of the Gaussian mechanism.

Parameter names follow Opacus. The noise has a standard deviation of `noise_multiplier` times `max_grad_norm`, whether
each sample's gradient or the whole update is clipped. Epsilon is derived from the noise, never the reverse.
Nothing here draws random numbers; `client.noise` does.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lightning_recon.errors import UserError
from lightning_recon.ranges import CLIP, COUNT, NOT_NEGATIVE, PROBABILITY, check_ranges

CHUNK = 1 << 20  # elements processed at a time, which bounds the temporary memory


@dataclass(frozen=True)
class Privacy:
    """How a client protects its update.

    Args:
        max_grad_norm: clipping norm C (Euclidean, over all parameters), above 0; null: nothing is clipped (as a
            flag write .inf, which means the same).
        noise_multiplier: noise standard deviation divided by C (z), at least 0; the only number that sets the noise.
        granularity: what is clipped: "sample", each picture's gradient before the sum (DP-SGD), or "update", the
            gradient of the batch's mean loss once (local DP as federated learning uses it).
        per_layer: clip each of the L parameter tensors on its own, to C/sqrt(L), instead of all together.
        rounds: how many updates each client gives (T), at least 1.
        delta: delta at which epsilon is accounted, between 0 and 1; it does not change the noise.
        adjacency: neighbouring data sets of the accounting: a record is added or removed, or replaced by another.
    """

    max_grad_norm: float | None = 1.0
    noise_multiplier: float = 0.0
    granularity: Literal["sample", "update"] = "update"
    per_layer: bool = False
    rounds: int = 1
    delta: float = 1e-5
    adjacency: Literal["add_remove", "replace_one"] = "add_remove"

    def __post_init__(self) -> None:
        """Refuse what protects nothing or cannot be computed."""
        flag = "--model.client.privacy."
        if self.max_grad_norm == math.inf:
            object.__setattr__(self, "max_grad_norm", None)
        check_ranges(
            flag,
            noise_multiplier=(self.noise_multiplier, NOT_NEGATIVE),
            max_grad_norm=(self.max_grad_norm, CLIP),
            rounds=(self.rounds, COUNT),
            delta=(self.delta, PROBABILITY),
        )
        if self.max_grad_norm is None and self.noise_multiplier > 0:
            raise UserError(
                f"{flag}noise_multiplier is {self.noise_multiplier} but {flag}max_grad_norm sets no bound, and noise "
                "without a clip protects nothing: set max_grad_norm, or noise_multiplier to 0"
            )

    @property
    def noise_std(self) -> float:
        """Standard deviation of the noise on every released number, zC."""
        return self.noise_multiplier * (self.max_grad_norm or 0.0)


def tensor_norms(gradients: Mapping[str, Tensor]) -> dict[str, float]:
    """Euclidean norm of every tensor, summed in float64 so that a bound on it holds for large tensors too.

    Args:
        gradients: gradients by parameter name, of any shapes and device.

    Returns:
        Norm by parameter name.

    Raises:
        UserError: a gradient holds NaN or infinity.
    """
    norms = {}
    for name, tensor in gradients.items():
        pieces = torch.stack([torch.linalg.vector_norm(piece) for piece in torch.split(tensor.reshape(-1), CHUNK)])
        norms[name] = float(torch.linalg.vector_norm(pieces.cpu().double()))
        if not math.isfinite(norms[name]):
            raise UserError(
                f"the gradient of {name} holds NaN or infinity, which no clip can bound: check the pictures and the "
                "network's weights, or lower the structure's strength"
            )
    return norms


def factors_of(norms: Mapping[str, float], max_grad_norm: float | None, per_layer: bool) -> dict[str, float]:
    """What tensors of these norms have to be multiplied with to keep within the clipping norm.

    Args:
        norms: Euclidean norm by parameter name, see `tensor_norms`.
        max_grad_norm: clipping norm C, above 0; None for no clipping.
        per_layer: whether each of the L tensors keeps within C/sqrt(L) on its own.

    Returns:
        min(1, C/norm) by parameter name: one number for all, or one for each tensor if `per_layer`.

    Source: Abadi et al. 2016 (arXiv 1607.00133), algorithm 1; McMahan et al. 2018 (arXiv 1710.06963), section 3, for
    the per-layer form.
    """
    if max_grad_norm is None:
        return dict.fromkeys(norms, 1.0)
    if per_layer:
        bound = max_grad_norm / math.sqrt(len(norms))
        return {name: bound / max(norm, bound) for name, norm in norms.items()}
    return dict.fromkeys(norms, max_grad_norm / max(math.hypot(*norms.values()), max_grad_norm))


def clip_factor(gradients: Mapping[str, Tensor], max_grad_norm: float | None, per_layer: bool) -> dict[str, float]:
    """What each tensor has to be multiplied with to keep within the clipping norm; see `factors_of`."""
    return factors_of(tensor_norms(gradients), max_grad_norm, per_layer)


def clip(gradients: Mapping[str, Tensor], max_grad_norm: float | None, per_layer: bool) -> dict[str, Tensor]:
    """Scale gradients down, in place, until they keep within the clipping norm.

    Args:
        gradients: gradients by parameter name; their memory is reused for the result.
        max_grad_norm: clipping norm C, above 0; None for no clipping.
        per_layer: whether each of the L tensors keeps within C/sqrt(L) on its own.

    Returns:
        The same tensors, scaled.

    Raises:
        UserError: a gradient holds NaN or infinity.
    """
    factors = clip_factor(gradients, max_grad_norm, per_layer)
    return {name: tensor.mul_(factors[name]) for name, tensor in gradients.items()}
