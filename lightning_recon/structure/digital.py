# SPDX-License-Identifier: Apache-2.0
"""Our structure at low noise: the picture's file, protected by a channel code, beside a faint linear sketch of it."""

import math
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from lightning_recon.console import counting
from lightning_recon.exchange import ClientUpdate, ServerPayload, Task
from lightning_recon.priors.dct import analyse, synthesise
from lightning_recon.priors.image_statistics import PublicStatistics
from lightning_recon.ranges import NOT_NEGATIVE, SIZE_IN_BYTES, check_ranges
from lightning_recon.reconstruction import ReceivedFile
from lightning_recon.structure.base import Decoded, Posterior
from lightning_recon.structure.clipping_budget import structure_share
from lightning_recon.structure.coding.channel_code import binary_capacity, message_bits
from lightning_recon.structure.coding.code_plan import HEADER, Plan, digital_plan, shipped_plan, sketch_share
from lightning_recon.structure.detection.bayes_factors import Rows
from lightning_recon.structure.detection.separation import separate
from lightning_recon.structure.detection.successive_decoding import Received, read_victims
from lightning_recon.structure.detection.wiener import RowPosterior, RowPrior, decode_row
from lightning_recon.structure.readout import released_rows
from lightning_recon.structure.water_filling import STRENGTH, WaterFilling, in_coefficients

# Spread of log S when one clip covers the batch: the gradient norms of the other victims and of this one.
_LOG_SCALE_STD = 0.4
# Decibels by which the noise may be worse than assumed: at the assumed noise no file was lost (results/margins.csv).
_MARGIN = 0.2
# Noise of a victim's inputs, as if they had norm 1, up to which victims that share rows were seen to be told apart and
# decoded more often than not: 0.014 works, and at 0.016 a linear code is better.
_CROWDED = 0.014
# Units: so many a picture, but at least so many.
_UNITS_A_PICTURE, _FEWEST_UNITS = 4, 64
# Bytes of a float32.
_ENTRY = 4
# What a received picture leaves open, as a share of the prior variance.
_KNOWN = 1e-9


