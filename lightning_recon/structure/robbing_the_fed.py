# SPDX-License-Identifier: Apache-2.0
"""Robbing the Fed: brightness bins, each of which one image activates alone, or of which neighbours are subtracted."""

import math
from typing import Literal

import torch
from scipy import stats
from torch import Tensor

from lightning_recon.exchange import ClientUpdate, ServerPayload, Task
from lightning_recon.priors.image_statistics import PublicStatistics, public_statistics, synthetic_images
from lightning_recon.ranges import PROBABILITY, SIZE, check_ranges
from lightning_recon.structure.base import Decoded, Structure
from lightning_recon.structure.loss_weights import fixed_code
from lightning_recon.structure.mean_image_fallback import beats_mean_image

# A structure without a cancelling copy must not move the logits, or half of the victims' δ vanish: small weights and a
# large factor of the head.
STRENGTH, FOOTPRINT = 1e3, 0.01
_SYNTHETIC_COUNT, _SYNTHETIC_SIZE = 4096, 32
# Below every brightness, so that all images activate the first bin; and above it, which ends the last sparse bin.
_BELOW_BLACK, _ABOVE_WHITE = -1.0, 2.0
# float32 sums over a batch leave this share of the largest gradient weight in rows that no victim activates.
_ROUNDING = 1e-5


class RobbingTheFed(Structure):
    """Robbing the Fed: units that all measure brightness, each with a higher threshold than the one before.

    In the sparse variant a unit is a clamp (hard tanh), which is flat below its own threshold and above the next one:
    an image activates only the unit of its own bin, and that unit's row holds δ · x, its bias δ. In the cumulative
    variant a unit is a ReLU, and an image activates every unit whose threshold it exceeds, so that the difference of
    neighbouring rows and biases holds the images between their thresholds. Then every victim takes its part of the
    clipping norm once for each of these rows, and the difference carries the noise of two rows: under clipping and
    noise the cumulative variant is far weaker. The sparse variant also works over several local steps, because a step
    moves only the rows of the images that it has seen, and these rows then measure nothing else.

    Corrections, as for the seed paper: a head with class-dependent weights beside the network, and weights so small
    that the logits hardly move. The bias is the weight of an input that is always 1.

    Source: Fowl, Geiping, Czaja, Goldblum, Goldstein (ICLR 2022, arXiv 2110.13057), both variants; row selection
    "upstream" is that of its public implementation. The fallback to the mean image is ours.
    """

    def __init__(
        self,
        units: int = 128,
        row_selection: Literal["upstream", "noise_aware"] = "noise_aware",
        subjects: bool | None = None,
        false_alarm: float = 0.01,
        statistics: str | None = None,
        variant: Literal["sparse", "cumulative"] = "sparse",
        fallback: bool = True,
    ) -> None:
        """Choose the variant. As published: `fallback` false, and row selection "upstream".

        Args:
            units: Bins (K), one row each. More bins isolate more victims. In the cumulative variant every row below a
                victim's own repeats the victim, at the expense of the clipping budget. The public implementation's
                default is 64.
            row_selection: Which rows are decoded as images. "upstream": among those whose bias is not exactly 0, the B
                with the smallest norm, which under noise are the emptiest. "noise_aware": the B with the largest bias
                magnitude, among those that exceed the noise threshold.
            subjects: Whether the server expects clients to cut the subject out on black. Default: as the task
                announces; subjects where it does not.
            false_alarm: Probability that a batch of empty rows shows a victim, in (0, 1); unused by "upstream".
            statistics: File of public statistics, as `scripts/fit_statistics.py` writes it. Default: the bundled ones.
            variant: "sparse": an image activates the unit of its own bin only. "cumulative": it activates the units of
                all lower bins too, and neighbouring rows are subtracted.
            fallback: Whether rows that are expected to be worse than the public mean image, because of their noise,
                are left out: their victims then get the mean image. Not part of the published attack.
        """
        check_ranges("--model.structure.", units=(units, SIZE), false_alarm=(false_alarm, PROBABILITY))
        self.units = units
        self.variant = variant
        self.fallback = fallback
        self.row_selection = row_selection
        self.subjects = subjects
        self.statistics_file = statistics
        self.false_alarm = false_alarm

    @property
    def name(self) -> str:
        """Name of the attack in `results.json`."""
        return "robbing_the_fed"

    def statistics(self, task: Task) -> PublicStatistics:
        """Public statistics, for the thresholds and as the estimate of a victim without a row."""
        subjects = task.expects_subjects(self.subjects, otherwise=True)
        return public_statistics(*task.image_shape[1:], subjects, self.statistics_file, task.image_shape[0])

    def payload(self, task: Task) -> ServerPayload:
        """Thresholds at the quantiles of a normal distribution fitted to the brightness of public images."""
        brightness = synthetic_images(self.statistics(task), _SYNTHETIC_COUNT, _SYNTHETIC_SIZE).mean(dim=(1, 2, 3))
        law = stats.norm(float(brightness.mean()), float(brightness.std()))
        quantiles = torch.from_numpy(law.ppf(torch.arange(1, self.units).numpy() / self.units)).float()
        weight = FOOTPRINT / (STRENGTH * self.units)
        pixels = math.prod(task.image_shape)
        upper = {"upper": torch.cat([quantiles, torch.tensor([_ABOVE_WHITE])]) * weight}
        return relu_payload(
            task,
            settings={},
            tensors={
                "directions": torch.full((1, pixels), weight / pixels),
                "unit_direction": torch.zeros(self.units, dtype=torch.int64),
                "lower": torch.cat([torch.tensor([_BELOW_BLACK]), quantiles]) * weight,
                **(upper if self.variant == "sparse" else {}),
            },
        )

    def decode(self, payload: ServerPayload, task: Task, update: ClientUpdate) -> Decoded:
        """Subtract neighbouring rows of the cumulative variant, choose some, divide.

        Args:
            payload: What was shipped.
            task: What was announced.
            update: Privatised, or the mean of several such; "structure.weight" (K, pixels + 1) is read.

        Returns:
            The images.
        """
        weight = update.gradient["structure.weight"]
        rows, spread = weight, torch.ones(len(weight))
        if self.variant == "cumulative":
            rows = weight.clone()
            rows[:-1] -= weight[1:]
            # A difference carries the noise of two rows; the last row is its own.
            spread[:-1] = math.sqrt(2)
        inputs, weights = rows[:, :-1], rows[:, -1]
        if self.row_selection == "upstream":
            present = weights.nonzero().flatten()
            chosen = present[inputs[present].norm(dim=1).argsort()[: task.victims]]
        else:
            detected = rows_above_noise(inputs / spread[:, None], weights / spread, self.false_alarm)
            chosen = detected[: task.victims]
        if self.fallback:
            noise = spread[chosen] * lowest_row_std(inputs / spread[:, None])
            chosen = chosen[worth_showing(self.statistics(task), noise / weights[chosen].abs())]
        images = (inputs[chosen] / weights[chosen, None]).view(-1, *task.image_shape).clamp(0, 1)
        return Decoded(images, unresolved=0, rows={"structure.weight": None})


