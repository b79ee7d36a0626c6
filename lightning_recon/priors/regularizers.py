# SPDX-License-Identifier: Apache-2.0
"""The regularization terms of the published gradient inversion attacks."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_recon.ranges import NOT_NEGATIVE, check_ranges


@dataclass(frozen=True)
class Regularization:
    """Weights of the terms that are added to the distance between the updates; 0 leaves a term out.

    Args:
        total_variation: Mean absolute difference of neighbouring pixels, standardised (Geiping et al. 2020).
        double_opponents: Whether total variation also counts differences between the colour channels, and as the
            square root of squares (the later variant of the same authors' toolbox).
        norm: Mean square of the dummies (Yin et al. 2021).
        spectrum: Half the sum of squares of the whitened cosine coefficients: with weight 1 the negative log-density
            of the public Gaussian model of photographs.
        batch_norm: Deviation of the batch's statistics from those that the network's normalisation layers carry (Yin et
            al. 2021); those of an untrained network carry no information.
        features: Deviation of the last layer's mean input from the one that its gradient reveals (the same toolbox).
        group_consistency: Deviation of a restart from the mean over all restarts, shifted onto each other (Yin et al.
            2021, section 3.4, with shifts for its flow).
    """

    total_variation: float = 0.0
    double_opponents: bool = False
    norm: float = 0.0
    spectrum: float = 0.0
    batch_norm: float = 0.0
    features: float = 0.0
    group_consistency: float = 0.0

    def __post_init__(self) -> None:
        """Refuse negative weights."""
        check_ranges("--model.regularization.", **{name: (value, NOT_NEGATIVE) for name, value in vars(self).items()})


def total_variation(images: Tensor, double_opponents: bool) -> Tensor:
    """Anisotropic total variation, a mean over pixels and channels.

    Args:
        images: shape (B, C, H, W).
        double_opponents: see `Regularization`.
    """
    if not double_opponents or images.shape[1] == 1:  # a single channel has no opponents
        return images.diff(dim=-1).abs().mean() + images.diff(dim=-2).abs().mean()
    # The channels and their differences, whose signs do not matter.
    planes = torch.cat([images, images - images.roll(1, 1)], dim=1)
    corner = planes[..., :-1, :-1]
    across, down = planes[..., :-1, 1:] - corner, planes[..., 1:, :-1] - corner
    return (across.square() + down.square() + 1e-8).sqrt().mean()


def batch_statistics(inputs: Mapping[str, Tensor], running: Mapping[str, tuple[Tensor, Tensor]]) -> Tensor:
    """Distance of the batch's means and variances from the running ones, summed over the layers.

    Args:
        inputs: inputs of the normalisation layers, (B, channels, ...), by the layers' names.
        running: running means and variances of the layers.

    Source: Yin et al. 2021 (arXiv 2104.07586), equation 9.
    """
    parts = []
    for name, (mean, variance) in running.items():
        dims = [dim for dim in range(inputs[name].dim()) if dim != 1]
        parts.append(torch.linalg.vector_norm(inputs[name].to(mean).mean(dims) - mean))
        parts.append(torch.linalg.vector_norm(inputs[name].to(variance).var(dims, unbiased=False) - variance))
    return torch.stack(parts).sum()


def revealed_features(weight: Tensor, bias: Tensor) -> Tensor:
    """Mean input of a linear layer, estimated from its gradient by least squares.

    Args:
        weight: gradient, (classes, features).
        bias: gradient, (classes,).

    Returns:
        Shape (features,): least squares of weight = bias · features.
    """
    with torch.autocast(bias.device.type, enabled=False):
        return (bias @ weight) / bias.square().sum().clamp(min=1e-30)


def group_consistency(dummies: Tensor) -> Tensor:
    """The mean over restarts, each first aligned with the first one by a shift.

    Args:
        dummies: (restarts, B, C, H, W).

    Returns:
        The mean, shifted back to each restart: the same shape, without gradient.
    """
    with torch.no_grad():
        spectrum = torch.fft.rfft2(dummies)
        cross = (spectrum * spectrum[:1].conj()).sum(2)
        peak = torch.fft.irfft2(cross / cross.abs().clamp(min=1e-12), s=dummies.shape[-2:]).flatten(-2).argmax(-1)
        height, width = dummies.shape[-2:]
        rows, columns = peak // width, peak % width
        phase_rows = torch.fft.fftfreq(height, device=dummies.device)[:, None]
        phase_columns = torch.fft.rfftfreq(width, device=dummies.device)[None]
        angle = 2 * torch.pi * (rows[..., None, None] * phase_rows + columns[..., None, None] * phase_columns)
        shift = torch.polar(torch.ones_like(angle), angle)[:, :, None]
        mean = (spectrum * shift).mean(0, keepdim=True)
        aligned: Tensor = torch.fft.irfft2(mean * shift.conj(), s=(height, width))
        return aligned
