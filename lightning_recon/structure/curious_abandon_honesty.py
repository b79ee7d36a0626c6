# SPDX-License-Identifier: Apache-2.0
"""When the Curious Abandon Honesty: random trap weights, each of which few images activate."""

import math

import torch
from scipy import stats
from torch import Tensor

from lightning_recon.exchange import ClientUpdate, ServerPayload, Task
from lightning_recon.priors.image_statistics import PublicStatistics, public_statistics, synthetic_images
from lightning_recon.ranges import PROBABILITY, SIZE, check_ranges
from lightning_recon.structure.base import Decoded, Structure
from lightning_recon.structure.coding.trap_weights import TrapRecipe
from lightning_recon.structure.robbing_the_fed import (
    FOOTPRINT,
    STRENGTH,
    lowest_row_std,
    relu_payload,
    rows_above_noise,
    worth_showing,
)

_SEED = 4
_SYNTHETIC_COUNT, _SYNTHETIC_SIZE = 1024, 32
_HALF_NORMAL_MEAN = math.sqrt(2 / math.pi)
# Victims that activate a unit, on average. At 1 most units are activated by a single victim, but hardly any by a bright
# one: at 2 more victims are alone in some unit.
_ACTIVE_VICTIMS = 2.0
_MOST_OFTEN = 0.25
# A candidate must add this share of its energy to the images chosen before, and this many standard deviations of what
# noise adds: less is a mixture, or the same image again.
_NEW = 1e-4
_REACH = 4.0


