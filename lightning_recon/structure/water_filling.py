# SPDX-License-Identifier: Apache-2.0
"""Our structure: water-filled coefficients through gated, cancelling units, decoded without an oracle."""

import math
from copy import copy
from typing import Literal

import torch
from torch import Tensor

from lightning_recon.errors import UserError
from lightning_recon.exchange import ClientUpdate, ServerPayload, Task
from lightning_recon.priors.image_statistics import PublicStatistics, public_statistics
from lightning_recon.ranges import FRACTION, NOT_NEGATIVE, POSITIVE, PROBABILITY, SIZE, SIZE_OR_NONE, check_ranges
from lightning_recon.reconstruction import Mismatch
from lightning_recon.structure.base import Decoded, Structure, most_found
from lightning_recon.structure.clipping_budget import structure_share
from lightning_recon.structure.coding.gating import intervals, layout, measurement_directions, scale_down_measurements
from lightning_recon.structure.coding.hadamard_spreading import block_count, distortion
from lightning_recon.structure.coding.l1_budget import l1_power, norm_ratio
from lightning_recon.structure.coding.power_allocation import water_filling
from lightning_recon.structure.detection.hypotheses import likelier, subjects_evidence
from lightning_recon.structure.detection.separation import separate
from lightning_recon.structure.detection.wiener import decode_row
from lightning_recon.structure.head_weights import MAX_WEIGHT_RATIO
from lightning_recon.structure.layer_spec import LayerSpec
from lightning_recon.structure.local_weights import layer_settings, layer_tensors
from lightning_recon.structure.loss_weights import fixed_code, loss_settings
from lightning_recon.structure.readout import (
    budget_share,
    design_noise,
    l1_clipped,
    measured_multiplier,
    released_rows,
    weight_names,
)
from lightning_recon.structure.row_model import (
    combined_rows,
    energy_is_known,
    in_coefficients,
    mean_shift,
    row_prior,
    rows_of,
    with_sharers,
)
from lightning_recon.structure.sign_payload import SignDesign
from lightning_recon.structure.sign_readout import decode_signs
from lightning_recon.structure.sum_range import limited, sum_range

# Default of `strength`. A victim's gradient is strength · |δ| · ‖e‖, e its encoding, and is to exceed the clip for
# every victim: |δ| is 30 (1 − p) for an image that the network is sure of, so for a clip of 10 over 16 images this
# suffices down to 1 − p = 1e-11. The network's own gradient, where it is not detached, was up to 1e11 (RegNet-Y 400MF,
# batch normalisation over two numbers). More than about 1e14 would overflow a client's float32, in which norms are
# squared: |δ| is at most 60, and ‖e‖ was at most 60 for the most unusual images, 700 for pixels far outside of [0, 1].
STRENGTH = 1e12
# How far units without a cancelling copy may move the logits.
_FOOTPRINT = 0.01


