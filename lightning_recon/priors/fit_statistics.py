# SPDX-License-Identifier: Apache-2.0
"""Public statistics fitted on any images: what `statistics.public_statistics` reads, as plain numbers."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_recon.priors.dct import analyse, cosine, inverse_cosine
from lightning_recon.priors.image_statistics import FORMAT, between_knots, octaves
from lightning_recon.structure.coding.power_allocation import water_filling

# Luminance, red against blue, green against both: taken where the photographs' own axes agree within so many degrees.
SIMPLE_COLOUR = ((1.0, 1.0, 1.0), (1.0, 0.0, -1.0), (1.0, -2.0, 1.0))
_AGREEMENT = 5.0
# Side of the mean subject that is stored.
_SUBJECT_GRID = 16
# How far the exponent changes from octave to octave: octaves with few coefficients stay near their neighbours.
_BEND = 1.0
# Noise levels at which the structure's weights are taken for the spread of contrast.
_NOISES = (0.1, 0.03, 0.01, 0.003, 0.001)
_MOST_STEPS = 100


def fit_statistics(
    photographs: Mapping[int, Tensor], masks: Mapping[int, Tensor] | None, name: str, grid: int = 8
) -> dict[str, Any]:
    """Fit everything that a file of public statistics holds.

    Args:
        photographs: For each size the same photographs, shape (N, C, size, size), values in [0, 1].
        masks: Their subjects likewise, shape (N, 1, size, size), values 0 and 1; None: none are known.
        name: Provenance.
        grid: Side of the mean photograph that is stored; 1: a single colour.

    Returns:
        The file's content, ready for JSON.
    """
    finest = max(photographs)
    count = len(photographs[finest])
    colour = colour_axes(photographs[finest])
    cut = None if masks is None else {size: photographs[size] * masks[size] for size in photographs}
    return {
        "format": FORMAT,
        "name": name,
        "photographs": count,
        "colour": _rounded(colour, 6),
        "whole": _section(photographs, colour, grid),
        "subjects": None if cut is None else _section(cut, colour, _SUBJECT_GRID),
        "ellipses": fit_ellipses(masks[finest]) if masks is not None else None,
    }


def colour_axes(photographs: Tensor) -> Tensor:
    """Orthonormal axes in which pixels are uncorrelated, most varied first, as rows: shape (C, C).

    Axes of RGB images that agree with luminance, red − blue and green − others are set to these.
    """
    pixels = (photographs - photographs.mean(dim=(0, 2, 3), keepdim=True)).transpose(0, 1).flatten(1).double()
    axes = torch.linalg.eigh(pixels @ pixels.T).eigenvectors.T.flip(0)
    if len(axes) != 3:
        # The sign of an axis is free: that in which its largest weight is positive.
        largest = axes.gather(1, axes.abs().argmax(dim=1, keepdim=True))
        return torch.Tensor((axes * largest.sign()).float())
    simple = torch.nn.functional.normalize(torch.tensor(SIMPLE_COLOUR, dtype=torch.float64), dim=1)
    agreement = (axes * simple).sum(dim=1).abs()
    return (simple if float(agreement.min()) > math.cos(math.radians(_AGREEMENT)) else axes).float()


def fit_mean(photographs: Tensor, grid: int) -> Tensor:
    """Mean image, shape (C, grid, grid): each cosine coefficient shrunk by what its standard error leaves in doubt.

    Source: positive-part James & Stein (1961), coefficient by coefficient.
    """
    size = photographs.shape[-1]
    coefficients = cosine(photographs)[..., :grid, :grid]
    mean = coefficients.mean(dim=0)
    doubt = coefficients.var(dim=0) / len(photographs)
    shrink = (1 - doubt / mean.square()).clamp(min=0)
    shrink[:, 0, 0] = 1
    return inverse_cosine(mean * shrink) * (grid / size)


def fit_spectrum(energy: Tensor, count: int) -> Tensor:
    """Logarithms of the variance at the knots, by maximum likelihood of Gaussian coefficients.

    Args:
        energy: Shape (size, size): mean square of each coefficient of one colour channel.
        count: Number of photographs that it is the mean of.

    Returns:
        Shape (K, K), float64, K = len(octaves(size)).

    Source: Whittle's likelihood; its maximum is found by Fisher scoring, whose information matrix is constant here.
    """
    size, knots = energy.shape[0], len(octaves(energy.shape[0]))
    weight = between_knots(torch.arange(size), size)
    make_payload = torch.einsum("ik,jl->ijkl", weight, weight).reshape(size**2, knots**2)
    observed = energy.double().flatten().clamp(min=1e-12)
    places = torch.tensor(octaves(size), dtype=torch.float64)
    bend = _second_differences(places)
    roughness = (torch.kron(bend.T @ bend, torch.eye(knots)) + torch.kron(torch.eye(knots), bend.T @ bend)) / _BEND**2
    factor = torch.linalg.cholesky(count / 2 * make_payload.T @ make_payload + roughness)
    table: Tensor = torch.linalg.lstsq(make_payload, observed.log()[:, None]).solution
    for _ in range(_MOST_STEPS):
        surprise = (observed / (make_payload @ table)[:, 0].exp() - 1).clamp(max=10)
        gradient = count / 2 * (make_payload.T @ surprise)[:, None] - roughness @ table
        step = torch.cholesky_solve(gradient, factor)
        table = table + step
        if float(step.abs().max()) < 1e-8:
            break
    return table.view(knots, knots)


def fit_ellipses(masks: Tensor) -> dict[str, Any]:
    """Centred ellipses with the areas, shapes and places of subjects, see `statistics.Ellipses`.

    Args:
        masks: Shape (N, 1, H, W), values 0 and 1.
    """
    area = masks.mean(dim=(1, 2, 3))
    low, high = (float(torch.quantile(area, at)) for at in (0.02, 0.98))
    x, y = ((torch.arange(n) + 0.5) / n - 0.5 for n in (masks.shape[-1], masks.shape[-2]))
    place = torch.stack([(masks * c).mean(dim=(1, 2, 3)) / area for c in (x, y[:, None])])
    across = [x - place[0][:, None, None, None], y[:, None] - place[1][:, None, None, None]]
    xx, yy, xy = (
        (masks * a * b).mean(dim=(1, 2, 3)) / area
        for a, b in ((across[0], across[0]), (across[1], across[1]), (across[0], across[1]))
    )
    root = ((xx - yy) ** 2 + 4 * xy**2).sqrt()
    ratio = ((xx + yy + root) / (xx + yy - root)).log() / 2
    return {
        "share": [round(low, 3), round(high, 3)],
        "skew": round((high - low) / max(float(area.mean()) - low, 1e-3) - 1, 3),
        "shape_std": round(float(ratio.square().mean().sqrt()), 3),
        "place_std": round(float(place.square().mean().sqrt()), 3),
    }


def _section(photographs: Mapping[int, Tensor], colour: Tensor, grid: int) -> dict[str, Any]:
    """Mean, spectra and spread of contrast of one kind of images."""
    finest = max(photographs)
    spectra, spreads = {}, []
    for size, images in sorted(photographs.items()):
        coefficients = analyse(images, images.mean(dim=0), colour)
        energy = coefficients.square().mean(dim=0)
        tables = torch.stack([fit_spectrum(channel, len(images)) for channel in energy])
        spectra[str(size)] = _rounded(tables, 2)
        weight = between_knots(torch.arange(size), size)
        variance = (weight @ tables @ weight.T).exp().float()
        for noise in _NOISES:
            share = water_filling(variance, noise, 1.0) / variance
            spreads.append(float((coefficients.square() * share).sum(dim=(1, 2, 3)).log().std()))
    return {
        "mean": _rounded(fit_mean(photographs[finest], grid), 3),
        "log_contrast_std": round(sum(spreads) / len(spreads), 3),
        "log_variance": spectra,
    }


def _second_differences(places: Tensor) -> Tensor:
    """Change of slope at every inner knot, as a matrix of shape (K − 2, K)."""
    slope = torch.diff(torch.eye(len(places), dtype=torch.float64), dim=0) / torch.diff(places)[:, None]
    return torch.diff(slope, dim=0)


def _rounded(values: Tensor, digits: int) -> list[Any] | float:
    return [_rounded(part, digits) for part in values] if values.dim() else round(float(values), digits)
