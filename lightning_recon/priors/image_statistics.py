# SPDX-License-Identifier: Apache-2.0
"""What anyone knows about photographs before seeing a client's: mean, colour axes, spectrum, spread of contrast."""

import hashlib
import json
import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_recon.errors import UserError
from lightning_recon.priors.dct import CosineTransform, cosine, inverse_cosine, synthesise

FORMAT = "public statistics 1"
# Fitted on CC0 and public-domain photographs: scripts/photographs.py gathers them, scripts/fit_statistics.py fits.
_BUNDLED = Path(__file__).with_name("image_statistics.json")
# Images from which the mean subject is made where a file knows no subjects.
_MEAN_OF = 512


@dataclass(frozen=True)
class Ellipses:
    """Random centred ellipses, which stand in for subjects.

    Args:
        share: Least and largest share of the image that is covered.
        skew: The share is least + (largest − least) · u^skew, u uniform.
        shape_std: Standard deviation of the logarithm of the ratio of the axes.
        place_std: Standard deviation of the centre, in image sides.
    """

    share: tuple[float, float]
    skew: float
    shape_std: float
    place_std: float


@dataclass(frozen=True)
class PublicStatistics:
    """First and second moments of photographs, in the basis where they are uncorrelated.

    Args:
        name: Provenance, as written to `results.json`.
        mean: Mean image, shape (C, H, W), values in [0, 1].
        colour: Orthonormal axes of the channels as rows, shape (C, C): colour axes of RGB images.
        variance: Variance of each coefficient of `transform`, shape (C, H, W).
        log_contrast_std: Standard deviation of log(energy of a photograph / mean energy), as the structure weighs it.
        ellipses: Stand-ins for subjects.
        whole: If these are subjects cut out on black, the photographs that they were cut from; else None.
    """

    name: str
    mean: Tensor
    colour: Tensor
    variance: Tensor
    log_contrast_std: float
    ellipses: Ellipses
    whole: "PublicStatistics | None" = None

    @property
    def subjects(self) -> bool:
        """Whether clients cut the subject out on black before they train."""
        return self.whole is not None

    @property
    def transform(self) -> CosineTransform:
        """Between images and the coefficients that have these variances."""
        return CosineTransform(self.mean, self.colour)


@lru_cache(maxsize=8)  # asked for at every score, and always the same
def public_statistics(
    height: int, width: int, subjects: bool, file: str | None = None, channels: int = 3
) -> PublicStatistics:
    """Statistics of photographs, or of subjects cut out of them.

    The logarithm of a coefficient's variance is linear in the logarithms of its row and column frequency between
    octaves: a power law whose exponent may change from octave to octave. It holds for every size, at the scale of the
    orthonormal transform; near its own finest details a size has its own law, so that of the nearest size is taken.
    Where a file knows no masks, subjects keep the photographs' spectrum, and their mean is the mean photograph under
    the average of random centred ellipses.

    Args:
        height: Image height in pixels.
        width: Image width in pixels.
        subjects: Whether clients cut the subject out on black before they train.
        file: As written by `scripts/fit_statistics.py`; None: the bundled one.
        channels: Of the images. The mean of red, green and blue stands for grey images where a file is of RGB images.

    Returns:
        The statistics, float32.

    Raises:
        UserError: The file is missing, is not what the script writes, or is of images with other channels.

    Source: that natural images obey power laws is Field (1987); the numbers are fitted on public photographs.
    """
    path = _BUNDLED if file is None else Path(file)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']!r} instead of {FORMAT!r}")
        name = content["name"]
        if file is not None:
            digest = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
            name = f"{path.name} ({content['photographs']} photographs, {digest})"
        fitted = len(content["colour"])
        if fitted != channels and (fitted, channels) != (3, 1):
            raise UserError(
                f"{path} holds statistics of images with {fitted} channels, and these have {channels}: fit a file with "
                f"scripts/fit_statistics.py --channels {channels} and give it as --model.structure.statistics, or as "
                "--model.statistics where there is no structure"
            )
        ellipses = _elliptic(content["ellipses"] or json.loads(_BUNDLED.read_text(encoding="utf-8"))["ellipses"])
        colour = _numbers(content["colour"], (fitted, fitted))
        if not torch.allclose(colour @ colour.T, torch.eye(fitted), atol=1e-3):
            raise ValueError("the colour axes are not orthonormal")
        size = (height, width, channels)
        whole = PublicStatistics(name, *_moments(content["whole"], colour, size), ellipses)
        if not subjects:
            return whole
        if content["subjects"] is None:
            generator = torch.Generator().manual_seed(0)
            share = sum(_ellipses(ellipses, 1, height, width, generator)[0] for _ in range(_MEAN_OF)) / _MEAN_OF
            moments = (whole.mean * share, whole.colour, whole.variance, whole.log_contrast_std)
            return PublicStatistics(f"{name}, elliptic subjects", *moments, ellipses, whole)
        moments = _moments(content["subjects"], colour, size)
        return PublicStatistics(f"{name}, subjects", *moments, ellipses, whole)
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing: make it with scripts/fit_statistics.py, or leave it out") from error
    except (OSError, ValueError, TypeError, LookupError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{path} holds no public statistics ({reason}): make it anew with scripts/fit_statistics.py"
        ) from error


