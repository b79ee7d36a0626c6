# SPDX-License-Identifier: Apache-2.0
"""Power allocation where the clip bounds the L1 norm, as it does for the Laplace mechanism.

Under a Euclidean clip many small inputs cost as much as few large ones of the same energy. Under an L1 clip an input of
amplitude s (in standard deviations of the noise) costs s and brings information of the order of s², so few inputs of a
larger amplitude are best.

Rows are described as elsewhere, by powers that sum to 1. What the L1 clip adds is one number: by which factor a row's
L1 norm exceeds its Euclidean norm.
"""

import math

import torch
from torch import Tensor

from lightning_recon.image_format import ImageFormat
from lightning_recon.structure.coding.channel_code import LADDER, message_bits, needed_snr
from lightning_recon.structure.coding.code_plan import (
    HEADER,
    HEADER_ENERGY,
    NEIGHBOURS_DB,
    SHORTEST,
    Plan,
    least_bits,
)
from lightning_recon.structure.coding.image_codec import is_common
from lightning_recon.structure.coding.laplace_channel import laplace_needed_snr

# Mean of |x| of a standard normal number: coefficients are taken for normal.
_MEAN_ABSOLUTE = math.sqrt(2 / math.pi)
# Share of the L1 budget for the sketch beside a digital code. It was chosen by hand, not tuned.
SKETCH_SHARE = 0.1
# Bits of a message below which a linear code makes the better image: more than under a Euclidean clip, since a linear
# code sends few large coefficients too. Chosen between the lengths at which the mean PSNR of both codes crosses on up
# to 8 ImageNet photographs and on 4 bundled ones, which are sharper; one noise draw.
# AVIF, for each pixel of the side: RGB 114 (ImageNet) and 149 (bundled) at 32, below 91 and about 145 at 64, below 68
# at 128; grey 81 and 109 at 32, below 75 and about 131 at 64, below 57 at 128.
_RGB_SIDE_BITS, _GREY_SIDE_BITS = 115.0, 90.0
# JPEG 2000, for each pixel, at 16 bits: RGB 15 and 17 at 32, 11 and 13 at 64; grey 4.2 and 4.7 at 32, 2.3 and 3.1 at
# 64, above 2.3 (ImageNet) at 128.
_RGB_BITS, _PLANE_BITS = 13.0, 4.0


def l1_water_filling(variance: Tensor, budget: float) -> Tensor:
    """Amplitudes that minimise the mean squared error of a linear encoder and its Wiener decoder under an L1 budget.

    A coefficient of variance λ that is sent with amplitude s has the error λ / (1 + s²). Its stationary points under
    Σ s = `budget` satisfy 2 s / (1 + s²)² = μ / λ; one with s < 1 is never optimal.

    Args:
        variance: Variances λ of the coefficients, any shape, positive.
        budget: Sum of the amplitudes, in standard deviations of the noise, > 0.

    Returns:
        Amplitude (standard deviation) of each coefficient as it is sent, float64, shape of `variance`, summing to
        `budget`.
    """
    ordered, places = variance.double().flatten().sort(descending=True)
    amplitudes = torch.zeros_like(ordered)
    if budget <= 1:
        amplitudes[0] = budget
    else:
        # Coefficient i is sent if the price is at most λ_i / 2, so the set that is sent is a prefix.
        low, high = math.log(float(ordered[-1])) - 80.0, math.log(float(ordered[0]) / 2)
        for _ in range(60):
            price = (low + high) / 2
            if float(_amplitudes(ordered, math.exp(price)).sum()) > budget:
                low = price
            else:
                high = price
        amplitudes = _amplitudes(ordered, math.exp(low))
        # Of coefficients of equal variance, which enter at the same price, as many are sent as the budget allows.
        amplitudes[amplitudes.cumsum(0) > budget * (1 + 1e-9)] = 0.0
        amplitudes *= budget / amplitudes.sum()
    return torch.zeros_like(ordered).scatter_(0, places, amplitudes).view(variance.shape)


def _amplitudes(variance: Tensor, price: float) -> Tensor:
    """Roots s >= 1 of 2 s / (1 + s²)² = price / λ, by Newton's method in log s; 0 where there is none."""
    target = price / variance
    goal = target.log()
    root = ((math.log(2) - goal) / 3).clamp(min=0.0)  # log s; an upper bound, since 2 s / (1 + s²)² <= 2 / s³
    for _ in range(12):  # the slope is between -3 and -1
        square = (2 * root).exp()
        value = math.log(2) + root - 2 * torch.log1p(square) - goal
        root = (root - value / (1 - 4 * square / (1 + square))).clamp(min=0.0)
    return torch.where(target <= 0.5 * (1 + 1e-12), root.exp(), 0.0)