class CuriousAbandonHonesty(Structure):
    """When the Curious Abandon Honesty: ReLU units with random weights that hardly any image excites.

    A unit that one image excites alone has δ · x for its row and δ for its bias. Unlike bins, units see victims
    several times and in mixtures. The published attack reports every row; here as many as the batch holds are chosen
    without an oracle. Mixtures of biases of the same sign lie between their images and mixtures of opposite
    signs leave [0, 1]: so decoding drops the latter and picks the corners of what remains.

    Corrections, as for the seed paper: a head with class-dependent weights beside the network, and weights so small
    that the logits hardly move. The bias is the weight of an input that is always 1.

    Source: Boenisch, Dziedzic, Schuster, Shahin Shamsabadi, Shumailov, Papernot (EuroS&P 2023, arXiv 2112.02918);
    corners by successive projection, Gillis & Vavasis (2014). The fallback to the mean image is ours.
    """

    def __init__(
        self,
        units: int = 1000,
        scaling: float | None = None,
        subjects: bool | None = None,
        false_alarm: float = 0.01,
        statistics: str | None = None,
        fallback: bool = True,
    ) -> None:
        """Choose the variant.

        Args:
            units: Rows of the structure (K), among which the clipping norm is divided: fewer carry less noise each, and
                isolate fewer victims. Their weights are a recipe on the wire, their gradients 0.6 GB of upload at
                224 x 224.
            scaling: By what the positive half of the weights is scaled, in (0, 1). Default: what lets a typical public
                image excite two units in B, where the most victims are alone in some unit.
            subjects: Whether the server expects clients to cut the subject out on black. Default: as the task
                announces; subjects where it does not.
            false_alarm: Probability that a batch of empty rows shows a victim, in (0, 1).
            statistics: File of public statistics, as `scripts/fit_statistics.py` writes it. Default: the bundled ones.
            fallback: Whether rows that are expected to be worse than the public mean image, because of their noise,
                are left out: their victims then get the mean image. Not part of the published attack.
        """
        check_ranges(
            "--model.structure.",
            units=(units, SIZE),
            scaling=(scaling, PROBABILITY),
            false_alarm=(false_alarm, PROBABILITY),
        )
        self.units = units
        self.scaling = scaling
        self.subjects = subjects
        self.statistics_file = statistics
        self.false_alarm = false_alarm
        self.fallback = fallback

    @property
    def name(self) -> str:
        """Name of the attack in `results.json`."""
        return "curious_abandon_honesty"

    def statistics(self, task: Task) -> PublicStatistics:
        """Public statistics, for the scaling and as the estimate of a victim without a row."""
        subjects = task.expects_subjects(self.subjects, otherwise=True)
        return public_statistics(*task.image_shape[1:], subjects, self.statistics_file, task.image_shape[0])

    def payload(self, task: Task) -> ServerPayload:
        """The recipe of the weights; thresholds are 0."""
        pixels = math.prod(task.image_shape)
        scaling = self.scaling
        if scaling is None:
            scaling = typical_scaling(self.statistics(task), pixels, min(_MOST_OFTEN, _ACTIVE_VICTIMS / task.victims))
        return relu_payload(
            task,
            settings=TrapRecipe(scaling, FOOTPRINT / (STRENGTH * self.units * math.sqrt(pixels)), _SEED).settings(),
            tensors={"lower": torch.zeros(self.units)},
        )

    def decode(self, payload: ServerPayload, task: Task, update: ClientUpdate) -> Decoded:
        """Divide the rows that the noise does not explain, and choose among the images.

        Args:
            payload: What was shipped.
            task: What was announced.
            update: Privatised, or the mean of several such; "structure.weight" (K, pixels + 1) is read.

        Returns:
            The images.
        """
        weight = update.gradient["structure.weight"]
        inputs, biases = weight[:, :-1], weight[:, -1]
        detected = rows_above_noise(inputs, biases, self.false_alarm)
        noise = lowest_row_std(inputs) / biases[detected].abs()
        picked = corners(inputs[detected] / biases[detected, None], noise, task.victims)
        chosen = detected[picked]
        # The noise is estimated from the row of least energy, so a recording must keep it too.
        weakest = inputs.norm(dim=1).nan_to_num(torch.inf).argmin()[None]
        kept = torch.cat([chosen, weakest])
        if self.fallback:
            tries = max(1, len(detected) // max(1, len(chosen)))
            mixed = min(task.victims, round(_ACTIVE_VICTIMS))
            chosen = chosen[worth_showing(self.statistics(task), noise[picked], tries, mixed)]
        images = (inputs[chosen] / biases[chosen, None]).view(-1, *task.image_shape).clamp(0, 1)
        return Decoded(images, unresolved=0, rows={"structure.weight": kept})


def typical_scaling(statistics: PublicStatistics, pixels: int, rate: float) -> float:
    """Scaling at which the median public image excites a unit with probability `rate`.

    For magnitudes |n| of deviation 1, and s near 1, an image x of N numbers measures −(1 − s) √(2/π) Σx/2 on average
    over units. Its contrast Σ(x − x̄)² adds to the variance in full; its brightness N x̄² adds only 1 − 2/π of itself,
    because equally many weights of either sign leave nothing but magnitudes to chance.

    Args:
        statistics: What is public about the images.
        pixels: Numbers in an image.
        rate: Probability, in (0, 1/2).
    """
    images = synthetic_images(statistics, _SYNTHETIC_COUNT, _SYNTHETIC_SIZE).flatten(1)
    brightness, contrast = images.mean(dim=1), images.var(dim=1)
    ratio = math.sqrt(pixels) * brightness / (contrast + (1 - 2 / math.pi) * brightness**2).sqrt()
    return 1 - float(stats.norm.isf(rate)) / (_HALF_NORMAL_MEAN / 2 * float(ratio.median()))


def corners(images: Tensor, noise: Tensor, count: int) -> Tensor:
    """The noisy images of which the others are mixtures.

    Each step takes the image with the most energy that the ones before do not explain, and projects it out of all
    the others (in a matrix of inner products: a pivoted Cholesky factorisation).

    Args:
        images: Shape (M, pixels).
        noise: Shape (M,): standard deviation of the noise on each image's pixels.
        count: How many to choose at most.

    Returns:
        Indices, int64, in the order of choice.

    Source: successive projection, Gillis & Vavasis (IEEE TPAMI 36, 2014), with the noise's energy taken off.
    """
    outside = (images - images.clamp(0, 1)).square().mean(dim=1)
    # Noise takes a black or a white pixel out of [0, 1] half of the time.
    possible = outside <= noise**2 / 2 + 1e-6
    inner, variance = (images @ images.T).double(), noise.double() ** 2
    inner -= (images.shape[1] * variance).diag()
    energy = inner.diagonal().clamp(min=0)
    least = _NEW * energy + _REACH * (2 * variance * (images.shape[1] / 2 * variance + energy)).sqrt()
    chosen: list[int] = []
    for _ in range(count):
        energy = torch.where(possible & (inner.diagonal() > least), inner.diagonal(), 0.0)
        if not bool(energy.any()):
            break
        pick = int(energy.argmax())
        chosen.append(pick)
        inner -= torch.outer(inner[pick], inner[pick]) / inner[pick, pick]
        possible[pick] = False
    return torch.tensor(chosen, dtype=torch.int64)