class Digital:
    """A digital code where the noise is low, a linear one where it is not.

    The gradient of a weight is its input times a scalar, and needs no derivative of that input. So the shipped network
    may do with a picture what a radio does: compress it, add a checksum, protect it by a channel code of the rate that
    the noise allows, and send ±1. What arrives is the file itself, to the last bit, or nothing; then a linear sketch
    that a stated share of the power was set aside for is decoded instead. The sketch is a `WaterFilling` structure in
    small, which also separates the victims.

    The client runs the server's code, as with every attack that changes the architecture: whoever inspects the model
    sees that it compresses pictures.

    Source: method ours; separation of source and channel coding after Shannon (1948).
    """

    def __init__(
        self,
        subjects: bool = False,
        units: int | None = None,
        directions: int | None = None,
        assumed_noise: float | None = None,
        margin_db: float = _MARGIN,
        upload_limit: int = 123_000_000,
        always_digital: bool = False,
        statistics: str | None = None,
        strength: float = STRENGTH,
        detach_logits: bool = True,
    ) -> None:
        """Choose the server's parameters; the defaults need no tuning.

        Args:
            subjects: Whether the server expects clients to cut the subject out on black: public knowledge about their
                preprocessing.
            units: Rows of the structure, shared among the directions. Default: 1 for a single picture, else 4 a picture
                and at least 64: half as many as for a linear code, because a decoded victim is out of the others' way.
            directions: Measurement directions, see `WaterFilling`. Default: 3, or 1 for a single unit.
            assumed_noise: Noise multiplier of an update to design for. Default: the announced one.
            margin_db: Decibels by which the noise may exceed that before codewords are lost; for neighbours there is
                something to spare besides.
            upload_limit: Most bytes that the structure may add to one client's upload in one round.
            always_digital: Whether to send digitally even where a linear code makes the better picture.
            statistics: File of public statistics, as `scripts/fit_statistics.py` writes it. Default: the bundled ones.
            strength: Factor of the structure's gradient, see `WaterFilling`.
            detach_logits: Whether the network's own gradient is zero, which a client can notice, see `WaterFilling`.
        """
        check_ranges(
            "--model.structure.", margin_db=(margin_db, NOT_NEGATIVE), upload_limit=(upload_limit, SIZE_IN_BYTES)
        )
        self.linear = WaterFilling(
            subjects=subjects,
            units=units,
            directions=directions,
            assumed_noise=assumed_noise,
            statistics=statistics,
            strength=strength,
            detach_logits=detach_logits,
        )
        self.margin_db = margin_db
        self.upload_limit = upload_limit
        self.always_digital = always_digital

    @property
    def name(self) -> str:
        """Name of the attack in `results.json`."""
        return "digital"

    def statistics(self, task: Task) -> PublicStatistics:
        """What the server takes for granted about pictures of the task's size."""
        return self.linear.statistics(task)

    def payload(self, task: Task) -> ServerPayload:
        """Design the structure from what was announced; a linear one where that makes the better picture."""
        assumed = self.linear.assumed_noise
        announced = 0.0 if task.max_grad_norm is None else task.update_noise
        noise = (announced if assumed is None else assumed) * math.sqrt(_sharers(task) / task.rounds)
        if task.per_layer or self._plan(noise, task, self.upload_limit // _ENTRY) is None:
            return self.linear.payload(task)
        sketch = self._sketch(task, sketch_share(noise))
        taken = len(sketch.tensors["index"]) + len(sketch.tensors["constants"]) + HEADER
        room = self.upload_limit // (_ENTRY * len(sketch.tensors["lower"])) - taken
        plan = self._plan(noise, task, room)
        return self.linear.payload(task) if plan is None else _beside(sketch, plan)

    def _plan(self, noise: float, task: Task, most: int) -> Plan | None:
        """The code of so many inputs at most."""
        pixels, shared = math.prod(task.image_shape[1:]), _sharers(task) > 1
        if task.victims > 1 and noise > _CROWDED and not self.always_digital:
            return None
        return digital_plan(noise, pixels, most, shared, self.margin_db, self.always_digital)

    def _sketch(self, task: Task, share: float) -> ServerPayload:
        """A linear structure designed for so small a share of the power."""
        assumed, factor = self.linear.assumed_noise, 1 / math.sqrt(share)
        few = 1 if task.victims == 1 else max(_FEWEST_UNITS, _UNITS_A_PICTURE * task.victims)
        linear = WaterFilling(
            subjects=self.linear.subjects,
            units=self.linear.units or few,
            directions=self.linear.directions,
            assumed_noise=None if assumed is None else assumed * factor,
            statistics=self.linear.statistics_file,
            strength=self.linear.strength,
            detach_logits=self.linear.detach_logits,
        )
        return linear.payload(replace(task, noise_multiplier=task.noise_multiplier * factor))

    def decode(self, payload: ServerPayload, task: Task, update: ClientUpdate) -> Decoded:
        """Separate the victims, decode their files, and fall back on the sketch where that fails.

        Args:
            payload: What was shipped.
            task: What was announced.
            update: Privatised, or the mean of several such.

        Returns:
            The pictures and their posterior.
        """
        plan = shipped_plan(payload)
        if plan is None:
            return self.linear.decode(payload, task, update)
        statistics, shipped = self.statistics(task), payload.tensors
        released, pilot, noise = released_rows(update, task, payload)
        count, sent = len(shipped["directions"]), len(shipped["index"])
        level = float(shipped["constants"][0])
        rows = Rows(
            inputs=released,
            pilot=pilot,
            noise=noise,
            directions=shipped["directions"],
            unit_direction=shipped["unit_direction"],
            lower=shipped["lower"],
            upper=shipped["upper"],
        )
        sharers = _sharers(task)
        prior = RowPrior(
            power=shipped["gain"] ** 2 * statistics.variance.flatten()[shipped["index"]],
            pilot_level=level,
            log_contrast_std=statistics.log_contrast_std,
            scale=math.sqrt(count * sharers),
            log_scale_std=0.0 if sharers == 1 else _LOG_SCALE_STD,
        )
        whole = _with_words(prior, plan)
        found = separate(rows, whole, task.victims, self.linear.false_alarm)
        size = (task.image_shape[1], task.image_shape[2])
        with counting("decoding", task.victims) as decoded_so_far:
            received, others = read_victims(
                released[:, sent:],
                noise,
                found.members,
                1 / prior.scale,
                plan,
                size,
                task.victims,
                decoded_so_far,
            )
        combined, pilots = found.combine.to(released) @ released, found.combine.to(pilot) @ pilot
        noises = noise * found.combine.norm(dim=1)
        decoded = [
            _sketched(row, sent, float(weight), float(std), prior)
            for row, weight, std in zip(combined, pilots, noises, strict=True)
        ]
        posterior = in_coefficients(decoded, shipped, statistics)
        pictures = synthesise(posterior.mean, statistics.mean, statistics.colour).clamp(0, 1)
        pictures, posterior = _with_files(pictures, posterior, received, others, statistics)
        missing = task.victims - len(pictures)
        evident = found.evident or any(one is not None for one in received)
        unresolved = found.unresolved if missing else 0
        files = tuple(_as_file(one, plan) for one in (*received, *others))
        share = structure_share(released, pilot, noise, whole, task, payload)
        read: dict[str, Tensor | None] = {"structure.weight": None}
        return Decoded(pictures, unresolved, read, posterior, evident=evident, files=files, share=share)


def _sharers(task: Task) -> int:
    """How many victims the budget is for; without a clip the whole update's norm stands for it."""
    return task.victims if task.max_grad_norm is None else task.sharers


def _with_words(prior: RowPrior, plan: Plan) -> RowPrior:
    """What is expected of a whole row: the more inputs agree, the clearer it is which rows hold the same picture.

    The code words are assumed at their smallest amplitude: a larger one is only detected more reliably.
    """
    softest = min(amplitude for amplitude in plan.amplitudes if amplitude > 0)
    words = torch.cat([torch.full((HEADER,), plan.header), torch.full((plan.inputs,), softest)])
    return replace(prior, power=torch.cat([prior.power, words.to(prior.power) ** 2]))


def _sketched(row: Tensor, sent: int, pilot: float, noise: float, prior: RowPrior) -> RowPosterior:
    """Decode a sketch, the first `sent` entries of a victim's row.

    For a victim that is clipped alone, the scale follows from the energy of its whole row: the digital inputs count as
    one more input that has their energy.
    """
    sketch, words = row[:sent], row[sent:]
    if prior.log_scale_std == 0:
        energy = float(words.double().square().sum()) - len(words) * noise**2
        sketch = torch.cat([sketch, sketch.new_tensor([math.sqrt(max(energy, 0.0))])])
        rest = 1 - prior.pilot_level**2 - float(prior.power.sum())
        prior = replace(prior, power=torch.cat([prior.power, prior.power.new_tensor([rest])]))
    found = decode_row(sketch, pilot, noise, prior)
    return RowPosterior(found.inputs[:sent], found.variance[:sent], found.contrast)


def _beside(sketch: ServerPayload, plan: Plan) -> ServerPayload:
    """A linear structure turned down to its share of the power, with the plan's inputs after its own."""
    amplitude, shipped = math.sqrt(plan.sketch), dict(sketch.tensors)
    shipped["gain"] = amplitude * shipped["gain"]
    shipped["constants"] = amplitude * shipped["constants"]
    # What a unit measures stays what it was; it does not hear the digital inputs.
    shipped["directions"] = torch.nn.functional.pad(shipped["directions"] / amplitude, (0, HEADER + plan.inputs))
    shipped["digital_amplitudes"] = torch.tensor(plan.amplitudes)
    return ServerPayload(settings={**sketch.settings, **plan.settings()}, tensors=shipped)


def _as_file(one: Received | None, plan: Plan) -> ReceivedFile | None:
    """How a picture's file arrived, for the record."""
    if one is None:
        return None
    codec: Literal["webp", "avif"] = "webp" if one.exact else "avif"
    capacity = plan.inputs * binary_capacity(one.snr)
    bits = message_bits(one.rung, plan.inputs)
    return ReceivedFile(codec, bits / plan.inputs, bits, capacity)


def _with_files(
    pictures: Tensor,
    posterior: Posterior,
    received: list[Received | None],
    others: list[Received],
    statistics: PublicStatistics,
) -> tuple[Tensor, Posterior]:
    """Put received files in the place of sketches, and those nobody sketched after them."""
    extra = torch.zeros(len(others), *statistics.variance.shape)
    pictures = torch.cat([pictures, extra])
    mean = torch.cat([posterior.mean, extra])
    prior = torch.cat([posterior.prior_variance, statistics.variance.expand_as(extra)])
    variance = torch.cat([posterior.variance, statistics.variance.expand_as(extra)])
    for place, one in enumerate([*received, *others]):
        if one is not None:
            pictures[place] = one.picture.float() / 255
            mean[place] = analyse(pictures[place], statistics.mean, statistics.colour)
            variance[place] = _KNOWN * prior[place]
    return pictures, Posterior(mean, variance, prior)
