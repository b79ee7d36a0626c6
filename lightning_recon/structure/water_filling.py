# SPDX-License-Identifier: Apache-2.0
"""Our structure: water-filled coefficients through gated, cancelling units, decoded without an oracle."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from lightning_recon.errors import UserError
from lightning_recon.exchange import ClientUpdate, ServerPayload, Task
from lightning_recon.structure.decoding import RowPosterior, RowPrior, decode_row
from lightning_recon.structure.encoding import water_filling
from lightning_recon.structure.evidence import Rows
from lightning_recon.structure.gating import class_code, intervals, measurement_directions
from lightning_recon.structure.guess import Guess, Posterior
from lightning_recon.structure.release import released_rows
from lightning_recon.structure.separation import separate
from lightning_recon.structure.statistics import PublicStatistics, public_statistics
from lightning_recon.structure.transform import synthesise

# Spread of log S when one clip covers the batch: how loud the other victims are, and how loud this one.
_LOG_SCALE_STD = 0.4


class WaterFilling:
    """The noise-optimal linear structure.

    Each picture is expressed in decorrelated cosine coefficients; each coefficient gets the share of the clipping
    budget that minimises the mean squared error at the announced noise; every unit is paired with a frozen twin, so
    the network's output does not change at all.

    Source: Lee & Petersen (1976) for the code; the combination is ours.
    """

    def __init__(
        self,
        subjects: bool = False,
        units: int | None = None,
        directions: int | None = None,
        pilot_power: float = 0.08,
        nulls: int = 256,
        strength: float = 1e4,
        assumed_noise: float | None = None,
        false_alarm: float = 0.01,
    ) -> None:
        """Choose the server's parameters; the defaults need no tuning.

        Args:
            subjects: Whether the server expects clients to cut the subject out on black: public knowledge about their
                preprocessing.
            units: Rows of the structure, shared among the directions. Default: 1 for a single picture, else 8 a
                picture and at least 32; eight times as many where high noise makes rows short, see `layout`. The
                upload grows with it.
            directions: Measurement directions; every picture is heard once in each. Default: 3, which at random
                occupancy leaves about one victim in a thousand unresolved; 1 for a single unit, and where high noise
                makes rows short.
            pilot_power: Share of the power spent on the constant input that reveals scale and sign, in (0, 1).
            nulls: Inputs that are always zero, from which the noise is estimated; at least 1.
            strength: How much louder the structure is than the network, so that it takes the whole clipping budget.
            assumed_noise: Noise multiplier to design for. Default: the announced one.
            false_alarm: Probability that a batch of empty rows shows a victim, in (0, 1).
        """
        if nulls < 1:
            raise UserError(f"--model.structure.nulls is {nulls}: the noise is measured on at least one null input")
        for name, value in (("units", units), ("directions", directions)):
            if value is not None and value < 1:
                raise UserError(f"--model.structure.{name} is {value}: give at least 1, or leave it out")
        if units is not None and directions is not None and units < directions:
            raise UserError(
                f"--model.structure.units is {units}, fewer than its {directions} directions: give each at least one"
            )
        self.subjects = subjects
        self.units = units
        self.directions = directions
        self.pilot_power = pilot_power
        self.nulls = nulls
        self.strength = strength
        self.assumed_noise = assumed_noise
        self.false_alarm = false_alarm

    @property
    def name(self) -> str:
        """Name of the attack in `results.json`."""
        return "water_filling"

    def statistics(self, task: Task) -> PublicStatistics:
        """What the server takes for granted about pictures of the task's size."""
        return public_statistics(*task.image_shape[1:], self.subjects)

    def payload(self, task: Task) -> ServerPayload:
        """Design the structure from what was announced, and from public statistics."""
        statistics = self.statistics(task)
        noise = task.noise_multiplier if self.assumed_noise is None else self.assumed_noise
        sharers = task.batch_size if task.granularity == "update" else 1
        effective = noise * math.sqrt(sharers / task.rounds)
        power = water_filling(statistics.variance, effective, 1 - self.pilot_power)
        sent = power > 0
        gain = (power / statistics.variance).sqrt()[sent]
        units, count = layout(task.batch_size, int(sent.sum()), sent.numel())
        if self.units is not None or self.directions is not None:
            # What is given is kept; of the defaults, three directions suit any number of units.
            units = self.units or max(32, 8 * task.batch_size)
            count = self.directions or min(3, units)
        directions = measurement_directions(statistics, count) * sent
        lower, upper, unit_direction = intervals(statistics, directions, units)
        constants = torch.zeros(1 + self.nulls)
        constants[0] = math.sqrt(self.pilot_power)
        return ServerPayload(
            settings={"pixels": False, "cancel": True, "strength": self.strength, "target_scale": 1.0},
            tensors={
                "mean": statistics.mean,
                "colour": statistics.colour,
                "index": torch.nonzero(sent.flatten()).flatten(),
                "gain": gain,
                "constants": constants,
                "directions": directions[:, sent] / gain,
                "unit_direction": unit_direction,
                "lower": lower,
                "upper": upper,
                "code": class_code(task.num_classes),
            },
        )

    def decode(self, payload: ServerPayload, task: Task, update: ClientUpdate) -> Guess:
        """Estimate the noise, separate the victims, and decode each one's row.

        Args:
            payload: What was shipped.
            task: What was announced.
            update: Privatised, or the mean of several such; "structure.weight" of shape (K, m + 1 + nulls) is read.

        Returns:
            The pictures and their posterior.
        """
        statistics, shipped = self.statistics(task), payload.tensors
        inputs, pilot, noise = released_rows(update, task, self.nulls)
        level = float(shipped["constants"][0])
        rows = Rows(
            inputs=inputs,
            pilot=pilot,
            noise=noise,
            directions=shipped["directions"],
            unit_direction=shipped["unit_direction"],
            lower=shipped["lower"],
            upper=shipped["upper"],
        )
        variance = statistics.variance.flatten()[shipped["index"]]
        power = shipped["gain"] ** 2 * variance
        count = len(shipped["directions"])
        sharers = task.batch_size if task.granularity == "update" or task.max_grad_norm is None else 1
        prior = RowPrior(
            power=power,
            pilot_level=level,
            log_contrast_std=statistics.log_contrast_std,
            scale=math.sqrt(count * sharers),
            log_scale_std=0.0 if sharers == 1 else _LOG_SCALE_STD,
        )
        # Clipped alone, a victim has the whole budget, spread evenly over its rows.
        bound = 1 / count if sharers == 1 else None
        found = separate(rows, prior, task.batch_size, self.false_alarm, bound)
        combined, pilots = found.combine.to(inputs) @ inputs, found.combine.to(pilot) @ pilot
        noises = noise * found.combine.norm(dim=1)
        decoded = [
            decode_row(row, float(voice), float(std), prior)
            for row, voice, std in zip(combined, pilots, noises, strict=True)
        ]
        posterior = _in_coefficients(decoded, shipped, statistics)
        pictures = synthesise(posterior.mean, statistics.mean, statistics.colour).clamp(0, 1)
        return Guess(pictures, found.unresolved, {"structure.weight": None}, posterior)