def worth_showing(statistics: PublicStatistics, std: Tensor, tries: int = 1, mixed: int = 1) -> Tensor:
    """Which rows are expected to beat the public mean image once they are divided by their bias and clamped.

    Args:
        statistics: What is public about the images.
        std: Standard deviation of the noise of each row, divided by its bias, shape (M,).
        tries: Among how many rows of the same victim each was chosen.
        mixed: How many victims activate a row.

    Returns:
        Shape (M,), bool.
    """
    return beats_mean_image(statistics, std, std, lambda noisy, _: noisy.clamp(0, 1), tries=tries, mixed=mixed)


def relu_payload(
    task: Task, settings: dict[str, bool | int | float | str], tensors: dict[str, Tensor]
) -> ServerPayload:
    """A structure of ReLU units, or of clamps, over the pixels and an input that is always 1.

    Args:
        task: What was announced.
        settings: What else to set: how to make the weights, if `tensors` has no directions.
        tensors: The units' weights, and "lower", shape (K,): the thresholds; optional "upper", above which a unit is
            flat.
    """
    pixels = math.prod(task.image_shape)
    return ServerPayload(
        settings={"pixels": True, "cancel": False, "strength": STRENGTH, "target_scale": 1.0, **settings},
        tensors={
            "mean": torch.zeros(task.image_shape),
            "colour": torch.eye(3),
            "index": torch.arange(pixels),
            "gain": torch.ones(pixels),
            "constants": torch.ones(1),
            "upper": torch.full_like(tensors["lower"], torch.inf),
            "code": fixed_code(task.loss, task.num_classes),
            **tensors,
        },
    )


def rows_above_noise(inputs: Tensor, weights: Tensor, false_alarm: float) -> Tensor:
    """Rows whose bias the noise does not explain, the largest first.

    Args:
        inputs: Shape (K, pixels): the rows, of equal noise.
        weights: Shape (K,): their biases, of the same noise.
        false_alarm: Probability that K empty rows show any, in (0, 1).

    Returns:
        Indices, int64.
    """
    # NaN marks rows that a recording left out; at any level the test below is false for them.
    noise = max(lowest_row_std(inputs), _ROUNDING * float(weights.nan_to_num().abs().max()))
    threshold = float(stats.norm.isf(false_alarm / (2 * len(weights)))) * noise
    strongest = weights.abs().argsort(descending=True)
    return strongest[weights.abs()[strongest] > threshold]


def lowest_row_std(inputs: Tensor) -> float:
    """Noise standard deviation from the weakest of many rows, of which at least one should be empty.

    Args:
        inputs: Shape (K, pixels).

    Returns:
        Root mean square of the weakest row, corrected for being the weakest of K.
    """
    lowest = float(inputs.norm(dim=1).nan_to_num(torch.inf).min()) / math.sqrt(inputs.shape[1])
    # The root mean square of n normals scatters by 1/√(2n); this is the median of the lowest of K of them.
    reach = float(stats.norm.isf(1 - 0.5 ** (1 / len(inputs)))) / math.sqrt(2 * inputs.shape[1])
    return lowest / (1 - min(reach, 0.5))
