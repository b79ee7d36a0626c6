# SPDX-License-Identifier: Apache-2.0
"""Choose the image distance by which `evaluation.identification` finds a reconstruction's original in a gallery.

    python scripts/identification_distance.py --root DIR        # writes results/identification_distance.csv

Every photograph of a folder, up to 256, is degraded as attacks degrade images: by white noise, by blur, and by the
transmission of its cosine coefficients over a noisy channel. A row states how often one distance finds the original of
a degraded photograph among them. DIR must not hold photographs that the other tables attack.
"""

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from measuring import write_rows
from torch import Tensor
from torchvision.transforms.v2.functional import gaussian_blur

from lightning_recon.data.sources import open_folder, select
from lightning_recon.evaluation.metrics import ssim_per_image
from lightning_recon.priors.image_statistics import public_statistics

SIZE, MOST_PHOTOGRAPHS, SSIM_VICTIMS = 64, 256, 8
NOISES, BLURS, CHANNELS = (0.3, 0.6, 1.2, 2.4), (2.0, 4.0, 8.0), (1.0, 0.5, 0.3, 0.1)
SIDES = (4, 8, 16, 32, 64)


def degraded(images: Tensor) -> Iterator[tuple[str, float, Tensor]]:
    """Kind and strength of each degradation, and the degraded images, clamped to [0, 1]."""
    draw = torch.Generator().manual_seed(0)
    for std in NOISES:
        noise = torch.randn(images.shape, generator=draw)
        yield "white noise", std, (images + std * noise).clamp(0, 1)
    for sigma in BLURS:
        kernel = 2 * round(3 * sigma) + 1
        yield "blur", sigma, gaussian_blur(images, [kernel, kernel], [sigma, sigma])
    # Each coefficient with its share of unit power plus noise z, decoded by its Wiener gain.
    statistics = public_statistics(SIZE, SIZE, subjects=False)
    for z in CHANNELS:
        coefficients, variance = statistics.transform.analyse(images), statistics.variance
        power = variance.sqrt() / variance.sqrt().sum()
        noise = torch.randn(images.shape, generator=draw) * z * (variance / power).sqrt()
        decoded = (coefficients + noise) * (power / (power + z**2))
        yield "linear code", z, statistics.transform.synthesise(decoded).clamp(0, 1)


def low_pass(side: int, normalised: bool) -> Callable[[Tensor, Tensor], Tensor]:
    """Distances of images to a gallery after averaging to `side` pixels; without mean and contrast if normalised."""

    def features(images: Tensor) -> Tensor:
        small = F.adaptive_avg_pool2d(images, side)
        if normalised:
            small = F.normalize((small - small.mean((2, 3), keepdim=True)).flatten(1), dim=1)
        return small.flatten(1)

    return lambda images, gallery: torch.cdist(features(images), features(gallery))


def dissimilarity(images: Tensor, gallery: Tensor) -> Tensor:
    """One minus SSIM of every pair."""
    return torch.stack([1 - ssim_per_image(one.expand_as(gallery), gallery) for one in images])


def distances() -> Iterator[tuple[str, Callable[[Tensor, Tensor], Tensor]]]:
    """Names and functions of the distances that are compared."""
    for side in SIDES:
        yield f"squared error at {side} x {side}", low_pass(side, normalised=False)
        yield f"correlation at {side} x {side}", low_pass(side, normalised=True)
    yield "SSIM", dissimilarity


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="folder of photographs that no other table uses")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent.parent / "results")
    chosen = parser.parse_args()
    source = open_folder(chosen.root)
    gallery = select(source, range(len(source)), MOST_PHOTOGRAPHS, SIZE).images.float() / 255
    rows = []
    for kind, strength, images in degraded(gallery):
        for name, distance in distances():
            victims = SSIM_VICTIMS if distance is dissimilarity else len(gallery)
            every = torch.linspace(0, len(gallery) - 1, victims).round().long()
            found = distance(images[every], gallery).argmin(dim=1) == every
            rows.append({"degradation": kind, "strength": strength, "distance": name, "victims": victims})
            rows[-1] |= {"gallery": len(gallery), "identification": round(float(found.double().mean()), 4)}
        print(kind, strength, flush=True)
    command = "python scripts/identification_distance.py --root DIR"
    write_rows(chosen.results / "identification_distance.csv", command, rows)


if __name__ == "__main__":
    main()
