# SPDX-License-Identifier: Apache-2.0
"""Image metrics: one number per image, never one per batch."""

from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torchmetrics.functional.image import (
    learned_perceptual_image_patch_similarity,
    structural_similarity_index_measure,
)
from torchvision.models import AlexNet_Weights, SqueezeNet1_1_Weights, VGG16_Weights

from lightning_recon.display import as_rgb

PSNR_CAP = 100.0
_GAUSSIAN_KERNEL = 11
_CPU_CHUNK = 2**16  # pixels of the images that a processor compares at a time: more leave its caches
_LPIPS_SIZE = 32  # pixels a side below which the backbones pool to nothing
_LPIPS_WEIGHTS = {
    "alex": AlexNet_Weights.DEFAULT,
    "squeeze": SqueezeNet1_1_Weights.DEFAULT,
    "vgg": VGG16_Weights.DEFAULT,
}


def mse_per_image(images: Tensor, truth: Tensor) -> Tensor:
    """Mean squared error of each image.

    Args:
        images: Shape (N, C, H, W), values in [0, 1].
        truth: Same shape and range.

    Returns:
        Shape (N,), float64.
    """
    return (images.double() - truth.double()).square().flatten(1).mean(1)


def psnr_from_mse(mse: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of a mean squared error, data range 1.

    Args:
        mse: Mean squared error, any shape, >= 0.

    Returns:
        -10 log10(mse) in dB, same shape, at most 100 dB: an exact copy would be infinite.
    """
    return (-10 * mse.log10()).clamp(max=PSNR_CAP)


def psnr_per_image(images: Tensor, truth: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each image in dB, data range 1, at most 100 dB.

    Args:
        images: Shape (N, C, H, W), values in [0, 1].
        truth: Same shape and range.

    Returns:
        Shape (N,), float64.
    """
    return psnr_from_mse(mse_per_image(images, truth))


def ssim_per_image(images: Tensor, truth: Tensor) -> Tensor:
    """Structural similarity of each image: Gaussian window of 1.5 pixels, data range 1.

    Images smaller than the 11 x 11 window get the largest uniform window that fits into them.

    Args:
        images: Shape (N, C, H, W), values in [0, 1].
        truth: Same shape and range.

    Returns:
        Shape (N,), at most 1.

    Source: Wang, Bovik, Sheikh and Simoncelli, "Image quality assessment" (2004), through torchmetrics.
    """
    at_once = max(1, _CPU_CHUNK // truth.shape[-2:].numel()) if truth.is_cpu else max(1, len(truth))
    pairs = zip(torch.split(images, at_once), torch.split(truth, at_once), strict=True)
    return torch.cat([_ssim(*pair) for pair in pairs])


def _ssim(images: Tensor, truth: Tensor) -> Tensor:
    side = min(truth.shape[-2:])
    scores = structural_similarity_index_measure(
        images,
        truth,
        gaussian_kernel=side >= _GAUSSIAN_KERNEL,
        kernel_size=side - (side + 1) % 2,
        reduction="none",
        data_range=1.0,
    )
    assert isinstance(scores, Tensor)
    return scores.view(-1)  # torchmetrics drops the dimension of a single image


def lpips_per_image(
    images: Tensor, truth: Tensor, network: Literal["alex", "squeeze", "vgg"] = "alex"
) -> Tensor | None:
    """Learned perceptual distance of each image, where the backbone's weights are already on this machine.

    Nothing is downloaded: without torchvision's weights in the torch hub folder there is no score. The networks know
    RGB images: grey ones are repeated over three channels, and other numbers of channels have no score.

    Args:
        images: Shape (N, C, H, W), values in [0, 1].
        truth: Same shape and range.
        network: Backbone whose features are compared.

    Returns:
        Shape (N,), 0 for identical images; None without weights, or for images too small or not of 1 or 3 channels.

    Source: Zhang et al., "The unreasonable effectiveness of deep features as a perceptual metric" (2018), through
    torchmetrics.
    """
    weights = Path(torch.hub.get_dir()) / "checkpoints" / Path(_LPIPS_WEIGHTS[network].url).name
    if not weights.is_file() or min(truth.shape[-2:]) < _LPIPS_SIZE or truth.shape[1] not in (1, 3):
        return None
    with torch.no_grad():
        distances = learned_perceptual_image_patch_similarity(
            as_rgb(images), as_rgb(truth), net_type=network, reduction="none", normalize=True
        )
    return distances.view(-1)  # torchmetrics drops the dimension of a single image


def bit_exact(images: Tensor, truth: Tensor, bit_depth: int = 8) -> Tensor:
    """Whether each image, rounded to the bits of a value, is the exact image that the client trained on.

    Args:
        images: Shape (N, C, H, W), values in [0, 1].
        truth: Same shape and range.
        bit_depth: Bits of a value: values are multiples of 1 / (2^bits - 1).

    Returns:
        Shape (N,), bool.
    """
    return (_quantise(images, bit_depth) == _quantise(truth, bit_depth)).flatten(1).all(1)


def _quantise(images: Tensor, bit_depth: int) -> Tensor:
    return (images.clamp(0, 1) * ((1 << bit_depth) - 1)).round()
