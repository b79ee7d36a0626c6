# SPDX-License-Identifier: Apache-2.0
"""Feedback coding over rounds: each round sends the residual of the server's estimate."""

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lightning_recon.errors import UserError
from lightning_recon.exchange import ClientUpdate, ServerPayload, Task
from lightning_recon.priors.image_statistics import PublicStatistics
from lightning_recon.ranges import PROBABILITY, check_ranges
from lightning_recon.structure.address_book import EXACT, LOG_PRIOR, MEMORY, MISMATCH
from lightning_recon.structure.addressed_rounds import AddressedRounds
from lightning_recon.structure.base import Decoded, FeedbackCode, Knowledge, Structure
from lightning_recon.structure.coding.hadamard_spreading import distortion
from lightning_recon.structure.coding.power_allocation import water_filling
from lightning_recon.structure.readout import budget_share, design_noise, l1_clipped, released_rows, weight_names
from lightning_recon.structure.refinement import Posterior
from lightning_recon.structure.sign_payload import sign_channel
from lightning_recon.structure.water_filling import WaterFilling

# The least encoder gain of a coefficient that units measure, as a share of the greatest.
_MEASURING_GAIN = 1e-3


class Feedback(Structure):
    """Schalkwijk–Kailath feedback coding over rounds, after an opening of plain water-filling.

    The opening repeats one code until sign and scale are settled. From then on unit j encodes the residual of victim j
    against the server's estimate, which is shipped inside the structure; clipping renormalises it to full power, so
    every round adds information. Where the announced batches change from round to round, every image that the server
    has recognised has a unit of its own, see `AddressedRounds`.

    Source: Schalkwijk & Kailath, IEEE Trans. Inf. Theory 12 (1966); water-filling on the posterior variances.
    """

    def __init__(self, opening: WaterFilling | None = None, pilot_power: float = 0.02) -> None:
        """Choose the code.

        Args:
            opening: The structure of the first rounds; its pilot settles the sign and decides how many rounds that
                takes. Default: water-filling with a pilot power of 0.2.
            pilot_power: Share of the power spent on the pilot in the rounds with feedback, in (0, 1).
        """
        self.opening = WaterFilling(pilot_power=0.2) if opening is None else opening
        if self.opening.pilot_power == 0:
            raise UserError("--model.structure.opening.pilot_power is 0: feedback needs a pilot to settle signs")
        check_ranges("--model.structure.", pilot_power=(pilot_power, PROBABILITY))
        self.pilot_power = pilot_power
        self._opened: tuple[Task, ServerPayload] | None = None
        self._addressed = AddressedRounds(self.opening, pilot_power)

    @property
    def name(self) -> str:
        """Name of the attack in `results.json`."""
        return "feedback"

    def statistics(self, task: Task) -> PublicStatistics:
        """Public statistics of images of the task's size."""
        return self.opening.statistics(task)

    def rounds(self, task: Task) -> int:
        """Number of averaged rounds, at most all, after which the pilot is four standard deviations of the noise.

        All of them where little but signs arrives, for which there is no code with feedback, and under noise that is
        correlated over rounds: it is whitened where rounds send the same.
        """
        if task.batches_change:
            return 1
        signs = self.opening.cancel and sign_channel(task, design_noise(task, self.opening.assumed_noise)) is not None
        if signs or task.noise_bands > 1:
            return task.rounds
        # The upper limit of directions for one victim; the opening takes more rounds while the pilots are too weak.
        directions = 1 if task.victims == 1 else self.opening.directions or 3
        noise = design_noise(task, None) * math.sqrt(task.sharers * directions)
        return min(task.rounds, max(1, math.ceil((4 * noise) ** 2 / self.opening.pilot_power)))

    def feedback_code(self, task: Task) -> FeedbackCode[Any] | None:
        """The code of the rounds after the opening: this one, or one for batches that change."""
        return self._addressed if task.batches_change else self

    def payload(self, task: Task) -> ServerPayload:
        """The structure of the opening, designed for the mean of its rounds.

        Raises:
            UserError: The clip bounds the L1 norm.
        """
        if l1_clipped(task):
            raise UserError(
                f"Feedback is designed for a Euclidean clip, and the {task.mechanism} mechanism bounds the L1 norm: "
                "choose --model.structure Digital or WaterFilling"
            )
        if task.batches_change:
            return self._addressed.opening_payload(task)
        if self._opened is None or self._opened[0] != task:
            self._opened = task, self.opening.payload(replace(task, rounds=self.rounds(task)))
        return self._opened[1]

    def decode(self, payload: ServerPayload, task: Task, update: ClientUpdate) -> Decoded:
        """Images from the mean of the opening's rounds, as many as `task` has."""
        return self.opening.decode(payload, task, update)

    def begin(self, payload: ServerPayload, task: Task, update: ClientUpdate, decoded: Decoded) -> Knowledge | None:
        """The server's knowledge when feedback starts; None if no victim activates a unit alone.

        Args:
            payload: The opening's payload.
            task: What was announced.
            update: The mean of the opening's updates.
            decoded: Its decoding.
        """
        posterior = decoded.refinement
        if not isinstance(posterior, Posterior) or not len(decoded.images):
            return None
        units, scales = self._private_units(payload, task, update, posterior)
        if not bool((units >= 0).any()):
            return None
        return Knowledge(
            mean=posterior.mean.flatten(1),
            variance=posterior.variance.flatten(1),
            prior_variance=posterior.prior_variance,
            units=units,
            scales=scales if task.granularity == "update" else scales.sign(),
            belief=LOG_PRIOR.repeat(len(scales), 1),
        )

    def _private_units(
        self, payload: ServerPayload, task: Task, update: ClientUpdate, known: Posterior
    ) -> tuple[Tensor, Tensor]:
        """For each victim a unit that no other victim activates, and the signed scale of its row.

        Returns:
            Units, shape (V,), -1 where other victims activate every unit of a victim too; and the divisor, shape (V,),
            that turns a victim's encoding into its row once all its power goes there.
        """
        shipped = payload.tensors
        inputs, pilot, _ = released_rows(update, task, payload)
        encoded = known.mean.flatten(1)[:, shipped["index"]] * shipped["gain"]
        level, directions = float(shipped["constants"][0]), len(shipped["directions"])
        overlap = encoded @ inputs.cpu().T + level * pilot.cpu()
        overlap = overlap / (encoded.square().sum(dim=1, keepdim=True) + level**2)
        # In each direction a victim activates the unit whose row correlates most with it.
        active = [
            torch.where(shipped["unit_direction"] == direction, overlap.abs(), -1.0).argmax(dim=1)
            for direction in range(directions)
        ]
        claims = torch.bincount(torch.cat(active), minlength=overlap.shape[1])
        candidates = torch.stack(active, dim=1)
        alone = torch.where(claims[candidates] == 1, overlap.gather(1, candidates).abs(), -1.0)
        clearest = alone.argmax(dim=1, keepdim=True)
        units = candidates.gather(1, clearest)
        scales = 1 / (overlap.gather(1, units) * math.sqrt(directions))
        return torch.where(alone.gather(1, clearest) > 0, units, -1)[:, 0], scales[:, 0]

    def next_payload(self, task: Task, knowledge: Knowledge) -> ServerPayload:
        """The structure that sends each victim's residual, water-filled on the mean posterior variance."""
        first = self.payload(task)
        own = knowledge.units >= 0
        variance = _corrected_variance(task, knowledge)[own].mean(dim=0)
        noise = design_noise(task, None) * math.sqrt(task.sharers) / budget_share(task, len(weight_names(first)))
        power = water_filling(variance, noise, 1 - self.pilot_power)
        gain = (power / variance).sqrt()
        # The coefficients that units measure must be sent, if only at a small gain.
        directions = torch.zeros(len(first.tensors["directions"]), len(gain))
        directions[:, first.tensors["index"]] = first.tensors["directions"] * first.tensors["gain"]
        measured = (directions != 0).any(dim=0)
        gain = torch.where(measured, gain.clamp(min=_MEASURING_GAIN * float(gain.max())), gain)
        index = (gain**2 * variance).argsort(descending=True, stable=True)[: int((gain > 0).sum())]
        gain, units = gain[index], knowledge.units[own]
        constants = torch.zeros(1 + self.opening.nulls)
        constants[0] = math.sqrt(self.pilot_power)
        return ServerPayload(
            settings=first.settings,
            tensors={
                "mean": first.tensors["mean"],
                "colour": first.tensors["colour"],
                "index": index,
                "gain": gain,
                "constants": constants,
                "offset": knowledge.mean[own][:, index] * gain,
                "directions": directions[:, index] / gain,
                "unit_direction": first.tensors["unit_direction"][units],
                "lower": first.tensors["lower"][units],
                "upper": first.tensors["upper"][units],
                "code": first.tensors["code"],
            },
        )

    def update_knowledge(
        self, payload: ServerPayload, task: Task, update: ClientUpdate, knowledge: Knowledge
    ) -> Knowledge:
        """Kalman's update of every victim's coefficients by its row, at the scale that the pilots indicate."""
        shipped, own = payload.tensors, knowledge.units >= 0
        inputs, pilot, std = released_rows(update, replace(task, rounds=1), payload)
        sign = knowledge.scales[own].sign()[:, None]
        inputs, pilot = sign * inputs.cpu(), sign * pilot.cpu()[:, None]
        level, index, gain = float(shipped["constants"][0]), shipped["index"], shipped["gain"]
        energies = gain**2 * _corrected_variance(task, knowledge)[own][:, index]
        expected = energies.sum(dim=1, keepdim=True)
        power = torch.cat([energies.mean(dim=0), energies.new_tensor([level**2])])
        distorted = distortion(power / power.sum(), len(weight_names(payload))) / math.sqrt(task.sharers)
        noise = max(math.hypot(std, distorted), 1e-7)
        # The scale S for every mismatch, and the pilot's evidence c/S on it. Clipped alone, a victim's S is the norm of
        # its own residual; under one clip the others' count as well, and the mismatch is that of S itself.
        if task.granularity == "sample":
            scales = (expected * MISMATCH / _mismatch(knowledge)[own, None] + level**2).sqrt()
        else:
            scales = knowledge.scales[own].abs()[:, None] * (MISMATCH * (expected + level**2)).sqrt()
        belief = knowledge.belief.clone()
        faded = LOG_PRIOR + MEMORY * (belief[own] - LOG_PRIOR)
        belief[own] = faded - (pilot - level / scales) ** 2 / (2 * noise**2)
        updated = replace(knowledge, belief=belief)
        scale = (torch.softmax(belief[own], dim=1) * scales).sum(dim=1, keepdim=True)
        variance = _corrected_variance(task, updated)[own][:, index]
        kept = variance / (variance + (noise * scale / gain) ** 2)
        mean, remaining = knowledge.mean.clone(), knowledge.variance.clone()
        rows, columns = torch.nonzero(own), index[None]
        mean[rows, columns] += kept * scale * inputs / gain
        remaining[rows, columns] *= 1 - kept
        # Residuals beyond the digits of float32 would be amplified rounding errors.
        remaining = remaining.maximum(EXACT * knowledge.prior_variance.flatten(1))
        return replace(updated, mean=mean, variance=remaining)

    def conclude(self, task: Task, knowledge: Knowledge, decoded: Decoded) -> Decoded:
        """The posterior mean images after the last round."""
        statistics, shape = self.statistics(task), knowledge.prior_variance.shape
        mean = knowledge.mean.view(shape)
        variance = knowledge.variance.view(shape)
        variance = variance.clamp(min=1e-12 * knowledge.prior_variance, max=knowledge.prior_variance)
        images = statistics.transform.synthesise(mean).clamp(0, 1)
        before = decoded.refinement
        centre = before.prior_mean if isinstance(before, Posterior) else torch.zeros_like(mean)
        posterior = Posterior(mean, variance, knowledge.prior_variance, centre)
        return replace(decoded, images=images, refinement=posterior)


def _mismatch(knowledge: Knowledge) -> Tensor:
    """Expected factor between true and believed variance, shape (V,)."""
    return torch.softmax(knowledge.belief, dim=1) @ MISMATCH


def _corrected_variance(task: Task, knowledge: Knowledge) -> Tensor:
    """Posterior variances, shape (V, n), corrected by the evidence of the pilots."""
    return knowledge.variance * (_mismatch(knowledge)[:, None] if task.granularity == "sample" else 1.0)
