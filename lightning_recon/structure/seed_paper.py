# SPDX-License-Identifier: Apache-2.0
"""The structure of the seed paper, rebuilt from its description, with two necessary corrections."""

import math

import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor

from lightning_recon.errors import UserError
from lightning_recon.exchange import ClientUpdate, ServerPayload, Task
from lightning_recon.priors.image_statistics import PublicStatistics, public_statistics
from lightning_recon.ranges import COUNT, PROBABILITY, SIZE, check_ranges
from lightning_recon.structure.base import Decoded, Structure
from lightning_recon.structure.coding.leaked_moments import MOMENTS
from lightning_recon.structure.loss_weights import fixed_code
from lightning_recon.structure.mean_image_fallback import beats_mean_image
from lightning_recon.structure.refinement import LeakedMoments

_WEIGHT, _WEIGHT_SIZE = 1e-5, 224  # brightness weight, and the image size it was chosen for
_LAPLACE = stats.laplace(loc=0.003, scale=0.003 / math.sqrt(2))
_COPIES, _BIAS_INPUTS = 100, 500
_CONFIDENCE = 0.99


class SeedPaper(Structure):
    """The seed paper's attack: brightness units, artificial zero gradients, interval filter.

    One fully connected unit per brightness interval; a 1 x 1 convolution copies the image and adds three all-zero
    channels whose gradients are pure noise; a layer of 500 inputs, 100 of them 1, carries copies of δ. Row = δ · x, so
    the image is row / δ; pixels inside the confidence interval of the noise are set to 0. Optionally the layer measures
    an image that is average-pooled to k² times fewer pixels, and the server enlarges what it decodes by interpolation:
    each input then gets a larger share of the clipping norm, and details finer than the pooling are lost.

    Two corrections make it a fair baseline: the head has class-dependent weights (with equal ones the true gradient is
    zero) and the thresholds are 100 times the quantiles (the bias layer adds up 100 inputs of 1).

    Source: You, Dong, Li, Liu, Ma, Shen (IEEE TIFS 20, 2025), section IV and the released example. The fallback to the
    mean image is ours.
    """

    def __init__(
        self,
        units: int = 1024,
        interval_filter: bool = True,
        moments: bool = False,
        subjects: bool | None = None,
        false_alarm: float = 0.01,
        statistics: str | None = None,
        pooling: int = 1,
        fallback: bool = True,
    ) -> None:
        """Choose the variant; the defaults are those of the paper, except for `fallback`.

        Args:
            units: Rows of the structure (K), one brightness interval each.
            interval_filter: Whether pixels inside the 99 % interval of the noise are set to 0.
            moments: Whether mean, variance and total variation of each channel leak too, for refinement.
            subjects: Whether the server expects clients to cut the subject out on black; only chooses the best estimate
                for a victim without a row, the public mean image. Default: as the task announces; subjects where it
                does not.
            false_alarm: Probability that a batch of empty rows shows a victim, in (0, 1); rows are chosen without an
                oracle.
            statistics: File of public statistics, as `scripts/fit_statistics.py` writes it. Default: the bundled ones.
            pooling: The layer measures averages over k x k pixels, and the server interpolates; 1: all pixels.
                Must divide the image size. The more noise, the larger the best one.
            fallback: Whether rows that are expected to be worse than the public mean image, because of their noise,
                are left out: their victims then get the mean image. Not part of the published attack.
        """
        check_ranges(
            "--model.structure.",
            units=(units, SIZE),
            false_alarm=(false_alarm, PROBABILITY),
            pooling=(pooling, COUNT),
        )
        self.units = units
        self.interval_filter = interval_filter
        self.moments = moments
        self.subjects = subjects
        self.statistics_file = statistics
        self.false_alarm = false_alarm
        self.pooling = pooling
        self.fallback = fallback

    @property
    def name(self) -> str:
        """Name of the attack in `results.json`."""
        return "paper"

    def statistics(self, task: Task) -> PublicStatistics:
        """The public mean image; the decoding itself uses no statistics, except where to fall back to that image."""
        return self._statistics(task, *task.image_shape[1:])

    def payload(self, task: Task) -> ServerPayload:
        """The structure with brightness weights and Laplace thresholds."""
        height, width = self._pooled(task)
        channels = task.image_shape[0]
        pixels = channels * height * width
        share = torch.arange(1, self.units + 1, dtype=torch.float64) / (self.units + 1)
        lower = torch.from_numpy(_LAPLACE.ppf(share.numpy())).float() * _COPIES
        bias = torch.zeros(_BIAS_INPUTS)
        bias[:_COPIES] = 1.0
        moments = len(MOMENTS) * channels if self.moments else 0
        return ServerPayload(
            settings={
                "pixels": True,
                "cancel": False,
                # An image has k times the norm of its averages: with it the gradient still exceeds the clipping norm.
                "strength": float(self.pooling),
                "target_scale": 0.0,
                "moments": self.moments,
                "pooling": self.pooling,
            },
            tensors={
                "mean": torch.zeros(channels, height, width),
                "colour": torch.eye(channels),
                "index": torch.arange(pixels),
                "gain": torch.ones(pixels),
                "constants": torch.zeros(pixels),
                # At another size the weight is scaled so that equal brightness meets equal thresholds.
                "directions": torch.nn.functional.pad(
                    torch.full((1, pixels), _WEIGHT * _WEIGHT_SIZE**2 / (height * width) * 3 / channels), (0, moments)
                ),
                "unit_direction": torch.zeros(self.units, dtype=torch.int64),
                "lower": lower,
                "upper": torch.cat([lower[1:], torch.tensor([torch.inf])]),
                "code": fixed_code(task.loss, task.num_classes),
                "bias_constants": bias,
            },
        )

    def decode(self, payload: ServerPayload, task: Task, update: ClientUpdate) -> Decoded:
        """Choose rows by their δ, divide, and filter.

        Args:
            payload: What was shipped.
            task: What was announced.
            update: Privatised, or the mean of several such; "structure.bias" (K, 500) and the chosen rows of
                "structure.weight" are read.

        Returns:
            The images, largest gradient weight first.
        """
        pixels = payload.tensors["index"].numel()
        bias, weight = update.gradient["structure.bias"], update.gradient["structure.weight"]
        weights = bias[:, :_COPIES].mean(dim=1)
        noise = half_normal_std(bias[:, _COPIES:])
        threshold = stats.norm.isf(self.false_alarm / (2 * self.units)) * noise / math.sqrt(_COPIES)
        strongest = weights.abs().argsort(descending=True)[: task.victims]
        chosen = strongest[weights.abs()[strongest] > threshold]
        rows, weights = weight[chosen], weights[chosen, None]
        noise = half_normal_std(rows[:, -pixels:]) if len(rows) else noise
        ratio = self._usual_ratio(task) if task.per_layer and task.max_grad_norm is not None else 1.0
        images, std = ratio * (rows[:, :pixels] / weights), ratio * (noise / weights.abs())
        values = ratio * rows[:, pixels:-pixels] / weights
        if self.fallback:
            statistics, weight_std = self.statistics(task), std.flatten() / math.sqrt(_COPIES)
            kept = beats_mean_image(statistics, std.flatten(), weight_std, self._finished, self.pooling)
            images, std, values = images[kept], std[kept], values[kept]
        leaked = LeakedMoments(values.view(-1, len(MOMENTS), task.image_shape[0])) if self.moments else None
        return Decoded(
            images=self._finished(images.view(-1, task.image_shape[0], *self._pooled(task)), std[..., None, None]),
            unresolved=0,
            rows={"structure.bias": None, "structure.weight": chosen},
            refinement=leaked,
        )

    def _statistics(self, task: Task, height: int, width: int) -> PublicStatistics:
        """Public statistics at any size."""
        subjects = task.expects_subjects(self.subjects, otherwise=True)
        return public_statistics(height, width, subjects, self.statistics_file, task.image_shape[0])

    def _pooled(self, task: Task) -> tuple[int, int]:
        """Height and width of the image that the layer measures."""
        _, height, width = task.image_shape
        if height % self.pooling or width % self.pooling:
            raise UserError(
                f"--model.structure.pooling is {self.pooling}, which does not divide the image size of {height} x "
                f"{width} pixels"
            )
        return height // self.pooling, width // self.pooling

    def _finished(self, noisy: Tensor, std: Tensor) -> Tensor:
        """Filter divided rows, and enlarge them to images.

        Args:
            noisy: Shape (M, C, h, w).
            std: Standard deviation of their noise, shape (M, 1, 1, 1).

        Returns:
            Shape (M, C, H, W), values in [0, 1].
        """
        images = interval_filtered(noisy, std) if self.interval_filter else noisy
        if self.pooling > 1:
            images = F.interpolate(images, scale_factor=self.pooling, mode="bilinear")
        return images.clamp(0, 1)

    def _usual_ratio(self, task: Task) -> float:
        """Factor by which per-layer clipping shrinks the weight more than the bias, for photographs in general.

        Both are released with the same norm: the bias holds δ in 100 copies, the weight δ times the image.
        """
        statistics = self._statistics(task, *self._pooled(task))
        energy = float(statistics.mean.double().square().sum() + statistics.variance.double().sum())
        return math.sqrt(energy / _COPIES)


def half_normal_std(noise: Tensor) -> float:
    """Standard deviation of centred Gaussian noise from its negative half, any shape; 0 if nothing is negative.

    Source: the mean of |n| is σ √(2/π); You et al. (2025), noise estimate from the artificial zero gradients.
    """
    negative = noise[noise < 0]
    return float(-negative.mean()) * math.sqrt(math.pi / 2) if negative.numel() else 0.0


def interval_filtered(images: Tensor, std: Tensor) -> Tensor:
    """Set pixels that noise alone explains to 0.

    Args:
        images: Shape (M, ...).
        std: Noise standard deviation of each image's pixels, of as many dimensions as the images.

    Returns:
        Shape (M, ...): pixels within the 99 % interval of the noise are 0.
    """
    reach = float(stats.norm.isf((1 - _CONFIDENCE) / 2))
    return torch.where(images.abs() <= reach * std, 0.0, images)