def layout(batch: int, inputs: int, coefficients: int) -> tuple[int, int]:
    """How many units to share among how many directions, for almost no collisions at a bounded upload.

    A victim's energy is spread over its D rows, and with it the evidence that it is there at all. So at high noise a
    single direction is best, and collisions are avoided by many rows: few inputs are worth sending then, and rows of
    few inputs are cheap. At low noise rows are long and evidence is plenty: three directions, in which the victims
    that collide in one are told apart by the others, need an eighth of the rows.

    Args:
        batch: Pictures in the client's batch.
        inputs: How many coefficients are sent.
        coefficients: How many there are.

    Returns:
        Units and directions: one unit for a single picture; 64 a picture and one direction, where that is no more
        upload than 8 full-length ones; else 8 a picture, at least 32, and three directions.
    """
    if batch == 1:
        return 1, 1
    few = max(32, 8 * batch)
    return (8 * few, 1) if 8 * inputs <= coefficients else (few, 3)


def _in_coefficients(
    decoded: list[RowPosterior], shipped: Mapping[str, Tensor], statistics: PublicStatistics
) -> Posterior:
    """Undo the encoder's scaling; coefficients that were not sent keep their prior, at the contrast that was found."""
    shape = (len(decoded), *statistics.variance.shape)
    prior = torch.stack([row.contrast * statistics.variance for row in decoded]) if decoded else torch.zeros(shape)
    mean, variance = torch.zeros(shape).flatten(1), prior.flatten(1).clone()
    for victim, row in enumerate(decoded):
        mean[victim, shipped["index"]] = row.inputs.cpu() / shipped["gain"]
        variance[victim, shipped["index"]] = row.variance.cpu() / shipped["gain"] ** 2
    # Nothing is known without any doubt, nor less than before: keeps every precision finite and non-negative.
    variance = variance.view(shape).clamp(min=1e-12 * prior, max=prior)
    return Posterior(mean.view(shape), variance, prior)