def synthetic_images(statistics: PublicStatistics, count: int, size: int) -> Tensor:
    """Random images with the public statistics: what stands in for data when thresholds are chosen.

    Args:
        statistics: Which kind of images.
        count: How many.
        size: Height and width in pixels; images larger than those of the statistics are enlarged from them.

    Returns:
        Shape (count, C, size, size), values in [0, 1]; the same on every call.
    """
    generator = torch.Generator().manual_seed(1)
    law = statistics if statistics.whole is None else statistics.whole
    height, width = law.variance.shape[1:]
    side = min(size, height, width)
    # Low coefficients of a coarse image are those of the fine one but for the scale of the orthonormal transform.
    variance = law.variance[:, :side, :side] * (side**2 / (height * width))
    spread = law.log_contrast_std
    contrast = (spread * torch.randn(count, 1, 1, 1, generator=generator) - spread**2 / 2).exp()
    noise = torch.randn(count, len(law.variance), side, side, generator=generator)
    images = synthesise((contrast * variance).sqrt() * noise, resized(law.mean, side, side), law.colour)
    images = (images if side == size else resized(images, size, size)).clamp(0, 1)
    return images * _ellipses(law.ellipses, count, size, size, generator) if statistics.subjects else images


def resized(images: Tensor, height: int, width: int) -> Tensor:
    """Images with the same low cosine coefficients at another size: (..., h, w) to (..., height, width)."""
    rows, columns = images.shape[-2:]
    kept = cosine(images)[..., :height, :width] * math.sqrt(height * width / (rows * columns))
    padding = (0, width - kept.shape[-1], 0, height - kept.shape[-2])
    return inverse_cosine(torch.nn.functional.pad(kept, padding))


def octaves(size: int) -> list[float]:
    """Places of the knots of a size's spectrum, in octaves: frequency 0 counts as ½, then 1, 2, 4, … and the size."""
    return [-1.0, *(float(k) for k in range(math.ceil(math.log2(size)))), math.log2(size)]


def between_knots(frequencies: Tensor, size: int) -> Tensor:
    """Weight of every knot at every frequency, linear in octaves and beyond the last knot too.

    Args:
        frequencies: Shape (n,), in half-periods an image side, at least 0.
        size: Side of the images that the knots were fitted on.

    Returns:
        Shape (n, len(octaves(size))), float64; rows sum to 1.
    """
    knots = torch.tensor(octaves(size), dtype=torch.float64)
    place = frequencies.double().clamp(min=0.5).log2()
    right = torch.searchsorted(knots, place).clamp(1, len(knots) - 1)
    share = (place - knots[right - 1]) / (knots[right] - knots[right - 1])
    weight = torch.zeros(len(place), len(knots), dtype=torch.float64)
    weight.scatter_(1, right[:, None], share[:, None])
    return weight.scatter_(1, right[:, None] - 1, 1 - share[:, None])


def _moments(
    section: dict[str, Any], colour: Tensor, picture: tuple[int, int, int]
) -> tuple[Tensor, Tensor, Tensor, float]:
    """Mean, colour, variance and spread of contrast for a height, a width and a number of channels."""
    height, width, channels = picture
    size, spread = math.sqrt(height * width), float(section["log_contrast_std"])
    if not 0 < spread < 10:
        raise ValueError(f"a spread of contrast of {spread}")
    fitted = min((int(key) for key in section["log_variance"]), key=lambda side: abs(math.log(side / size)))
    knots = len(octaves(fitted))
    table = _numbers(section["log_variance"][str(fitted)], (len(colour), knots, knots)).double()
    rows, columns = (between_knots(torch.arange(n) * (size / n), fitted) for n in (height, width))
    # The orthonormal transform of an image twice as fine has twice the amplitude at the same frequency.
    variance = (rows @ table @ columns.T).exp() * (size / fitted) ** 2
    grid = len(section["mean"][0])
    mean = resized(_numbers(section["mean"], (len(colour), grid, grid)), height, width).clamp(0, 1)
    if channels == len(colour):
        return mean, colour, variance.float(), spread
    # Grey is the mean over the channels, whose axes are uncorrelated.
    weights = colour.double().mean(dim=1).square()[:, None, None]
    grey = (weights * variance).sum(dim=0, keepdim=True)
    return mean.mean(dim=0, keepdim=True), torch.ones(1, 1), grey.float(), spread


def _elliptic(limits: dict[str, Any]) -> Ellipses:
    low, high = (float(share) for share in limits["share"])
    return Ellipses((low, high), *(float(limits[key]) for key in ("skew", "shape_std", "place_std")))


def _numbers(values: object, shape: tuple[int, ...]) -> Tensor:
    """Finite numbers in the expected shape, float32."""
    tensor = torch.tensor(values, dtype=torch.float32)
    if tensor.shape != shape or not bool(tensor.isfinite().all()):
        raise ValueError(f"expected finite numbers of shape {shape}, got shape {tuple(tensor.shape)}")
    return tensor


def _ellipses(law: Ellipses, count: int, height: int, width: int, generator: torch.Generator) -> Tensor:
    """Random centred ellipses as masks, shape (count, 1, height, width), values 0 and 1."""
    low, high = law.share
    area = low + (high - low) * torch.rand(count, 1, 1, generator=generator) ** law.skew
    aspect = (law.shape_std * torch.randn(count, 1, 1, generator=generator)).exp()
    angle = math.pi * torch.rand(count, 1, 1, generator=generator)
    place = law.place_std * torch.randn(2, count, 1, 1, generator=generator)
    x = (torch.arange(width) + 0.5) / width - 0.5 - place[0]
    y = ((torch.arange(height) + 0.5) / height - 0.5)[:, None] - place[1]
    along, across = x * angle.cos() + y * angle.sin(), y * angle.cos() - x * angle.sin()
    radius = (area / math.pi).sqrt()
    inside = (along / radius) ** 2 / aspect + (across / radius) ** 2 * aspect < 1
    return inside.float()[:, None]