class WaterFilling(Structure):
    """The noise-optimal linear structure.

    Each image is expressed in decorrelated cosine coefficients; each coefficient gets the share of the clipping
    budget that minimises the mean squared error at the announced noise; every unit is paired with a frozen copy of
    opposite sign, so the network's output does not change at all.

    Source: Lee & Petersen (1976) for the code; the combination is ours.
    """

    def __init__(
        self,
        subjects: bool | None = None,
        units: int | None = None,
        directions: int | None = None,
        pilot_power: float = 0.08,
        nulls: int = 256,
        strength: float = STRENGTH,
        assumed_noise: float | None = None,
        false_alarm: float = 0.01,
        spread: bool = True,
        head_weights: Literal["balanced", "fixed", "flattened"] = "balanced",
        power_allocation: Literal["water_filling", "flat"] = "water_filling",
        cancel: bool = True,
        statistics: str | None = None,
        detach_logits: bool = True,
    ) -> None:
        """Choose the server's parameters; the defaults need no tuning, the other values are for ablations.

        Args:
            subjects: Whether the server expects clients to cut the subject out on black. Default: as the task
                announces; whole photographs where it does not. The structure is designed for that, and the decoder
                takes the likelier of the two. With a setting it does not ask.
            units: Rows of the structure, shared among the directions. Default: 1 for a single image, else 8 a
                image and at least 64; eight times as many where high noise makes rows short, see `layout`. The
                upload grows with it. With a single unit for several images there is no gating: all collide.
            directions: Measurement directions; each image is measured once in each. Default: 3, which at random
                occupancy leaves about one victim in a thousand unresolved; 1 for a single unit, and where high noise
                makes rows short.
            pilot_power: Share of the power spent on the constant input that reveals scale and sign, in [0, 1). Without
                a pilot the sign stays unknown, and the mean over both signs is the mean image.
            nulls: Inputs that are always zero, from which the noise is measured. With 0 the announced noise is used.
            strength: Factor of the structure's gradient, with which it exceeds the clipping norm and the network's own
                gradient, whatever the network. Above 1e14 norms may overflow float32.
            assumed_noise: Noise multiplier of an update to design for. Default: the announced one.
            false_alarm: Probability that a batch of empty rows shows a victim, in (0, 1).
            spread: Whether to spread the rows over many tensors where each is clipped by itself, see `spreading`.
            head_weights: How the gradient weights of the victims are equalised. "balanced": head weights chosen for
                each image from the network's own logits, see `head_weights.py`. "fixed": the same ±1 weights for all
                images; victims that the network classifies confidently then get small gradients. "flattened": the
                network's logits are set to zero, which every client can notice.
            power_allocation: "water_filling", or "flat": the same power for every coefficient.
            cancel: Whether frozen copies cancel the structure's output exactly. Without them it moves the logits by up
                to 0.01, and images far outside of what is usual excite no unit.
            statistics: File of public statistics, as `scripts/fit_statistics.py` writes it. Default: the bundled ones.
            detach_logits: Whether the shipped model detaches the network's logits, so that the network's own gradient
                is exactly zero and the structure has the whole clipping budget. The output does not change, but a
                client can notice the zero gradients, see `lightning_recon.defense`.
        """
        check_ranges(
            "--model.structure.",
            units=(units, SIZE),
            directions=(directions, SIZE),
            pilot_power=(pilot_power, FRACTION),
            nulls=(nulls, SIZE_OR_NONE),
            strength=(strength, POSITIVE),
            assumed_noise=(assumed_noise, NOT_NEGATIVE),
            false_alarm=(false_alarm, PROBABILITY),
        )
        if pilot_power == 1:
            raise UserError("--model.structure.pilot_power is 1: leave the images a share of the power")
        if units is not None and directions is not None and units < directions:
            raise UserError(
                f"--model.structure.units is {units}, fewer than its {directions} directions: give each at least one"
            )
        self.subjects = subjects
        self.statistics_file = statistics
        self.units = units
        self.directions = directions
        self.pilot_power = pilot_power
        self.nulls = nulls
        self.strength = strength
        self.assumed_noise = assumed_noise
        self.false_alarm = false_alarm
        self.spread = spread
        self.head_weights = head_weights
        self.power_allocation = power_allocation
        self.cancel = cancel
        self.detach_logits = detach_logits

    @property
    def name(self) -> str:
        """Name of the attack in `results.json`."""
        return "water_filling"

    def statistics(self, task: Task) -> PublicStatistics:
        """Public statistics of images of the task's size."""
        channels, height, width = task.image_shape
        return public_statistics(height, width, task.expects_subjects(self.subjects), self.statistics_file, channels)

    def other_statistics(self, task: Task) -> PublicStatistics | None:
        """Statistics of the images under the hypothesis that was not announced; None if the server has a setting."""
        if self.subjects is not None:
            return None
        channels, height, width = task.image_shape
        return public_statistics(height, width, not task.expects_subjects(None), self.statistics_file, channels)

    def payload(self, task: Task) -> ServerPayload:
        """Design the structure from what was announced, and from public statistics."""
        if (weaker := self._pilot_within_sums(task)) < self.pilot_power:
            design = copy(self)
            design.pilot_power = weaker
            return design.payload(task)
        statistics = self.statistics(task)
        if self.cancel and (signs := self.sign_design().payload(task, statistics)) is not None:
            return signs
        effective, blocks = design_noise(task, self.assumed_noise) * math.sqrt(task.sharers / task.rounds), 1
        if l1_clipped(task):
            power, index = self._l1_code(statistics, task)
        else:
            if task.per_layer and self.spread:
                power, index = self._code(statistics, effective)
                blocks = block_count(task.parameter_tensors, self._with_pilot(power[index]), effective)
            power, index = self._code(statistics, effective / budget_share(task, blocks))
            power = self._within_sums(power, task, budget_share(task, blocks))
        sent = (power > 0).view_as(statistics.variance)
        gain = (power / statistics.variance.flatten()).sqrt()[index]
        units, count = layout(task.victims, len(index), sent.numel(), self.units, self.directions)
        if count > units:
            raise UserError(
                f"--model.structure.directions is {count}, more than the {units} units: lower it, or give more units"
            )
        directions = measurement_directions(statistics, count) * sent
        lower, upper, unit_direction = intervals(statistics, directions, units)
        if not self.cancel:
            footprint = _FOOTPRINT / (MAX_WEIGHT_RATIO if self.head_weights == "balanced" else 1.0)
            directions, lower, upper = scale_down_measurements(
                statistics, directions, lower, upper, footprint / self.strength
            )
        constants = torch.zeros(1 + self.nulls)
        constants[0] = math.sqrt(self.pilot_power)
        return ServerPayload(
            settings={
                "pixels": False,
                "cancel": self.cancel,
                **(layer_settings(task, self.strength) if self.cancel else {"strength": self.strength}),
                "target_scale": 0.0 if self.head_weights == "flattened" else 1.0,
                "balanced": self.head_weights == "balanced",
                **loss_settings(task),
                "blocks": blocks,
                "detach_logits": self.detach_logits,
                **({"norm_ratio": norm_ratio(power, self.pilot_power)} if l1_clipped(task) else {}),
            },
            tensors={
                "mean": statistics.mean,
                "colour": statistics.colour,
                "index": index,
                "gain": gain,
                "constants": constants,
                "directions": directions.flatten(1)[:, index] / gain,
                "unit_direction": unit_direction,
                "lower": lower,
                "upper": upper,
                "code": fixed_code(task.loss, task.num_classes),
                **(layer_tensors(task) if self.cancel else {}),
            },
        )

    def sign_design(self, margin_db: float | None = None, upload_limit: int = 123_000_000) -> SignDesign:
        """The same choices for clients that let little more than signs through, see `sign_payload`.

        Args:
            margin_db: Decibels by which the noise may exceed what a digital code is designed for; None: no such code.
            upload_limit: Most bytes that the structure may add to an upload.
        """
        return SignDesign(
            self.assumed_noise,
            self.units,
            self.directions,
            self.nulls,
            self.strength,
            self.head_weights == "balanced",
            self.detach_logits,
            margin_db,
            upload_limit,
        )

    def _code(self, statistics: PublicStatistics, noise: float) -> tuple[Tensor, Tensor]:
        """Power of every coefficient, shape (3 H W,), and which of them are sent, the strongest first."""
        variance, budget = statistics.variance.flatten(), 1 - self.pilot_power
        if self.power_allocation == "flat":
            power = torch.full_like(variance, budget / variance.numel())
        else:
            power = water_filling(variance, noise, budget)
        index = power.argsort(descending=True, stable=True)[: int((power > 0).sum())]
        return power, index

    def _l1_code(self, statistics: PublicStatistics, task: Task) -> tuple[Tensor, Tensor]:
        """The same under an L1 clip, of which the rows of every direction take their part."""
        noise = design_noise(task, self.assumed_noise) * task.sharers / math.sqrt(task.rounds) / budget_share(task, 1)
        flat, count = statistics.variance.flatten(), self.directions or 1
        while True:
            if self.power_allocation == "flat":
                power = torch.full_like(flat, (1 - self.pilot_power) / flat.numel())
            else:
                power = l1_power(flat, noise * math.sqrt(count), self.pilot_power)
            index = power.argsort(descending=True, stable=True)[: int((power > 0).sum())]
            found = layout(task.victims, len(index), flat.numel(), self.units, self.directions)[1]
            if found <= count:
                return power, index
            count = found

    def _row(self, task: Task, share: float) -> float:
        """Norm of a victim's row, divided by the clipping norm."""
        directions = 1 if task.victims == 1 else self.directions or 3
        return share / math.sqrt(directions * task.sharers)

    def _pilot_within_sums(self, task: Task) -> float:
        """Power of the pilot where no number of a sum of integers may exceed its range."""
        room = sum_range(task)
        if room is None or room.room <= 0:
            return self.pilot_power
        return min(self.pilot_power, room.pilot_limit(self._row(task, 1.0)))

    def _within_sums(self, power: Tensor, task: Task, share: float) -> Tensor:
        """Powers of the coefficients likewise: what is sent stays sent."""
        room = sum_range(task)
        return power if room is None or room.room <= 0 else limited(power, room.power_limit(self._row(task, share)))

    def _with_pilot(self, power: Tensor) -> Tensor:
        """The powers in the order in which the structure has its inputs."""
        return torch.cat([power, power.new_tensor([self.pilot_power])])

    def decode(self, payload: ServerPayload, task: Task, update: ClientUpdate) -> Decoded:
        """Estimate the noise, separate the victims, and decode each one's row.

        Args:
            payload: What was shipped.
            task: What was announced.
            update: Privatised, or the mean of several such; "structure.weight" of shape (K, m + 1 + nulls) is read.

        Returns:
            The images and their posterior.
        """
        if LayerSpec.of(payload).signs:
            return decode_signs(payload, task, update, self.statistics(task))
        statistics, level = self.statistics(task), float(payload.tensors["constants"][0])
        inputs, pilot, noise = released_rows(update, task, payload)
        prior = row_prior(payload, task, statistics)
        distorted = distortion(self._with_pilot(prior.power), len(weight_names(payload))) / prior.scale
        rows = rows_of(inputs, pilot, math.hypot(noise, distorted), payload)
        # Clipped alone, a victim has the whole budget, spread evenly over its rows.
        bound = 1 / len(payload.tensors["directions"]) if energy_is_known(task) else None
        limit = task.victims, self.false_alarm, bound, most_found(task)
        found = separate(rows, prior, *limit)
        other = self.other_statistics(task)
        images_shown = found.images_shown(task.victims)
        prior = with_sharers(prior, task, images_shown)
        combined = list(combined_rows(rows, found))
        decoded = [decode_row(*row, prior) for row in combined]
        if other is not None and found.evident and level > 0:
            evidence = subjects_evidence(combined, decoded, payload.tensors, statistics, other)
            if likelier(evidence, task.subjects is not None):
                statistics = other
                prior = row_prior(payload, task, other)
                found = separate(rows, prior.zero_mean, *limit)
                images_shown = found.images_shown(task.victims)
                prior = with_sharers(prior, task, images_shown)
                decoded = [decode_row(*row, prior) for row in combined_rows(rows, found)]
        shift = mean_shift(payload, statistics)
        posterior = in_coefficients(decoded, payload.tensors, statistics, shift)
        images = self.statistics(task).transform.synthesise(posterior.mean).clamp(0, 1)
        # Without a pilot both signs are equally likely, and their mean is no image.
        evident = found.evident and level > 0
        share = structure_share(inputs, pilot, noise, prior, task, payload, images_shown)
        rows_read = dict.fromkeys(weight_names(payload))
        multiplier = measured_multiplier(noise, task, payload)
        if shift is None:
            contradicted, mean_image = Mismatch(None, multiplier, images_shown), None
        else:
            contradicted, mean_image = Mismatch(statistics.subjects, multiplier, images_shown), statistics.mean
        return Decoded(
            images,
            found.unresolved,
            rows_read,
            posterior,
            evident=evident,
            share=share,
            mismatch=contradicted,
            mean_image=mean_image,
        )
