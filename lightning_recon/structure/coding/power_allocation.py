# SPDX-License-Identifier: Apache-2.0
"""Allocation of the clipping budget to the coefficients of an image: water-filling for a linear code."""

import torch
from torch import Tensor

# Above it the level, a number near the noise, rounds away the power: it is given in differences of roots there.
_HIGH_NOISE = 1e4


def water_filling(variance: Tensor, noise: float, power: float) -> Tensor:
    """Power per coefficient that minimises the mean squared error of a linear encoder and its Wiener decoder.

    With encoder gains a (power p = a² λ) and noise z per input, the error of a coefficient is λ z² / (p + z²); its
    minimum under Σ p = `power` is p = z · max(0, √λ · t − z). Coefficients too weak for the noise get nothing.

    Args:
        variance: Variances λ of the coefficients, any shape, positive.
        noise: Noise standard deviation per input when the update is scaled to norm 1, in [0, inf).
        power: Total power, in (0, 1].

    Returns:
        Power per coefficient, shape and dtype of `variance`, summing to `power`.

    Source: Lee & Petersen, "Optimal linear coding for vector channels", IEEE Trans. Commun. 24 (1976).
    """
    root = variance.double().sqrt()
    if noise == 0:
        return (power * root / root.sum()).to(variance.dtype)
    # Sort so that the active set is a prefix; its water level then has a closed form.
    ordered, _ = root.flatten().sort(descending=True)
    count = torch.arange(1, ordered.numel() + 1, dtype=torch.float64, device=variance.device)
    if noise > _HIGH_NOISE:
        return _at_high_noise(root, ordered, count, noise, power).to(variance.dtype)
    level = (power + count * noise**2) / (noise * ordered.cumsum(0))
    active = int((ordered * level > noise).sum())
    return (noise * (root * level[active - 1] - noise).clamp(min=0)).to(variance.dtype)


def _at_high_noise(root: Tensor, ordered: Tensor, count: Tensor, noise: float, power: float) -> Tensor:
    # With k active coefficients the level is (power + k z²) / (z Σ √λ); here the terms in z², which nearly cancel, are
    # sums of differences, and none overflows.
    behind = torch.cat([ordered.new_zeros(1), (count[:-1] * (ordered[:-1] - ordered[1:])).cumsum(0)])
    active = int((power * ordered > noise * (noise * behind)).sum())
    lead = active * (root - ordered[active - 1]) - behind[active - 1]
    return ((power * root + noise * (noise * lead)) / ordered[:active].sum()).clamp(min=0)