def l1_power(variance: Tensor, noise: float, pilot_power: float) -> Tensor:
    """Power of every coefficient of a linear code under an L1 budget.

    Args:
        variance: Variances of the coefficients, any shape, positive.
        noise: Standard deviation of the noise on every number when the whole row has L1 norm 1, in [0, inf).
        pilot_power: Share of the power for the pilot, in [0, 1).

    Returns:
        Power per coefficient, dtype and shape of `variance`, summing to 1 - `pilot_power`.
    """
    budget = 1 / max(noise, 1e-9)
    coefficients = budget / _MEAN_ABSOLUTE
    for _ in range(8):  # what the pilot costs depends on the amplitudes
        amplitudes = l1_water_filling(variance, coefficients)
        pilot = math.sqrt(pilot_power / (1 - pilot_power)) * float(amplitudes.norm())
        coefficients = max((budget - pilot) / _MEAN_ABSOLUTE, 1e-3 * budget)
    power = amplitudes.square()
    return ((1 - pilot_power) * power / power.sum()).to(variance.dtype)


def norm_ratio(power: Tensor, pilot_power: float) -> float:
    """Expected L1 norm of a row over its Euclidean norm, for normal coefficients of these powers and a pilot."""
    return _MEAN_ABSOLUTE * float(power.double().sqrt().sum()) + math.sqrt(pilot_power)


def l1_plan(
    noise: float,
    image_format: ImageFormat,
    most_inputs: int,
    shared: bool,
    margin_db: float,
    always_digital: bool,
    sketch_ratio: float,
    laplace: bool = False,
) -> tuple[Plan, float] | None:
    """Choose the digital code under an L1 budget.

    The rate is the one that carries most bits: n inputs of the amplitude that it needs cost n times that amplitude, so
    high rates win. All files have the same amplitude.

    Args:
        noise: Standard deviation of the noise on every number when the whole row has L1 norm 1.
        image_format: Format of the images.
        most_inputs: What the upload allows.
        shared: Whether victims share one clip. If not, an image's codeword follows its sketch and pilot.
        margin_db: By how many decibels the noise may exceed what is assumed.
        always_digital: Whether to send digitally at any noise.
        sketch_ratio: `norm_ratio` of the sketch.
        laplace: Whether codewords arrive in Laplace noise, not in nearly normal noise as means of rounds do.

    Returns:
        The plan, and the ratio of the norms of a whole row; None where a linear code makes the better image, for
        fewer than 1000 inputs, and where not every message would hold an image.
    """
    budget = 1 / max(noise, 1e-9)
    header = math.sqrt(HEADER_ENERGY / HEADER)
    left = (1 - SKETCH_SHARE) * budget - HEADER * header
    spare = 10 ** ((margin_db + (NEIGHBOURS_DB if shared else 0.0)) / 20)
    needed = laplace_needed_snr if laplace else needed_snr
    best, inputs = 0, 0
    for rung in range(len(LADDER)):
        most = min(most_inputs, math.ceil(image_format.raw_bits * image_format.pixels / LADDER[rung].rate))
        count = max(0, most)
        for _ in range(5):  # what a codeword needs depends a little on its length
            count = min(max(0, most), int(left / (spare * math.sqrt(needed(rung, max(count, 1))))))
        if count >= SHORTEST and message_bits(rung, count) > (message_bits(best, inputs) if inputs else 0):
            best, inputs = rung, count
    worthwhile = 0.0 if always_digital else _worthwhile_bits(image_format)
    if not inputs or message_bits(best, inputs) < max(worthwhile, least_bits(image_format, always_digital)):
        return None
    amplitude, sketch = left / inputs, SKETCH_SHARE * budget / sketch_ratio
    energy = inputs * amplitude**2 + HEADER_ENERGY + sketch**2
    unit = 1 / math.sqrt(energy)
    amplitudes = tuple(amplitude * unit if rung <= best else 0.0 for rung in range(len(LADDER)))
    share, depth = (sketch * unit) ** 2, image_format.bit_depth
    return Plan(inputs, header * unit, amplitudes, best, share, shared, bit_depth=depth), budget * unit


def _worthwhile_bits(image_format: ImageFormat) -> float:
    """Bits of a message below which a linear code makes the better image; at most those of the raw image."""
    channels, pixels = image_format.channels, image_format.pixels
    if is_common(image_format):
        found = (_RGB_SIDE_BITS if channels == 3 else _GREY_SIDE_BITS) * math.sqrt(pixels)
    else:
        found = (_RGB_BITS if channels == 3 else _PLANE_BITS * channels) * pixels
    return min(found, image_format.raw_bits * pixels)
