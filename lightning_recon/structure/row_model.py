# SPDX-License-Identifier: Apache-2.0
"""The prior of a linear code's rows, and the posterior of image coefficients given the decoded rows."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from lightning_recon.exchange import ServerPayload, Task
from lightning_recon.priors.dct import CosineTransform
from lightning_recon.priors.image_statistics import PublicStatistics
from lightning_recon.structure.detection.bayes_factors import Rows
from lightning_recon.structure.detection.separation import Separation
from lightning_recon.structure.detection.wiener import RowPosterior, RowPrior
from lightning_recon.structure.layer_spec import LayerSpec
from lightning_recon.structure.local_weights import local_weights
from lightning_recon.structure.readout import l1_clipped
from lightning_recon.structure.refinement import Posterior

# Spread of log S when one clip covers the batch: caused by the gradient norms of the other victims and of this one.
# Under an L1 clip it covers that the ratio of a row's two norms differs between images, too.
_LOG_SCALE_STD = 0.4


def budget_sharers(task: Task) -> int:
    """Number of victims that share one clipping budget; without a clip, the norm of the update takes its place."""
    return task.victims if task.max_grad_norm is None else task.sharers


def energy_is_known(task: Task) -> bool:
    """Whether the energy of a victim's rows follows from the clip: a Euclidean clip that no other victim shares.

    Local training must give all victims the same weight, too.
    """
    return budget_sharers(task) == 1 and not l1_clipped(task) and local_weights(task).spread == 0


def mean_shift(payload: ServerPayload, statistics: PublicStatistics) -> Tensor | None:
    """Coefficients of the mean image relative to the one that was shipped, shape (C, H, W); None if it is the same."""
    shipped = payload.tensors["mean"]
    if torch.equal(shipped, statistics.mean):
        return None
    return CosineTransform(shipped, payload.tensors["colour"]).analyse(statistics.mean[None])[0]


def row_prior(payload: ServerPayload, task: Task, statistics: PublicStatistics) -> RowPrior:
    """The prior of a victim's row, without a digital code.

    Args:
        payload: What was shipped.
        task: What was announced.
        statistics: Public statistics of images: those that the payload was designed for, or others.
    """
    shipped, sharers, shift = payload.tensors, budget_sharers(task), mean_shift(payload, statistics)
    local = local_weights(task)
    prior = RowPrior(
        power=shipped["gain"] ** 2 * statistics.variance.flatten()[shipped["index"]],
        pilot_level=float(shipped["constants"][0]),
        log_contrast_std=statistics.log_contrast_std,
        scale=math.sqrt(len(shipped["directions"]) * sharers) / local.typical,
        log_scale_std=0.0 if energy_is_known(task) else math.hypot(_LOG_SCALE_STD, local.spread),
        mean=None if shift is None else shipped["gain"] * shift.flatten()[shipped["index"]],
    )
    if prior.mean is None or energy_is_known(task):
        return prior
    return replace(prior, scale=float(prior.scale_of(torch.ones(()))))


def with_sharers(prior: RowPrior, task: Task, images: int | None) -> RowPrior:
    """The prior where an update holds another number of images than announced, which share the clip.

    Args:
        prior: As announced.
        task: What was announced.
        images: Their number; None: as announced.
    """
    if images is None or prior.log_scale_std == 0:
        return prior
    ratio = images / task.victims
    return replace(prior, scale=prior.scale * (ratio if l1_clipped(task) else math.sqrt(ratio)))


def rows_of(inputs: Tensor, pilot: Tensor, noise: float, payload: ServerPayload) -> Rows:
    """Released rows together with the measurements of their units.

    Args:
        inputs: Shape (K, m), from `released_rows`.
        pilot: Shape (K,), likewise.
        noise: Standard deviation of every entry, with everything that counts as noise.
        payload: What was shipped.
    """
    shipped = payload.tensors
    lower, upper = shipped["lower"], shipped["upper"]
    if LayerSpec.of(payload).own_units:
        # The unit of an image may be any that was free, whatever the image measures.
        lower, upper = torch.full_like(lower, -torch.inf), torch.full_like(upper, torch.inf)
    return Rows(
        inputs=inputs,
        pilot=pilot,
        noise=noise,
        directions=shipped["directions"],
        unit_direction=shipped["unit_direction"],
        lower=lower,
        upper=upper,
    )


def combined_rows(rows: Rows, found: Separation) -> Iterator[tuple[Tensor, float, float]]:
    """Each victim's rows combined into one: its inputs, shape (m,), its pilot, and the noise of every entry."""
    inputs, pilots = found.combine.to(rows.inputs) @ rows.inputs, found.combine.to(rows.pilot) @ rows.pilot
    noises = rows.noise * found.combine.norm(dim=1)
    for row, pilot, noise in zip(inputs, pilots, noises, strict=True):
        yield row, float(pilot), float(noise)


def in_coefficients(
    decoded: list[RowPosterior],
    shipped: Mapping[str, Tensor],
    statistics: PublicStatistics,
    shift: Tensor | None = None,
) -> Posterior:
    """Undo the encoder's scaling; coefficients that were not sent keep their prior, at the contrast that was found.

    Args:
        decoded: The inputs of each image.
        shipped: Tensors of the payload.
        statistics: Public statistics under which they were decoded.
        shift: From `mean_shift`.

    Returns:
        In the coefficients of the shipped transform.
    """
    shape = (len(decoded), *statistics.variance.shape)
    prior = torch.stack([row.contrast * statistics.variance for row in decoded]) if decoded else torch.zeros(shape)
    centre = torch.zeros(shape) if shift is None else shift.expand(shape).clone()
    mean, variance = centre.flatten(1).clone(), prior.flatten(1).clone()
    for victim, row in enumerate(decoded):
        mean[victim, shipped["index"]] = row.inputs.cpu() / shipped["gain"]
        variance[victim, shipped["index"]] = row.variance.cpu() / shipped["gain"] ** 2
    # Nothing is known without any doubt, nor less than before: keeps every precision finite and non-negative.
    variance = variance.view(shape).clamp(min=1e-12 * prior, max=prior)
    return Posterior(mean.view(shape), variance, prior, centre)
